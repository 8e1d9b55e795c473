"""The frozen base weights of the fast path: from safetensors files straight to where they are used.

What one product computes lies in one tensor: the rows of the query, key and value projections one after the
other (`layers.0.qkv`), those of gate and up likewise (`layers.0.gate_up`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.weights import Tensor as Stored
from ollama_tune.core.models.weights import read_tensors, weight_names

if TYPE_CHECKING:
    from ollama_tune.core.models.blueprint import Blueprint

Progress = Callable[[int, int], None]
"""Gets the bytes of the files read so far and in all."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Quantized:
    """A weight in NF4 with double quantization, rows x columns, as bitsandbytes holds it.

    Projections that are computed together stay pieces of their own, because blocks of 64 numbers are counted
    from the start of each: so the bits are those that transformers gives.
    """

    pieces: tuple[tuple[torch.Tensor, Any], ...]
    shape: tuple[int, int]
    dtype: torch.dtype

    def dequantized(self) -> torch.Tensor:
        """The weight in the compute dtype, in one new buffer."""
        from bitsandbytes.functional import dequantize_4bit

        if len(self.pieces) == 1:
            single: torch.Tensor = dequantize_4bit(*self.pieces[0])
            return single
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.pieces[0][0].device)
        for part, (data, state) in zip(torch.split(whole, self.heights), self.pieces, strict=True):
            if part.is_cuda:
                dequantize_4bit(data, state, out=part)
            else:
                part.copy_(dequantize_4bit(data, state))
        return whole

    @property
    def heights(self) -> list[int]:
        """Rows of each piece."""
        return [int(state.shape[0]) for _, state in self.pieces]

    @property
    def nbytes(self) -> int:
        """What it takes on the device: half a byte a number, and the blocks' scales."""
        return sum(
            data.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes for data, state in self.pieces
        )


Weight = torch.Tensor | Quantized


class BaseWeights:
    """The weights of a model by the fast path's names; none of them is ever changed.

    Linear layers: `layers.N.` and `qkv`, `o`, `gate_up` or `down`. Vectors go by their name in the file
    without `model.` and `.weight` (`layers.0.input_layernorm`, `layers.0.self_attn.q_norm`, `norm`), biases
    by that of their linear layer (`layers.0.qkv.bias`). A tied `head` is the embedding itself.
    """

    def __init__(
        self,
        linears: Mapping[str, Weight],
        vectors: Mapping[str, torch.Tensor],
        embedding: torch.Tensor,
        head: torch.Tensor,
    ) -> None:
        self._linears = dict(linears)
        self._vectors = dict(vectors)
        self.embedding = embedding
        self.head = head

    def linear(self, name: str) -> Weight:
        """A linear layer's weight, output x input."""
        return self._linears[name]

    def vector(self, name: str) -> torch.Tensor | None:
        """A norm's weight or a bias; None where the model has none of that name."""
        return self._vectors.get(name)

    @property
    def nbytes(self) -> int:
        """What the weights take; a tied head counts once."""
        ends = [self.embedding] if self.head is self.embedding else [self.embedding, self.head]
        return sum(tensor.nbytes for tensor in (*self._linears.values(), *self._vectors.values(), *ends))


def load_weights(
    folder: Path,
    blueprint: Blueprint,
    *,
    device: str,
    dtype: torch.dtype,
    quantization: str = "none",
    progress: Progress | None = None,
) -> BaseWeights:
    """Read a model folder's weights, one tensor at a time, into the device's memory in the compute dtype.

    On the CPU a weight that is stored in that dtype and stands alone is used where the file is mapped,
    without a copy. With `quantization` "nf4" every linear layer but the head is quantized as soon as it is
    read. Raises `TuneError` for files that are damaged or do not hold what the blueprint needs.
    """
    stored = read_tensors(folder)
    _check(folder, blueprint, stored)
    with contextlib.ExitStack() as stack:
        reader = _Reader(folder, stored, stack, device, dtype, progress)
        try:
            return _load(reader, blueprint, quantization == "nf4")
        except (OSError, SafetensorError) as error:
            raise _unusable(folder, type(error).__name__, str(error)) from error


