from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import pytest
from safetensors.torch import load_file, save_file

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.gguf import export_gguf, open_source, plain_name, require_space
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.reference import divergence
from ollama_tune.core.export.values import ExportStopped
from ollama_tune.core.models.architectures import read_config
from tests.core.export_parts import (
    LLAMA3_ROPE,
    PROMPT,
    build_adapter,
    build_llama,
    load,
    log_probabilities,
)

LONG = PROMPT * 5
PLAIN_TOKEN = 70
# Largest difference of a log-probability on these models, whose weights are ten times a real model's.
LIMITS = {"f32": 1e-4, "f16": 0.03, "bf16": 0.2, "q8_0": 0.8}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "untied, wide heads, biases": (
        {"tie_word_embeddings": False, "head_dim": 32, "attention_bias": True, "mlp_bias": True},
        {"use_rslora": True},
    ),
    "llama3 rope, shards": ({"rope_parameters": LLAMA3_ROPE, "shard": "60KB"}, {}),
    "another base": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {}),
    "linear rope": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, {}),
    "yarn": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {},
    ),
    "every head its own key": ({"num_key_value_heads": 4}, {"target_modules": ["q_proj", "down_proj"]}),
    "adapted tied head": ({}, {"target_modules": ["lm_head", "v_proj"]}),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter."""
    folder = tmp_path_factory.mktemp("tiny")
    base = build_llama(folder / "base")
    return base, build_adapter(base, folder / "adapter")


def served_log_probabilities(path: Path) -> dict[int, float]:
    with LlamaServer(path, 256) as llama:
        return llama.top(LONG, 1000, PLAIN_TOKEN)


def largest_difference(found: dict[int, float], expected: list[float]) -> float:
    assert len(found) == len(expected)
    return max(abs(found[i] - value) for i, value in enumerate(expected))


@pytest.mark.parametrize("kind", LIMITS)
def test_llama_cpp_computes_what_transformers_computes(
    tiny: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    base, adapter = tiny
    expected = log_probabilities(load(base, adapter), LONG)
    plain = log_probabilities(load(base), LONG)
    found = served_log_probabilities(export_gguf(base, adapter, tmp_path / "model.gguf", kind).path)
    assert largest_difference(found, expected) < LIMITS[kind]
    assert divergence(dict(enumerate(expected)), found) < 0.01
    assert max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 2


@pytest.mark.parametrize("name", MODELS)
def test_every_form_of_the_architecture_is_computed_alike(tmp_path: Path, name: str) -> None:
    changes, lora = MODELS[name]
    base = build_llama(tmp_path / "base", **changes)
    adapter = build_adapter(base, tmp_path / "adapter", **lora)
    expected = log_probabilities(load(base, adapter), LONG)
    found = served_log_probabilities(export_gguf(base, adapter, tmp_path / "model.gguf", "f32").path)
    assert largest_difference(found, expected) < LIMITS["f32"]


def test_a_head_of_its_own_is_kept_even_where_the_config_says_tied(tmp_path: Path) -> None:
    """transformers 5 trusts the weights more than the config, and so must the export."""
    base = build_llama(tmp_path / "base", tie_word_embeddings=False)
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    expected = log_probabilities(load(base), LONG)
    found = served_log_probabilities(export_gguf(base, None, tmp_path / "model.gguf", "f32").path)
    assert largest_difference(found, expected) < LIMITS["f32"]


def test_configs_of_transformers_4_and_5_say_the_same(tmp_path: Path) -> None:
    base = build_llama(tmp_path, rope_parameters=LLAMA3_ROPE)
    new = read_config(base)
    data = json.loads((base / "config.json").read_text())
    rope = data.pop("rope_parameters")
    data["rope_theta"] = rope.pop("rope_theta")
    data["rope_scaling"] = rope
    (base / "config.json").write_text(json.dumps(data))
    old = read_config(base)
    assert old.fields(10) == new.fields(10)
    assert old.rope_factors() == new.rope_factors() != None  # noqa: E711
    assert new.fields(10)["llama.rope.freq_base"] == 500000.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None}, "unnamed"),
        ({"architectures": ["MyLM"], "auto_map": {"AutoModelForCausalLM": "mine.Model"}}, "own code"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 8,
                }
            },
            "beta_fast",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"num_hidden_layers": None}, "usable value"),
        ({"num_hidden_layers": 3}, r"lacks 9 of the weights .*model\.layers\.2\.input_layernorm"),
        ({"num_attention_heads": 8}, "64 rows, but config.json says 8 heads of 16"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name_and_leaves_nothing(
    tiny: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny[0].iterdir():
        (base / file.name).symlink_to(file)
    config = json.loads((base / "config.json").read_text()) | changes
    (base / "config.json").unlink()
    (base / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TuneError, match=named):
        export_gguf(base, None, out / "model.gguf", "f16")
    assert list(out.iterdir()) == []


def test_a_weight_that_has_no_place_is_refused(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    base = build_llama(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.extra.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(TuneError, match=r"self_attn\.extra\.weight"):
        export_gguf(base, None, tmp_path / "model.gguf", "f16")


def test_a_weight_beyond_float16_names_itself(tmp_path: Path) -> None:
    base = build_llama(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e5
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(TuneError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        export_gguf(base, None, tmp_path / "model.gguf", "f16")
    assert not list(tmp_path.glob("*model.gguf*"))
    assert export_gguf(base, None, tmp_path / "model.gguf", "bf16").path.exists()


def test_the_file_is_what_it_is_said_to_be(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    exported = export_gguf(
        *tiny, tmp_path / "model.gguf", "q8_0", lambda done, total: seen.append((done, total)), name="mine"
    )
    data = exported.path.read_bytes()
    assert (exported.bytes, exported.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    done = [entry[0] for entry in seen]
    assert done == sorted(done) and len(done) > 10
    assert seen[-1][0] == seen[-1][1]
    reader = gguf.GGUFReader(exported.path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.name"] == "mine"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert (fields["llama.attention.head_count_kv"], fields["llama.rope.dimension_count"]) == (2, 16)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.1.ffn_down.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"
    assert "output.weight" not in kinds


def test_a_name_that_would_change_llama_cpps_tokenizer_is_not_written(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    exported = export_gguf(*tiny, tmp_path / "my-phi3.gguf", "f16")
    assert name_in(exported.path) == plain_name("my-phi3") == "tuned-model"
    exported = export_gguf(*tiny, tmp_path / "model.gguf", "f16", name="Phi-3 of mine")
    assert name_in(exported.path) == "tuned-model"


def test_a_name_that_was_probed_with_its_tokenizer_is_written(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    with open_source(*tiny, ChatFormat.from_folder(tiny[0])) as source:
        probed = {name: value for name, value in source.fields.items() if name.startswith("tokenizer.")}
    exported = export_gguf(*tiny, tmp_path / "model.gguf", "f16", tokenizer=probed, name="phi-3")
    assert name_in(exported.path) == "phi-3"


def name_in(path: Path) -> str:
    return str(gguf.GGUFReader(path).fields["general.name"].contents())


def test_the_same_export_twice_is_the_same_bytes(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    first = export_gguf(*tiny, tmp_path / "model.gguf", "q8_0")
    second = export_gguf(*tiny, tmp_path / "model.gguf", "q8_0")
    assert first == second


def test_a_stop_ends_it_at_once_and_leaves_nothing(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 12

    with pytest.raises(ExportStopped):
        export_gguf(*tiny, tmp_path / "model.gguf", "f16", None, stopped)
    assert asked == 13
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from pathlib import Path
from ollama_tune.core.export.gguf import export_gguf
base, adapter, output = map(Path, sys.argv[1:])
def progress(done, total):
    if done > total // 2:
        print("half", flush=True)
        time.sleep(60)
export_gguf(base, adapter, output, "f16", progress)
"""


