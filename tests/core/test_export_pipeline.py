from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export import pipeline, verify
from ollama_tune.core.export.about import digest_of
from ollama_tune.core.export.header import read_header
from ollama_tune.core.export.merge import Adapter
from ollama_tune.core.export.pipeline import run_export
from ollama_tune.core.export.values import Check, ExportStopped, Verification
from ollama_tune.core.paths import models_dir
from ollama_tune.core.runs.folder import RunFolder
from tests.core.export_parts import load
from tests.core.export_trained import Trained, build_trained, make_run, write_reference
from tests.core.hub import COMMIT, running
from tests.ollama_double import OllamaDouble
from tests.ollama_state import Faults, Model

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return build_trained(tmp_path_factory.mktemp("pipeline"), "Llama", intermediate_size=128)


@pytest.fixture
def folder(trained: Trained) -> RunFolder:
    return make_run(trained)


def export(folder: RunFolder, stopped: Callable[[], bool] = lambda: False) -> tuple[Verification, Events]:
    events: Events = []
    return run_export(folder, lambda kind, **data: events.append((kind, data)), stopped), events


def ask(folder: RunFolder, **wanted: Any) -> None:
    request = {"name": "birds:v1", "type": "f16"} | wanted
    folder.export_request_path.write_text(json.dumps(request))


def files(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.export.iterdir())


def check(verification: Verification, name: str) -> Check:
    (found,) = [check for check in verification.checks if check.name == name]
    return found


def names(events: Events, kind: str) -> list[str]:
    return list(dict.fromkeys(data["name"] for found, data in events if found == kind))


def test_a_run_becomes_a_proved_file_with_commands(folder: RunFolder) -> None:
    found, events = export(folder)
    assert found.verdict == "pass"
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]
    assert found.file == "birds-v1-f16.gguf"
    assert (folder.export / found.file).stat().st_size == found.bytes
    assert digest_of(folder.export / found.file) == found.sha256
    assert Verification.from_dict(json.loads((folder.export / "verification.json").read_text())) == found
    assert events[-1] == ("verification", found.to_dict())
    for place in found.files.values():
        assert (folder.path / place).is_file()
    assert found.commands == (
        f"ollama create birds:v1 -f {folder.export / 'Modelfile'}",
        "ollama run birds:v1",
    )
    assert 'PARAMETER stop "<|im_end|>"' in (folder.export / "Modelfile").read_text()
    assert "PARAMETER num_ctx 512" in (folder.export / "Modelfile").read_text()
    left = check(found, "ollama")
    assert (left.verdict, found.ollama_name) == ("skipped", None)
    assert left.text.startswith("No Ollama answers at http://127.0.0.1:9")
    assert names(events, "phase") == ["preparing", "probing", "writing", "verifying"]
    last = {data["name"]: data for kind, data in events if kind == "progress"}
    assert last["writing"]["done"] == last["writing"]["total"] > 190_000
    assert last["verifying"]["done"] == last["verifying"]["total"]


def test_the_report_says_what_was_proved_and_by_what(folder: RunFolder, trained: Trained) -> None:
    found, _ = export(folder)
    about = found.about
    assert about["base"]["source"] == about["base"]["folder"] == str(trained.base)
    assert about["adapter_sha256"] == digest_of(folder.adapter / "adapter_model.safetensors")
    assert (about["name"], about["type"], about["importance"]) == ("birds:v1", "f16", False)
    assert about["reference"] == "stored by the training"
    assert {"ollama-tune", "gguf", "xllamacpp", "transformers", "peft"} <= about["versions"].keys()
    figures = check(found, "probabilities").data
    assert 0 <= figures["kl"] < figures["kl_passes_below"] < figures["kl_fails_from"]
    assert all(check.data for check in found.checks if check.verdict != "skipped")


def test_a_report_of_another_version_is_read(folder: RunFolder) -> None:
    found, _ = export(folder)
    tree = found.to_dict()
    old = {name: tree[name] for name in ("verdict", "file", "sha256", "bytes", "type")}
    old["checks"] = [{n: c[n] for n in ("name", "verdict", "figure", "text")} for c in tree["checks"]]
    assert Verification.from_dict(old).checks[0].text == found.checks[0].text
    new = tree | {"tomorrow": 1, "checks": [check | {"colour": "red"} for check in tree["checks"]]}
    assert Verification.from_dict(new) == found