def _load(reader: _Reader, blueprint: Blueprint, quantize: bool) -> BaseWeights:
    linears: dict[str, Weight] = {}
    vectors: dict[str, torch.Tensor] = {}
    for layer in range(blueprint.layers):
        for group, parts in blueprint.groups.items():
            name, stems = f"layers.{layer}.{group}", [f"model.layers.{layer}.{p.name}" for p in parts]
            weights = [f"{stem}.weight" for stem in stems]
            linears[name] = reader.quantized(weights) if quantize else reader.joined(weights)
            if parts[0].bias:
                vectors[f"{name}.bias"] = reader.joined([f"{stem}.bias" for stem in stems])
    for name in blueprint.norms():
        vectors[name] = reader.read(f"model.{name}.weight")
    embedding, head = _ends(reader, blueprint.tied)
    return BaseWeights(linears, vectors, embedding, head)


def _ends(reader: _Reader, tied: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding and head. Of a tied pair the file may hold either; two that differ are no pair."""
    names = [name for name in (EMBEDDING, HEAD) if name in reader.stored]
    found = [reader.read(name) for name in names]
    if tied and (len(found) == 1 or torch.equal(found[0], found[1])):
        return found[0], found[0]
    return found[0], found[1]


class _Reader:
    """Tensors of safetensors files by name, on the device and in the compute dtype."""

    def __init__(
        self,
        folder: Path,
        stored: Mapping[str, Stored],
        stack: contextlib.ExitStack,
        device: str,
        dtype: torch.dtype,
        progress: Progress | None,
    ) -> None:
        self.stored = stored
        self._device, self._dtype = torch.device(device), dtype
        self._progress = progress
        self._done, self._total = 0, sum(tensor.bytes for tensor in stored.values())
        files = [stack.enter_context(safe_open(folder / name, "pt")) for name in weight_names(folder)]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def read(self, name: str) -> torch.Tensor:
        """One tensor; on the CPU in its own dtype it is a piece of the mapped file."""
        tensor: torch.Tensor = self._mapped(name).to(self._device, self._dtype)
        self._tell(name)
        return tensor

    def joined(self, names: Sequence[str]) -> torch.Tensor:
        """Tensors one after the other in one buffer, each copied straight to its place.

        Matrices lie column by column on the CPU: products of many tokens with them take a quarter less time.
        """
        if len(names) == 1:
            return self.read(names[0])
        heights = [self.stored[name].shape[0] for name in names]
        shape = (sum(heights), *self.stored[names[0]].shape[1:])
        by_column = self._device.type == "cpu" and len(shape) == 2
        whole = torch.empty(shape[::-1] if by_column else shape, dtype=self._dtype, device=self._device)
        whole = whole.t() if by_column else whole
        for part, name in zip(torch.split(whole, heights), names, strict=True):
            part.copy_(self._mapped(name))
            self._tell(name)
        return whole

    def quantized(self, names: Sequence[str]) -> Quantized:
        """Weights in NF4; of each, the compute dtype is held only while it is quantized."""
        from bitsandbytes.functional import quantize_4bit

        pieces = []
        for name in names:
            weight = self.read(name).contiguous()
            pieces.append(quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4"))
        rows = sum(self.stored[name].shape[0] for name in names)
        return Quantized(tuple(pieces), (rows, self.stored[names[0]].shape[1]), self._dtype)

    def _mapped(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def _tell(self, name: str) -> None:
        self._done += self.stored[name].bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _check(folder: Path, blueprint: Blueprint, stored: Mapping[str, Stored]) -> None:
    """Refuse weights that are absent, of another shape or no floats: nothing is ever left random."""
    wrong = sorted(name for name, shape in _expected(blueprint, stored) if not _fits(stored.get(name), shape))
    if wrong:
        raise _unusable(folder, f"{len(wrong)} weights such as {wrong[0]} do not fit its config.json", "")


def _fits(tensor: Stored | None, shape: tuple[int, ...]) -> bool:
    return tensor is not None and tensor.shape == shape and tensor.dtype in _FLOATS


def _expected(blueprint: Blueprint, stored: Mapping[str, Stored]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every weight that must be there."""
    for layer in range(blueprint.layers):
        for parts in blueprint.groups.values():
            for part in parts:
                stem = f"model.layers.{layer}.{part.name}"
                yield f"{stem}.weight", (part.rows, part.columns)
                if part.bias:
                    yield f"{stem}.bias", (part.rows,)
    for name, width in blueprint.norms().items():
        yield f"model.{name}.weight", (width,)
    ends = [EMBEDDING, HEAD]
    if blueprint.tied:
        ends = [name for name in ends if name in stored] or ends[:1]
    for name in ends:
        yield name, (blueprint.vocabulary, blueprint.hidden)


def _unusable(folder: Path, why: str, details: str) -> TuneError:
    return TuneError(
        f"The model in {folder} cannot be loaded: {why}.",
        "Download it again or choose another model.",
        details=details[:2000],
    )