def test_kill_9_leaves_no_file_under_the_final_name_and_the_next_export_cleans_up(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "model.gguf"
    command = [sys.executable, "-c", SLOW, *map(str, (*tiny, output))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    assert len(list(tmp_path.glob(".model.gguf.*.part"))) == 1
    export_gguf(*tiny, output, "f16")
    assert list(tmp_path.iterdir()) == [output]


def small_disk(folder: Path, size: str) -> None:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def test_too_small_a_disk_is_told_before_any_work(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    small_disk(disk, "1m")
    try:
        with pytest.raises(TuneError, match=r"full: 1\.0 MiB are free, 16\.2 MiB are needed"):
            export_gguf(*tiny, disk / "model.gguf", "f16")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    small_disk(disk, "17m")

    def fill(done: int, total: int) -> None:
        if done < total // 2:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            with (disk / "other").open("ab") as file:
                file.write(bytes(max(free - 16384, 0)))

    try:
        with pytest.raises(TuneError, match=r"The disk of .* is full: .* are free"):
            export_gguf(*tiny, disk / "model.gguf", "f16", fill)
        assert [path.name for path in disk.iterdir()] == ["other"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_without_permission_is_told(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="could not be written"):
        export_gguf(*tiny, tmp_path / "missing" / "model.gguf", "f16")


def test_space_that_is_there_is_enough(tmp_path: Path) -> None:
    require_space(tmp_path, 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 80 MB."""
    folder = tmp_path_factory.mktemp("large")
    return build_llama(folder, hidden_size=1280, intermediate_size=5120)


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_memory_does_not_grow_with_the_model_and_a_stop_is_asked_for_often(
    large: Path, tmp_path: Path, kind: str
) -> None:
    """A model of 80 MB is never held as a whole: neither its numbers nor between two looks for a stop."""
    assert (large / "model.safetensors").stat().st_size > 75e6
    done = [0]

    def progress(now: int, _total: int) -> None:
        done.append(now)

    tracemalloc.start()
    try:
        export_gguf(large, None, tmp_path / "model.gguf", kind, progress, lambda: False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20, peak
    assert max(after - before for before, after in itertools.pairwise(done)) < 4 << 20


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_a_stop_is_obeyed_at_the_first_look_and_leaves_nothing(
    large: Path, tmp_path: Path, kind: str
) -> None:
    told: list[int] = []
    asked: list[bool] = []

    def stopped() -> bool:
        asked.append(len(told) >= 5)
        return asked[-1]

    with pytest.raises(ExportStopped):
        export_gguf(large, None, tmp_path / "model.gguf", kind, lambda done, _: told.append(done), stopped)
    assert asked.count(True) == 1 and len(told) == 5
    assert list(tmp_path.iterdir()) == []
