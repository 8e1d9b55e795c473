"""Which format each tensor of a file gets: llama.cpp's rules, so that a size and a quality are known ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import gguf

from ollama_tune.core.export.quantize import TYPES, TensorType
from ollama_tune.core.export.tensors import TensorPlan
from ollama_tune.core.models.architectures import Config


@dataclass(frozen=True)
class FileType:
    """A type as users choose it: the format of most tensors, and what `general.file_type` says."""

    name: str
    base: str
    number: gguf.LlamaFileType

    @property
    def mixed(self) -> bool:
        """True where sensitive tensors get a finer format, and ggml's quantizer makes them."""
        return TYPES[self.base].encode is None


_F = gguf.LlamaFileType
FILE_TYPES: Mapping[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("f32", "f32", _F.ALL_F32),
        FileType("f16", "f16", _F.MOSTLY_F16),
        FileType("bf16", "bf16", _F.MOSTLY_BF16),
        FileType("q8_0", "q8_0", _F.MOSTLY_Q8_0),
        FileType("q6_k", "q6_k", _F.MOSTLY_Q6_K),
        FileType("q5_k_m", "q5_k", _F.MOSTLY_Q5_K_M),
        FileType("q4_k_m", "q4_k", _F.MOSTLY_Q4_K_M),
        FileType("q4_k_s", "q4_k", _F.MOSTLY_Q4_K_S),
        FileType("q4_0", "q4_0", _F.MOSTLY_Q4_0),
    )
}

# Where a row fills no blocks of a format, the one with smaller blocks; f16 where that does not help.
_SMALLER_BLOCKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_KEPT = re.compile(r"_norm\.weight$|ffn_gate_inp")
_LAYER = re.compile(r"blk\.(\d+)\.")
_VALUES = re.compile(r"attn_(v|qkv|kv_b)\.weight$")
_EXPERTS = 8
"""Mixtral's number of experts: its attention is so small a share that llama.cpp makes it finer."""


@dataclass(frozen=True)
class _Model:
    """What the rules ask about a model; `values` are its value projections in the order of the layers."""

    layers: int
    experts: int
    tied: bool
    large: bool
    values: Sequence[str]
    importance: bool


def choose_types(
    plans: Iterable[TensorPlan], config: Config, file_type: str, has_importance: bool = False
) -> dict[str, TensorType]:
    """Tensor name -> format, as `llama-quantize` chooses it (`src/llama-quant.cpp` of build 11434).

    Norms, other vectors and the routers of experts stay float32. With an importance matrix llama.cpp raises
    the first down projections of q4_0.
    """
    plans, file = list(plans), FILE_TYPES[file_type]
    model = _model(plans, config, has_importance)
    return {plan.name: _choose(plan, file, model) for plan in plans}


def file_bytes(
    plans: Iterable[TensorPlan], config: Config, file_type: str, has_importance: bool = False
) -> int:
    """Bytes of all tensors in a file of that type, each padded as in a GGUF, without the header."""
    plans = list(plans)
    types = choose_types(plans, config, file_type, has_importance)
    return sum(padded(types[plan.name].size(plan.rows, plan.columns)) for plan in plans)


def padded(size: int) -> int:
    """`size` up to the next place where a tensor may begin."""
    return int(gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT))


def _model(plans: Sequence[TensorPlan], config: Config, importance: bool) -> _Model:
    """llama.cpp's "70B" are the Llamas with 80 layers and shared key-value heads, and every such Qwen 2."""
    name, grouped = config.architecture.name, config.heads != config.key_value_heads
    return _Model(
        layers=config.layers,
        experts=max((plan.shape[0] for plan in plans if len(plan.shape) == 3), default=0),
        tied=all(plan.name != "output.weight" for plan in plans),
        large=config.layers == 80 and (name == "qwen2" or (name == "llama" and grouped)),
        values=sorted((plan.name for plan in plans if _VALUES.search(plan.name)), key=_layer),
        importance=importance,
    )


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _choose(plan: TensorPlan, file: FileType, model: _Model) -> TensorType:
    if len(plan.shape) == 1 or not plan.name.endswith(".weight") or _KEPT.search(plan.name):
        return TYPES["f32"]
    wanted = _wanted(plan.name, file, model) if file.mixed else file.base
    for name in (wanted, _SMALLER_BLOCKS.get(wanted, "f16")):
        if plan.columns % TYPES[name].block == 0:
            return TYPES[name]
    return TYPES["f16"]


def _wanted(name: str, file: FileType, model: _Model) -> str:
    """The format before it is known whether the rows fill its blocks."""
    layer, part = _layer(name), name.split(".", 2)[-1].removesuffix(".weight")
    if name == "output.weight" or (name == "token_embd.weight" and model.tied):
        return "q6_k"
    if _VALUES.search(name):
        return _of_values(model.values.index(name), file, model)
    if part == "attn_k" and model.experts == _EXPERTS:
        return "q8_0"
    if part == "attn_output" and model.experts == _EXPERTS and file.base == "q4_k":
        return "q5_k"
    if part.startswith("ffn_down"):
        return _of_down(layer, file, model)
    return file.base


def _of_values(index: int, file: FileType, model: _Model) -> str:
    kind = file.base
    if file.name in ("q4_k_m", "q5_k_m") and _rich(index, len(model.values)):
        kind = "q6_k"
    elif file.name == "q4_k_s" and index < 4:
        kind = "q5_k"
    if model.large and kind == "q4_k":
        kind = "q5_k"
    return "q8_0" if model.experts == _EXPERTS else kind


def _of_down(layer: int, file: FileType, model: _Model) -> str:
    if file.name in ("q4_k_m", "q5_k_m"):
        return "q6_k" if _rich(layer, model.layers) else file.base
    if layer >= model.layers // 8:
        return file.base
    if file.name == "q4_0" and model.importance:
        return "q4_1"
    return "q5_k" if file.name == "q4_k_s" else file.base


def _rich(index: int, count: int) -> bool:
    """The first and the last eighth and every third between them: the layers that need more bits."""
    eighth = count // 8
    return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2
