"""Writes a LoRA adapter as a GGUF of its own, which llama.cpp adds to the base as it computes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter import EMBEDDING, Adapter, canonical
from ollama_tune.core.export.merge import MergedRows, in_order_of_gguf, open_merged
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.tensors import TensorPlan, plan_tensors
from ollama_tune.core.export.values import Progress, Stopped
from ollama_tune.core.files import atomic_file
from ollama_tune.core.models.architectures import read_config

if TYPE_CHECKING:
    import torch

_Format = np.dtype[Any]
_FORMATS: Mapping[str, _Format] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
_MERGED_ONLY = "Export the merged model instead; it holds everything."
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


@dataclass(frozen=True)
class _Side:
    """A or B of one tensor; `shape` is (rank, in) or (out, rank), of experts with their number first."""

    plan: TensorPlan
    side: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.plan.name}.lora_{self.side}"

    def size(self, item: _Format) -> int:
        return math.prod(self.shape) * item.itemsize


def write_adapter_gguf(
    base: Path,
    adapter: Path,
    output: Path,
    progress: Progress | None = None,
    stopped: Stopped | None = None,
    *,
    type: str = "f32",
) -> Path:
    """Write a LoRA adapter as a GGUF for llama.cpp (and Ollama 0.30 to 0.34.0), `type` f32 or f16.

    `output` appears when it is complete. Raises `TuneError` by name for what that format cannot hold: DoRA,
    whole saved modules, retrained tokens, an embedding, a head that the base shares with its embedding.
    """
    config, item = read_config(base), _FORMATS[type]
    with open_merged(base, adapter) as rows:
        assert rows.adapter is not None
        _refuse(rows.adapter, rows)
        plans = plan_tensors(config, rows.shapes, rows.adapted_modules)
        rows.check(plans)
        sides = [side for plan in plans if rows.adapted(plan) for side in _sides(plan, rows)]
        meter = Meter(sum(side.size(item) for side in sides), progress, stopped)
        alpha = rows.adapter.config.alpha or 1.0
        with atomic_file(output) as file:
            _write_header(file, config.architecture.name, output.stem, alpha, sides, item)
            for side in sides:
                data = _values(side, rows, alpha).numpy().astype(item)
                file.write(data.tobytes())
                file.write(bytes(-data.nbytes % _ALIGNMENT))
                meter.step(data.nbytes)
    return output


def _refuse(adapter: Adapter, rows: MergedRows) -> None:
    """llama.cpp knows nothing but A and B of weights that are in the base's file."""
    config = adapter.config
    found = {
        "weight-decomposed LoRA (use_dora)": config.magnitudes,
        "whole modules (modules_to_save, or a resized vocabulary)": bool(adapter.whole),
        "retrained tokens (trainable_token_indices)": bool(config.tokens),
        "biases (lora_bias)": any(pair.bias is not None for pair in rows.pairs.values()),
        "LoRA on the token embedding": EMBEDDING in rows.pairs,
        "LoRA on a head that the base shares with its embedding": rows.head_parted,
    }
    named = next((what for what, holds in found.items() if holds), None)
    if named is not None:
        raise TuneError(f"The adapter holds {named}, which an adapter GGUF cannot.", _MERGED_ONLY)


def _sides(plan: TensorPlan, rows: MergedRows) -> Iterator[_Side]:
    pairs = [rows.pairs.get(canonical(module)) for module in plan.modules]
    ranks = {pair.rank if pair else 0 for pair in pairs}
    if len(ranks) > 1:
        raise TuneError(
            f"The experts of {plan.name} have different ranks, which an adapter GGUF cannot hold.",
            _MERGED_ONLY,
        )
    rank, stack = ranks.pop(), plan.shape[:-2]
    yield _Side(plan, "a", (*stack, rank, plan.columns))
    yield _Side(plan, "b", (*stack, plan.shape[-2], rank))


def _values(side: _Side, rows: MergedRows, alpha: float) -> torch.Tensor:
    """A as it is; B with whatever parts its scale from llama.cpp's alpha / rank, its rows as in the GGUF."""
    import torch

    plan, adapter = side.plan, rows.adapter
    assert adapter is not None
    factors = [adapter.factors(rows.pairs[canonical(module)]) for module in plan.modules]
    if side.side == "a":
        return torch.stack([right for _, right in factors]).reshape(side.shape)
    rank = side.shape[-1]
    left = torch.cat([left for left, _ in factors]) * (rank / alpha)
    return in_order_of_gguf(plan, 0, plan.rows, lambda start, stop: left[start:stop]).reshape(side.shape)


def _write_header(
    file: BinaryIO,
    architecture: str,
    name: str,
    alpha: float,
    sides: list[_Side],
    item: _Format,
) -> None:
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("general.name", name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for side in sides:
        writer.add_tensor_info(side.name, side.shape, item, side.size(item))
    writer.fout, writer.state = [file], WriterState.EMPTY  # the writer would open a path by itself
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file.write(bytes(-file.tell() % _ALIGNMENT))