def test_an_export_asked_for_later_wins_and_replaces_only_its_own_file(folder: RunFolder) -> None:
    export(folder)
    first = (folder.export / "birds-v1-f16.gguf").stat()
    ask(folder, name="birds", type="q8_0", push=False)
    found, _ = export(folder)
    assert found.file == "birds-q8_0.gguf"
    assert files(folder) == ["Modelfile", "birds-q8_0.gguf", "birds-v1-f16.gguf", "verification.json"]
    assert (folder.export / "birds-v1-f16.gguf").stat() == first
    assert check(found, "ollama").figure == "not asked for"
    assert found.commands[1] == "ollama run birds"
    again, _ = export(folder)
    assert (again.sha256, again.bytes) == (found.sha256, found.bytes)


def test_ollama_gets_the_file_and_proves_it_too(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        found, events = export(folder)
        assert found.verdict == "pass"
        assert found.ollama_name == "birds:v1"
        assert list(server.state.models) == ["birds:v1"]
        model = server.state.models["birds:v1"]
        assert model.digest == f"sha256:{found.sha256}"
        assert model.parameters == {"stop": ["<|im_end|>"], "num_ctx": 512}
        assert server.state.running() == set()
    assert found.commands[0] == "ollama run birds:v1"
    phases = ["preparing", "probing", "writing", "verifying", "uploading", "creating", "asking"]
    assert names(events, "phase") == phases
    assert "warning" not in dict(events)


def test_a_model_of_that_name_is_told_before_the_work(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.state.models["birds:v1"] = Model("sha256:0", {}, {})
        _, events = export(folder)
    kinds = [(kind, data.get("name")) for kind, data in events]
    told = next(data["what"] for kind, data in events if kind == "warning")
    assert "birds:v1 exists" in told
    assert kinds.index(("warning", None)) < kinds.index(("phase", "probing"))


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(forbidden=True), "403"),
        (Faults(create_error="unsupported architecture"), "unsupported architecture"),
    ],
    ids=["403", "create fails"],
)
def test_an_ollama_that_fails_costs_a_clear_word_and_no_file(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, faults: Faults, words: str
) -> None:
    with OllamaDouble(faults=faults) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        found, events = export(folder)
        assert server.state.models == {}
    told = check(found, "ollama")
    assert words in told.text
    assert told.verdict in ("warn", "skipped")
    assert (told.verdict == "warn") == any(kind == "warning" for kind, _ in events)
    assert found.ollama_name is None
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]
    assert len(found.commands) == 2


@pytest.mark.parametrize(
    "double",
    [
        {"faults": Faults(chat_error="llama runner terminated")},
        {"answer": lambda path, body: ("No: yes it is. No: yes it is.", "length")},
    ],
    ids=["does not load", "never ends"],
)
def test_a_model_that_fails_inside_ollama_is_no_success(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, double: dict[str, Any]
) -> None:
    events: Events = []
    with OllamaDouble(**double) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(TuneError, match="file is proved and kept, but the model in Ollama failed"):
            run_export(folder, lambda kind, **data: events.append((kind, data)), lambda: False)
        assert server.state.models == {}
    report = json.loads((folder.export / "verification.json").read_text())
    assert (report["verdict"], report["ollama_name"]) == ("fail", None)
    assert events[-1] == ("verification", report)
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]


def test_a_failed_proof_says_so_in_the_name_and_sends_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = pipeline.export_gguf
    monkeypatch.setattr(
        pipeline, "export_gguf", lambda base, adapter, *rest, **named: right(base, None, *rest, **named)
    )
    ask(folder, also=["adapter"])
    events: Events = []
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(
            TuneError, match=r"failed its proof \(tensors, adapter, .*birds-v1-f16\.failed\.gguf"
        ):
            run_export(folder, lambda kind, **data: events.append((kind, data)), lambda: False)
        assert server.asked("POST", "/api/blobs") == server.asked("POST", "/api/create") == []
    assert files(folder) == ["birds-v1-f16.failed.gguf", "verification.json"]
    kind, report = events[-1]
    assert (kind, report["verdict"], report["ollama_name"]) == ("verification", "fail", None)
    assert report["commands"] == []
    monkeypatch.setattr(pipeline, "export_gguf", right)
    ask(folder)
    assert export(folder)[0].verdict == "pass"
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]


