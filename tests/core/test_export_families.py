from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.models.architectures import ARCHITECTURES, read_config
from tests.core.export_parts import (
    FAMILIES,
    LLAMA3_ROPE,
    PROMPT,
    build_adapter,
    build_family,
    load,
    log_probabilities,
)

LIMIT = 1e-4
GEMMA_LIMIT = 5e-3
"""ggml looks GELU up in a table of 16-bit numbers."""
FAULT = 0.05
LENGTHS = (1, 9, 40, 105)
CONTEXT = 256
ANSWER = 16
PLAIN_TOKEN = 70
TEXT = PROMPT * 5
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
PADDED = {"vocab_size": 400}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.9],
    "long_factor": [1.0, 1.4, 2.0, 3.0, 5.0, 8.0],
    "partial_rotary_factor": 0.75,
}
BASES = {
    "full_attention": {"rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
# What a family's model differs in from its usual one in FAMILIES.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES},
    "Llama, llama3 rope, wide heads, biases, tied": (
        "Llama",
        {"rope_parameters": LLAMA3_ROPE, "head_dim": 32, "attention_bias": True, "mlp_bias": True, **TIED},
    ),
    "Mistral, wide heads, yarn with its own factor": (
        "Mistral",
        {"head_dim": 32, "rope_parameters": {**YARN, "attention_factor": 1.4}},
    ),
    "Mistral, window beyond the text": ("Mistral", {"sliding_window": 128}),
    "Llama, yarn with mscale": ("Llama", {"rope_parameters": {**YARN, "mscale": 1.5, "mscale_all_dim": 0.5}}),
    "Qwen2, untied, padded, yarn": ("Qwen2", {**UNTIED, **PADDED, "rope_parameters": YARN}),
    "Qwen3, untied, padded, linear rope": (
        "Qwen3",
        {**UNTIED, **PADDED, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    ),
    "Gemma, wide heads, every head its own key": ("Gemma", {"head_dim": 32, "num_key_value_heads": 4}),
    "Gemma2 of 46 layers": (
        "Gemma2",
        {
            "num_hidden_layers": 46,
            "hidden_size": 32,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3, two bases, linear rope, softcap, wide heads": (
        "Gemma3",
        {
            "final_logit_softcapping": 5.0,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                **BASES,
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
            },
        },
    ),
    "Phi3, short factors": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": CONTEXT},
    ),
    "Phi3, partial rope, tied, every head its own key": (
        "Phi3",
        {"rope_parameters": {"partial_rotary_factor": 0.5}, "num_key_value_heads": 4, **TIED},
    ),
    "SmolLM3, untied, yarn": ("SmolLM3", {**UNTIED, "rope_parameters": YARN}),
    "Granite, llama3 rope, biases, wide heads, tied": (
        "Granite",
        {"rope_parameters": LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True, "head_dim": 32, **TIED},
    ),
    "Olmo2, tied, linear rope": (
        "Olmo2",
        {**TIED, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    ),
    "Qwen3Moe, tied, wide heads, three of five": (
        "Qwen3Moe",
        {**TIED, "head_dim": 32, "num_local_experts": 5, "num_experts_per_tok": 3},
    ),
    "Mixtral, tied, one of three": ("Mixtral", {**TIED, "num_local_experts": 3, "num_experts_per_tok": 1}),
}


@dataclass(frozen=True)
class Case:
    """A tiny model and its truth: log-probabilities after each length of TEXT, and a greedy answer."""

    family: str
    base: Path
    expected: dict[int, list[float]]
    answer: tuple[int, ...]

    @property
    def limit(self) -> float:
        return GEMMA_LIMIT if self.family.startswith("Gemma") else LIMIT

    def difference(self, llama: LlamaServer, length: int) -> float:
        found = llama.top(TEXT[:length], 1000, PLAIN_TOKEN)
        expected = self.expected[length]
        assert len(found) == len(expected)
        return max(abs(found[i] - value) for i, value in enumerate(expected))


def build(folder: Path, family: str, lengths: tuple[int, ...] = LENGTHS, **changes: Any) -> Case:
    base = build_family(folder, family, **changes)
    model = load(base)
    expected = {length: log_probabilities(model, TEXT[:length]) for length in lengths}
    ids = torch.tensor([list(TEXT[:40])])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=ANSWER)
    return Case(family, base, expected, tuple(answer[0, 40:].tolist()))


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, changes = VARIANTS[request.param]
    return build(tmp_path_factory.mktemp("family"), family, **changes)


def test_llama_cpp_computes_what_transformers_computes(case: Case, tmp_path: Path) -> None:
    exported = export_gguf(case.base, None, tmp_path / "model.gguf", "f32")
    with LlamaServer(exported.path, CONTEXT) as llama:
        assert max(case.difference(llama, length) for length in LENGTHS) < case.limit
        assert llama.complete(TEXT[:40], ANSWER).ids == case.answer


# What is wrong -> a family and how its row is changed.
FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{name}, rows of q and k in the wrong order": (
            name,
            {"permuted": () if ARCHITECTURES[f"{name}ForCausalLM"].permuted else ("q_proj", "k_proj")},
        )
        for name in FAMILIES
        if name != "Phi3"
    },
    **{f"{name}, norms less one": (name, {"norm_shift": 0.0}) for name in ("Gemma", "Gemma2", "Gemma3")},
    **{
        f"{name}, no {key}": (name, {"keys": {k: v for k, v in keys.items() if k != key}})
        for name in ("Gemma2", "Gemma3", "Granite")
        for keys in [ARCHITECTURES[f"{name}ForCausalLM"].keys]
        for key in keys
        if key != "logit_scale"  # llama.cpp does not load a Granite without it
    },
}


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tests' model of a family, built once; Gemma 3 with a softcap, which its real models lack."""
    cases: dict[str, Case] = {}

    def get(family: str) -> Case:
        if family not in cases:
            changes = {"final_logit_softcapping": 4.0} if family == "Gemma3" else {}
            cases[family] = build(tmp_path_factory.mktemp("family"), family, LENGTHS[-1:], **changes)
        return cases[family]

    return get


