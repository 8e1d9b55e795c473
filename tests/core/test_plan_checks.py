"""Warnings of a plan: everything that would go wrong on the last mile, told before the first step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.generations import generation
from ollama_tune.core.machine.values import Disk, Machine, OllamaModel, OllamaStatus
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.checks import too_old
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.values import Plan
from tests.cases import CHAT, GIB, LLAMA_8B, SHORT, TINY, lengths, machine

CPU = machine()
GPU = machine(gpu=24)
SERVER = OllamaStatus("http://127.0.0.1:11434", "0.34.4", "", local=True)
HERE = replace(LLAMA_8B, source="/models/model")
"""A model in a folder, so that nothing is downloaded."""


def plan(
    box: Machine = CPU, model: ModelSpec = TINY, data: Lengths = SHORT, changed: dict[str, Any] | None = None
) -> Plan:
    return make_plan(box, model, data, changed or {})


def test_where_all_is_well_nothing_is_said() -> None:
    assert plan().warnings == ()
    assert plan(replace(CPU, ollama=SERVER)).warnings == ()


def test_a_full_disk_is_said() -> None:
    warnings = plan(machine(gpu=24, disk=1), LLAMA_8B, CHAT).warnings
    assert any("make room" in warning for warning in warnings)


def test_few_rows_are_said() -> None:
    assert any("12 rows are very few" in warning for warning in plan(data=lengths(12)).warnings)


def test_gpu_memory_that_ollama_holds_is_named_with_how_to_free_it() -> None:
    loaded = (OllamaModel("qwen3:8b", 6 << 30, 5 << 30), OllamaModel("small:1b", 1 << 30, 0))
    local = OllamaStatus("http://127.0.0.1:11434", "0.34.4", "", local=True, loaded=loaded)
    expected = "Ollama holds 5.0 GiB of GPU memory; `ollama stop qwen3:8b` frees it."
    assert [w for w in plan(replace(GPU, ollama=local)).warnings if "Ollama" in w] == [expected]
    assert plan(replace(CPU, ollama=local)).warnings == ()
    assert plan(replace(GPU, ollama=replace(local, local=False))).warnings == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dora": True}, "no dora for the experts"),
        ({"dropout": 0.1}, "no dropout for the experts"),
        ({"path": "fast"}, "does not compute Qwen3MoeForCausalLM"),
        ({"gradient_checkpointing": "offload"}, "saves no more than layers"),
    ],
)
def test_what_the_training_code_refuses_is_told_before(values: dict[str, Any], words: str) -> None:
    experts = replace(TINY, architecture="Qwen3MoeForCausalLM", model_type="qwen3_moe")
    changed = {f"training.{name}": value for name, value in values.items()}
    assert any(words in warning for warning in plan(model=experts, changed=changed).warnings)
    named = changed | {"training.targets": ["q_proj"]}
    left = [warning for warning in plan(model=experts, changed=named).warnings if "experts" in warning]
    assert left == []
    assert not any(
        "does not compute" in warning for warning in plan(changed={"training.path": "fast"}).warnings
    )


# disks: what is written is added up for each file system


def disk(name: str, free: float, device: int) -> Disk:
    return Disk(name, int(free * GIB), 500 * GIB, device)


def on_disk(warnings: tuple[str, ...]) -> list[str]:
    return [warning for warning in warnings if "disk" in warning]


def test_a_download_and_a_run_on_one_disk_are_added_up() -> None:
    box = replace(GPU, disk=disk("/runs", 20, 1), models_disk=disk("/models", 20, 1))
    (warning,) = on_disk(plan(box, LLAMA_8B, CHAT).warnings)
    assert "15.0 GiB for the download" in warning and "for the run" in warning
    assert on_disk(plan(replace(box, models_disk=disk("/models", 20, 2)), LLAMA_8B, CHAT).warnings) == []


def test_the_disk_that_is_too_small_is_named() -> None:
    box = replace(GPU, disk=disk("/runs", 80, 1), models_disk=disk("/models", 9, 2))
    (warning,) = on_disk(plan(box, LLAMA_8B, CHAT).warnings)
    assert "/models" in warning and "/runs" not in warning and "9.0 GiB free" in warning


def test_ollamas_copies_count_on_its_own_disk() -> None:
    older = replace(SERVER, version="0.34.0")
    box = replace(GPU, ollama=older, disk=disk("/runs", 40, 1), ollama_disk=disk("/usr/share/ollama", 10, 2))
    (warning,) = on_disk(plan(box, HERE, CHAT).warnings)
    assert "/usr/share/ollama" in warning and "Ollama's copy" in warning
    assert on_disk(plan(replace(box, ollama=SERVER), HERE, CHAT).warnings) == [], "newer ones make one copy"
    shared = replace(box, disk=disk("/runs", 20, 2), ollama_disk=disk("/usr/share/ollama", 20, 2))
    (warning,) = on_disk(plan(shared, HERE, CHAT).warnings)
    assert "for the run and" in warning


def test_a_model_that_is_here_is_not_downloaded() -> None:
    assert plan(GPU, HERE).work.download_bytes == 0
    assert plan(GPU, LLAMA_8B).work.download_bytes == LLAMA_8B.weight_bytes


def test_a_disk_that_is_not_known_is_no_obstacle() -> None:
    assert on_disk(plan(replace(GPU, disk=Disk("", 0, 0)), LLAMA_8B, CHAT).warnings) == []


# Ollama: version and name


@pytest.mark.parametrize(
    "version", ["0.1.0", "0.5.4", "0.5.5", "0.11.5", "0.30.0-rc2", "0.34.4", "0.0.0", "v0.5.4", "odd", "1.2"]
)
def test_the_versions_that_are_too_old_are_those_that_the_export_refuses(version: str) -> None:
    status = replace(SERVER, version=version)
    assert too_old(status) == (not generation(version.removeprefix("v")).usable)
    told = any("update it" in warning for warning in plan(replace(CPU, ollama=status)).warnings)
    assert told == too_old(status)
    unsent = plan(replace(CPU, ollama=status), changed={"export.push": False}).warnings
    assert not any("update it" in warning for warning in unsent)


def test_no_server_is_not_an_old_one() -> None:
    assert not too_old(replace(SERVER, version=None))


@pytest.mark.parametrize("name", ["me/mine:cloud", "mine:120b-cloud", "mine:local"])
def test_tags_that_ollama_keeps_for_its_cloud_are_told(name: str) -> None:
    assert any("in its cloud" in warning for warning in plan(changed={"export.name": name}).warnings)
    assert plan(changed={"export.name": "mine:cloudy"}).warnings == ()


# the context that llama.cpp computes as training does


def with_config(folder: Path, **more: Any) -> ModelSpec:
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 2048,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32_768,
        "sliding_window": None,
    }
    (folder / "config.json").write_text(json.dumps(config | more))
    return replace(TINY, folder=folder, context_length=32_768, architecture=config["architectures"][0])


LONG = lengths(400, 300, 100, 900, percentile_95=500, percentile_99=600)


def test_rows_beyond_a_window_that_llama_cpp_does_not_know_are_told(tmp_path: Path) -> None:
    windowed = with_config(tmp_path, sliding_window=512)
    (warning,) = [w for w in plan(model=windowed, data=LONG).warnings if "window" in w]
    assert "512 tokens" in warning and "900 tokens" in warning
    assert not any("window" in w for w in plan(model=windowed, data=SHORT).warnings)
    cut = plan(model=windowed, data=LONG, changed={"training.sequence_length": 512})
    assert not any("window" in w for w in cut.warnings), "no longer row is learned from"
    whole = with_config(tmp_path, sliding_window=None)
    assert not any("window" in w for w in plan(model=whole, data=LONG).warnings)


def test_rows_beyond_the_length_up_to_which_longrope_is_even_are_told(tmp_path: Path) -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    phi = with_config(
        tmp_path,
        architectures=["Phi3ForCausalLM"],
        model_type="phi3",
        original_max_position_embeddings=512,
        rope_scaling=scaling,
    )
    (warning,) = [w for w in plan(model=phi, data=LONG).warnings if "short texts" in w]
    assert "512 tokens" in warning and "900 tokens" in warning
    assert not any("short texts" in w for w in plan(model=phi, data=SHORT).warnings)


def test_without_an_export_its_context_does_not_matter(tmp_path: Path) -> None:
    windowed = with_config(tmp_path, sliding_window=512)
    made = plan(model=windowed, data=LONG, changed={"export.name": None})
    assert not any("window" in w for w in made.warnings)