@pytest.mark.parametrize(("name", "error"), [("null", "no name"), ("bad name!", "may not contain")])
def test_a_name_is_checked_before_any_work(folder: RunFolder, name: str, error: str) -> None:
    folder.export_request_path.write_text(f"name: {name}\n")
    with pytest.raises(UsageError, match=error):
        export(folder)
    assert not folder.export.exists()


def test_a_run_without_an_adapter_is_told(folder: RunFolder) -> None:
    shutil.rmtree(folder.adapter)
    with pytest.raises(TuneError, match="no tuned model"):
        export(folder)


def test_a_full_disk_is_told_before_any_work(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    events: Events = []
    with pytest.raises(TuneError, match=r"needs .* but .* are free"):
        run_export(folder, lambda kind, **data: events.append((kind, data)), lambda: False)
    assert names(events, "phase") == ["preparing"]
    assert files(folder) == []


FORMS = ["merged", "adapter", "adapter_gguf"]


def test_other_forms_are_written_after_the_proof(folder: RunFolder, trained: Trained) -> None:
    ask(folder, also=FORMS)
    found, events = export(folder)
    assert found.verdict == "pass"
    assert names(events, "phase")[-1] == "outputs"
    written = [folder.path / found.files[form] for form in FORMS]
    assert [path.name for path in written] == ["birds-v1-merged", "birds-v1-adapter", "birds-v1-adapter.gguf"]
    assert load(written[0]) is not None
    assert Adapter(written[1]).modules == Adapter(trained.adapter).modules
    assert read_header(written[2]).fields["general.type"] == "adapter"


def test_a_form_that_cannot_be_written_costs_a_warning(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollama_tune.core.export import outputs

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_merged_folder", full)
    ask(folder, also=FORMS)
    found, events = export(folder)
    assert (found.verdict, check(found, "merged").figure) == ("warn", "not written")
    assert "No space left" in next(data["what"] for kind, data in events if kind == "warning")
    assert found.files.keys() >= {"gguf", "adapter", "adapter_gguf"}
    assert "birds-v1-f16.gguf" in files(folder)


@pytest.mark.parametrize("phase", ["preparing", "probing", "writing", "verifying", "outputs", "uploading"])
def test_a_stop_is_obeyed_within_a_second_in_every_phase(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    ask(folder, also=["merged"])
    phases: list[str] = []
    told: list[dict[str, Any]] = []
    began = 0.0

    def emit(kind: str, **data: Any) -> None:
        if kind == "phase":
            phases.append(data["name"])
        if kind == "verification":
            told.append(data)

    def stopped() -> bool:
        nonlocal began
        if phase in phases and not began:
            began = time.monotonic()
        return bool(began)

    with OllamaDouble(faults=Faults(stall_mid_upload=True)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(ExportStopped):
            run_export(folder, emit, stopped)
        assert time.monotonic() - began < 1.0
        assert server.state.models == {}
    assert phases[-1] == phase
    if phase in ("outputs", "uploading"):
        assert "birds-v1-f16.gguf" in files(folder)
        assert json.loads((folder.export / "verification.json").read_text()) == told[0]
        assert (len(told), told[0]["ollama_name"]) == (1, None)
    else:
        assert (files(folder), told) == ([], [])


def test_leftovers_of_a_killed_export_are_cleared(folder: RunFolder) -> None:
    folder.export.mkdir()
    (folder.export / "birds-v1-q8_0.unverified.gguf").write_bytes(b"half")
    (folder.export / ".birds-v1-q4_0.unverified.gguf.abc.part").write_bytes(b"half")
    (folder.export / ".birds-v1-merged.abc.part").mkdir()
    export(folder)
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]


def test_lost_data_does_not_hinder_the_proof(folder: RunFolder) -> None:
    folder.settings().with_value("data.path", str(folder.path / "gone.jsonl")).save(folder.settings_path)
    (folder.path / "reference.json").unlink()
    found, events = export(folder)
    assert found.verdict in ("pass", "warn")
    assert "asking_tuned" in names(events, "phase")
    assert found.about["reference"] == "computed by the export"
    assert " of 6 answers" in check(found, "probabilities").text


def test_answers_of_another_adapter_are_not_compared_with(folder: RunFolder, trained: Trained) -> None:
    digest = digest_of(trained.adapter / "adapter_model.safetensors")
    write_reference(folder, trained.reference, adapter_sha256=digest)
    assert export(folder)[0].about["reference"] == "stored by the training"
    write_reference(folder, trained.reference, adapter_sha256="0" * 64)
    assert export(folder)[0].about["reference"] == "computed by the export"


def test_a_model_too_large_to_be_asked_is_proved_by_its_file_alone(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "reference.json").unlink()
    monkeypatch.setattr(verify, "_size", lambda base: 1 << 60)
    found, _ = export(folder)
    assert found.verdict == "warn"
    assert "of memory" in check(found, "tuned model").text
    assert check(found, "probabilities").figure == "not compared"
    assert check(found, "adapter").verdict == check(found, "tensors").verdict == "pass"


@pytest.fixture(scope="module")
def four_bit(trained: Trained) -> Any:
    """Answers of the adapter on 4-bit weights, as a QLoRA training stores them."""
    from ollama_tune.core.evaluate.general_engine import GeneralEngine
    from ollama_tune.core.evaluate.generate import Generator
    from ollama_tune.core.plan.settings import TrainingSettings
    from ollama_tune.core.train.model import load_adapter, load_base

    base = load_base(trained.base, TrainingSettings(quantization="nf4"))
    generator = Generator(GeneralEngine(load_adapter(base, trained.adapter)), trained.chat)
    return tuple(verify._filled(generator, answer, lambda: False) for answer in trained.reference)


def test_four_bit_training_is_parted_from_what_the_file_costs(
    folder: RunFolder, four_bit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.settings().with_value("training.quantization", "nf4").save(folder.settings_path)
    write_reference(folder, four_bit)
    found, events = export(folder)
    line = check(found, "4-bit base")
    assert line.data["kl"] > 100 * check(found, "probabilities").data["kl"]
    assert check(found, "probabilities").data["slack"] == 0.0
    assert "asking_tuned" in names(events, "phase")
    monkeypatch.setattr(verify, "SMALL", 0)
    found, _ = export(folder)
    assert (check(found, "4-bit base").verdict, check(found, "probabilities").data["slack"]) == (
        "skipped",
        0.05,
    )


def test_the_importance_of_the_training_is_used_where_it_helps(folder: RunFolder, trained: Trained) -> None:
    chance = np.random.default_rng(0)
    widths = {
        key.removesuffix(".weight"): weight.shape[1]
        for key, weight in load(trained.base).state_dict().items()
        if weight.dim() == 2
    }
    columns = {name: np.exp(2 * chance.standard_normal(width)) for name, width in widths.items()}
    save_file({name: row.astype(np.float32) for name, row in columns.items()}, folder.importance_path)
    for kind, used in (("q4_k_m", True), ("q8_0", False)):
        ask(folder, type=kind)
        found, _ = export(folder)
        assert found.about["importance"] is used
        assert check(found, "tensors").verdict == check(found, "adapter").verdict == "pass"
    ask(folder, type="q4_k_m", importance=False)
    assert export(folder)[0].about["importance"] is False


@pytest.fixture
def hub_folder(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run on a model of the hub whose files are not on this machine any more."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running(trained.base) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield make_run(trained, **{"model.source": "org/tiny"})


def test_a_base_model_that_is_gone_is_downloaded_again(hub_folder: RunFolder) -> None:
    found, events = export(hub_folder)
    assert names(events, "phase")[:3] == ["preparing", "downloading", "probing"]
    assert found.verdict == "pass"
    assert found.about["base"]["revision"] == COMMIT
    assert "downloading" in names(events, "progress")
    _, events = export(hub_folder)
    assert "downloading" not in names(events, "phase")


def test_a_stop_while_the_base_is_downloaded_is_obeyed(hub_folder: RunFolder) -> None:
    phases: list[str] = []

    def emit(kind: str, **data: Any) -> None:
        phases.extend([data["name"]] if kind == "phase" else [])

    with pytest.raises(ExportStopped):
        run_export(hub_folder, emit, lambda: "downloading" in phases)
    assert not any(models_dir().rglob("model.safetensors"))


def test_the_adapter_in_the_run_is_the_one_that_is_proved(folder: RunFolder) -> None:
    found, _ = export(folder)
    count = len(Adapter(folder.adapter).modules)
    assert f"All {count} adapted tensors" in check(found, "adapter").text
