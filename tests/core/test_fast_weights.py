"""The fast path's weights against what transformers loads from the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.blueprint import Blueprint, read_blueprint
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.fast.weights import BaseWeights, Quantized, load_weights
from ollama_tune.core.train.model import load_base
from tests.core.export_parts import FAMILIES, build_family

DENSE = [name for name in FAMILIES if name not in ("Qwen3Moe", "Mixtral")]
BIASES = {"Llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model of each family, built once."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = build_family(folder, family, shard="60KB", **BIASES.get(family, {}))
        return made[family]

    return get


def blueprint(folder: Path) -> Blueprint:
    return read_blueprint(read_json(folder / "config.json"))


def load(folder: Path, **options: Any) -> BaseWeights:
    return load_weights(folder, blueprint(folder), **{"device": "cpu", "dtype": torch.bfloat16} | options)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_is_the_one_that_transformers_loads(folders: Any, family: str, dtype: Any) -> None:
    folder = folders(family)
    assert len(list(folder.glob("*.safetensors"))) > 1
    state = dict(load_base(folder, TrainingSettings(compute_dtype=dtype)).named_parameters())
    weights, plan = load(folder, dtype=getattr(torch, dtype)), blueprint(folder)
    assert weights.nbytes == sum(weight.nbytes for weight in state.values())
    for layer in range(plan.layers):
        for group, parts in plan.groups.items():
            stems = [f"model.layers.{layer}.{part.name}" for part in parts]
            name = f"layers.{layer}.{group}"
            found = weights.linear(name)
            assert isinstance(found, torch.Tensor)
            assert equal(found, torch.cat([state.pop(f"{stem}.weight") for stem in stems]))
            if parts[0].bias:
                bias = weights.vector(f"{name}.bias")
                assert bias is not None
                assert equal(bias, torch.cat([state.pop(f"{stem}.bias") for stem in stems]))
            else:
                assert weights.vector(f"{name}.bias") is None
    assert equal(weights.embedding, state.pop("model.embed_tokens.weight"))
    assert (weights.head is weights.embedding) == ("lm_head.weight" not in state)
    assert equal(weights.head, state.pop("lm_head.weight", weights.embedding))
    for name, weight in state.items():
        norm = weights.vector(name.removeprefix("model.").removesuffix(".weight"))
        assert norm is not None and equal(norm, weight)


@pytest.mark.parametrize("family", ["Llama", "Phi3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nf4_has_the_bits_that_transformers_and_bitsandbytes_give(
    folders: Any, family: str, dtype: Any
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    folder = folders(family)
    model = load_base(folder, TrainingSettings(compute_dtype=dtype, quantization="nf4"))
    state = dict(model.named_parameters())
    weights, plan = load(folder, dtype=getattr(torch, dtype), quantization="nf4"), blueprint(folder)
    for layer in range(plan.layers):
        for group, parts in plan.groups.items():
            found = weights.linear(f"layers.{layer}.{group}")
            theirs = [state[f"model.layers.{layer}.{part.name}.weight"] for part in parts]
            assert isinstance(found, Quantized) and found.shape == (
                sum(part.rows for part in parts),
                parts[0].columns,
            )
            for (data, quantized), weight in zip(found.pieces, theirs, strict=True):
                assert torch.equal(data.flatten(), weight.data.flatten())
                assert torch.equal(quantized.absmax, weight.quant_state.absmax)
            whole = torch.cat([dequantize_4bit(weight.data, weight.quant_state) for weight in theirs])
            assert equal(found.dequantized(), whole)
    plain = load(folder, dtype=getattr(torch, dtype))
    assert weights.nbytes < plain.nbytes
    assert equal(weights.head, plain.head)


def test_a_weight_in_the_dtype_of_its_file_is_used_where_it_is_mapped(folders: Any) -> None:
    folder = folders("Llama")
    before = maps()
    weights = load(folder)
    assert maps() > before
    lone, fused = weights.linear("layers.0.o"), weights.linear("layers.0.qkv")
    ranges = mapped_ranges()
    assert isinstance(lone, torch.Tensor) and isinstance(fused, torch.Tensor)
    assert any(start <= lone.data_ptr() < stop for start, stop in ranges)
    assert not any(start <= fused.data_ptr() < stop for start, stop in ranges)


def mapped_ranges() -> list[tuple[int, int]]:
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "model-0" in line]
    return [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines]  # type: ignore[misc]


def maps() -> int:
    return len(mapped_ranges())


def test_progress_ends_with_all_bytes(folders: Any) -> None:
    told: list[tuple[int, int]] = []
    load(folders("Qwen2"), progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    size = sum(file.stat().st_size for file in folders("Qwen2").glob("*.safetensors"))
    assert told[-1][0] == told[-1][1] <= size


@pytest.fixture
def copied(folders: Any, tmp_path: Path) -> Path:
    """A Llama in one file that a test may damage."""
    tensors: dict[str, torch.Tensor] = {}
    for file in folders("Llama").glob("*.safetensors"):
        tensors |= load_file(file)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders("Llama") / "config.json").read_bytes())
    return tmp_path


def change(folder: Path, tensors: dict[str, torch.Tensor | None], **config: Any) -> None:
    whole: dict[str, Any] = {**load_file(folder / "model.safetensors"), **tensors}
    save_file({k: v.clone() for k, v in whole.items() if v is not None}, folder / "model.safetensors")
    tree = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.1.mlp.up_proj.weight", None),
        ("model.layers.0.self_attn.q_proj.bias", None),
        ("model.norm.weight", torch.ones(63)),
        ("model.layers.2.self_attn.o_proj.weight", torch.ones(64, 64, dtype=torch.int8)),
        ("lm_head.weight", None),
    ],
)
def test_weights_that_are_missing_or_wrong_are_refused(
    copied: Path, name: str, tensor: torch.Tensor | None
) -> None:
    change(copied, {name: tensor})
    with pytest.raises(TuneError, match=name.replace(".", r"\.")):
        load(copied)


def test_a_cut_file_is_refused(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TuneError, match="damaged or not complete"):
        load(copied)


def test_a_tied_head_is_shared_unless_the_file_holds_another(copied: Path) -> None:
    embedding = load_file(copied / "model.safetensors")["model.embed_tokens.weight"]
    change(copied, {"lm_head.weight": embedding}, tie_word_embeddings=True)
    weights = load(copied)
    assert weights.head is weights.embedding
    change(copied, {"model.embed_tokens.weight": None, "lm_head.weight": embedding})
    weights = load(copied)
    assert weights.head is weights.embedding and torch.equal(weights.head, embedding)
    change(copied, {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding + 1})
    weights = load(copied)
    assert torch.equal(weights.head, embedding + 1) and torch.equal(weights.embedding, embedding)
