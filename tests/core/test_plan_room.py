"""The last look at free memory before a run starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ollama_tune.core.errors import UsageError
from ollama_tune.core.machine import processes
from ollama_tune.core.machine.processes import in_use
from ollama_tune.core.machine.values import Disk, Gpu, GpuProcess, GpuReport, Host, Machine, OllamaStatus
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.plan import room
from ollama_tune.core.plan.room import check_run, look_again, of_this_box, settings_here, shortage
from ollama_tune.core.plan.settings import Settings
from tests.tiny import build_model

GIB = 1 << 30


def machine(free: int, *gpus: Gpu) -> Machine:
    host = Host("CPU", 4, 32 * GIB, free, "Linux")
    return Machine(
        GpuReport(gpus, None, ""), host, Disk("/", 1, 1), OllamaStatus("", None, "No Ollama.", True)
    )


def card(uuid: str, free: int) -> Gpu:
    holder = GpuProcess(7, "game", 3 * GIB)
    return Gpu(0, uuid, "RTX", 8 * GIB, free, (8, 9), (holder,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


def test_a_run_that_fits_lacks_nothing(model: Path) -> None:
    settings = Settings().with_value("model.source", str(model))
    assert shortage(settings, read_spec(str(model)), machine(24 * GIB), 512) == ""


def test_a_lack_names_both_figures_and_who_holds_the_memory(model: Path) -> None:
    settings = Settings().with_values({"model.source": str(model), "training.device": "cuda"})
    text = shortage(settings, read_spec(str(model)), machine(24 * GIB, card("GPU-1", GIB // 2)), 512)
    assert text.startswith("With rows of 512 tokens this run needs about ")
    assert "MiB are free now. game (process 7) holds 3.0 GiB of the GPU." in text


def test_the_gpus_free_memory_is_taken_once_it_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "settled", lambda: {"GPU-1": 5 * GIB})
    found = look_again(lambda: machine(GIB, card("GPU-1", 6 * GIB), card("GPU-2", 4 * GIB)))
    assert [gpu.free for gpu in found.gpu.gpus] == [5 * GIB, 4 * GIB]


def test_holders_of_ram_matter_where_training_happens_in_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ram_holders", lambda: ["editor holds 2.0 GiB of RAM."])
    assert in_use(machine(GIB)) == ["editor holds 2.0 GiB of RAM."]
    assert in_use(machine(GIB, card("GPU-1", GIB))) == ["game (process 7) holds 3.0 GiB of the GPU."]


def test_a_run_file_is_checked_before_anything_is_started(model: Path, tmp_path: Path) -> None:
    settings = Settings().with_value("model.source", str(model))
    assert check_run(settings) == ""
    large = settings.with_values({"training.sequence_length": 1_000_000, "training.batch_size": 4096})
    assert check_run(large).startswith("With rows of 1,000,000 tokens this run needs about")
    bare = build_model(tmp_path / "bare")
    (bare / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    with pytest.raises(UsageError) as caught:
        check_run(settings.with_value("model.source", str(bare)))
    assert "'plain roles'" in caught.value.fix


def test_what_a_file_leaves_open_is_what_the_box_has() -> None:
    plain = machine(24 * GIB)
    units = replace(plain, host=replace(plain.host, bfloat16="AMX"))
    on_gpu = machine(24 * GIB, card("GPU-1", GIB))
    both = {"training.device": "cuda", "training.compute_dtype": "bfloat16"}
    assert of_this_box({}, lambda: on_gpu) == both
    assert of_this_box({}, lambda: plain)["training.compute_dtype"] == "float32"
    assert of_this_box({"device": "cpu"}, lambda: units) == {"training.compute_dtype": "bfloat16"}
    assert of_this_box({"device": "cpu"}, lambda: on_gpu) == {"training.compute_dtype": "float32"}
    assert of_this_box({"compute_dtype": "float32"}, lambda: on_gpu) == {"training.device": "cuda"}


def test_what_is_set_beside_a_file_counts_as_its_own(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {epochs: 1}\n")
    on_gpu = machine(24 * GIB, card("GPU-1", GIB))
    settings, chosen = settings_here(file, {"training.rank": 4}, lambda: on_gpu)
    assert chosen == {"training.device": "cuda", "training.compute_dtype": "bfloat16"}
    training = settings.training
    assert (training.rank, training.device, training.compute_dtype) == (4, "cuda", "bfloat16")
    settings, chosen = settings_here(file, {"training.device": "cpu"}, lambda: on_gpu)
    assert chosen == {"training.compute_dtype": "float32"} and settings.training.device == "cpu"


def test_a_file_that_says_all_of_it_needs_no_look_at_the_box() -> None:
    def never() -> Machine:
        raise AssertionError

    assert of_this_box({"device": "cpu", "compute_dtype": "float32", "rank": 4}, never) == {}