@pytest.mark.parametrize("name", FAULTS)
def test_every_fact_of_a_row_matters(
    sensitive: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the comparison above would pass with a wrong row."""
    family, changes = FAULTS[name]
    case, row = sensitive(family), f"{family}ForCausalLM"
    monkeypatch.setitem(
        ARCHITECTURES,  # type: ignore[arg-type]
        row,
        replace(ARCHITECTURES[row], **changes),
    )
    exported = export_gguf(case.base, None, tmp_path / "model.gguf", "f32")
    with LlamaServer(exported.path, CONTEXT) as llama:
        assert case.difference(llama, LENGTHS[-1]) > FAULT


@pytest.mark.parametrize("family", ["Qwen3Moe", "Mixtral"])
def test_fused_experts_are_the_same_file(tmp_path: Path, family: str) -> None:
    """transformers 5 writes single experts unless it is asked for its own layout."""
    base = build_family(tmp_path / "base", family)
    fused = Path(shutil.copytree(base, tmp_path / "fused"))
    load(base).to(torch.bfloat16).save_pretrained(fused, save_original_format=False)
    with safe_open(fused / "model.safetensors", "pt") as stored:
        assert "model.layers.0.mlp.experts.gate_up_proj" in stored.keys()  # noqa: SIM118
    tensors = [
        {tensor.name: (tensor.shape.tolist(), tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}
        for path in (
            export_gguf(folder, None, tmp_path / f"{folder.name}.gguf", "f32").path
            for folder in (base, fused)
        )
    ]
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize("family", ["Gemma", "Gemma2"])
def test_an_output_layer_that_llama_cpp_would_not_take_is_refused(tmp_path: Path, family: str) -> None:
    base = build_family(tmp_path / "base", family)
    head = build_adapter(base, tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(TuneError, match="output layer of its own"):
        export_gguf(base, head, tmp_path / "model.gguf", "f16")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(TuneError, match="output layer of its own"):
        export_gguf(base, None, tmp_path / "model.gguf", "f16")
    assert not list(tmp_path.glob("*.gguf"))


SHORT, LONG = 40, 105
WINDOW = {"sliding_window": 64}
LIMITED: dict[str, tuple[str, dict[str, Any]]] = {
    "Mistral's window": ("Mistral", WINDOW),
    "Phi3's window": ("Phi3", WINDOW),
    "Qwen2's window": ("Qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "Mixtral's window": ("Mixtral", WINDOW),
}


@pytest.mark.parametrize("name", LIMITED)
def test_a_window_that_llama_cpp_ignores_matters_only_beyond_it(tmp_path: Path, name: str) -> None:
    family, changes = LIMITED[name]
    case = build(tmp_path / "base", family, (SHORT, LONG), **changes)
    assert read_config(case.base).window == 64
    exported = export_gguf(case.base, None, tmp_path / "model.gguf", "f32")
    with LlamaServer(exported.path, CONTEXT) as llama:
        assert case.difference(llama, SHORT) < LIMIT
        assert case.difference(llama, LONG) > FAULT


@pytest.mark.parametrize("original", [64, CONTEXT])
def test_llama_cpp_chooses_the_factors_of_longrope_by_its_context(tmp_path: Path, original: int) -> None:
    """transformers chooses by the text; up to `even_context` both take the short ones."""
    changes = {"rope_parameters": LONGROPE, "original_max_position_embeddings": original}
    case = build(tmp_path / "base", "Phi3", (SHORT, LONG), **changes)
    assert read_config(case.base).even_context == original
    exported = export_gguf(case.base, None, tmp_path / "model.gguf", "f32")
    with LlamaServer(exported.path, CONTEXT) as llama:
        assert case.difference(llama, LONG) < LIMIT
        assert (case.difference(llama, SHORT) < LIMIT) == (original == CONTEXT)


def test_llama_cpp_says_which_key_of_a_family_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no default for Granite's `logit_scale`, and its reason reaches the caller."""
    base = build_family(tmp_path / "base", "Granite")
    row = ARCHITECTURES["GraniteForCausalLM"]
    keys = {key: value for key, value in row.keys.items() if key != "logit_scale"}
    monkeypatch.setitem(
        ARCHITECTURES,  # type: ignore[arg-type]
        "GraniteForCausalLM",
        replace(row, keys=keys),
    )
    exported = export_gguf(base, None, tmp_path / "model.gguf", "f32")
    with pytest.raises(TuneError, match="cannot load") as caught:
        LlamaServer(exported.path, CONTEXT)
    assert "logit_scale" in caught.value.details
