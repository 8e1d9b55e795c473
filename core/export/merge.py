"""Rows of the tuned model, a chunk at a time and in 32 bit: the base's, with the adapter's change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter import EMBEDDING, HEAD, Adapter, Pair, canonical
from ollama_tune.core.export.adapter_config import BROKEN_ADAPTER
from ollama_tune.core.export.experts import expert_pairs
from ollama_tune.core.export.tensors import TensorPlan
from ollama_tune.core.export.weights import Weights
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    import torch

_Read = Callable[[str, str, int, int], "torch.Tensor"]
_Shapes = Mapping[str, tuple[int, ...]]
EMBEDDING_WEIGHT, HEAD_WEIGHT = f"{EMBEDDING}.weight", f"{HEAD}.weight"


@contextlib.contextmanager
def open_merged(base: Path, adapter: Path | None) -> Iterator[MergedRows]:
    """The rows of a base model's folder with an adapter's folder on it; the files are closed at the end."""
    with contextlib.ExitStack() as stack:
        weights = Weights.of_model(base)
        stack.callback(weights.close)
        lora = Adapter(adapter) if adapter is not None else None
        if lora is not None:
            stack.callback(lora.close)
        yield MergedRows(weights, lora)


class MergedRows:
    """Rows of the tuned model in the order of the GGUF: base + adapter, permuted where llama.cpp wants it.

    Where the base uses one tensor as embedding and as head (`tied`), an adapter can change one of the two
    and so part them: `shapes` then has an `lm_head.weight` that the base's files lack.
    """

    def __init__(self, base: Weights, adapter: Adapter | None) -> None:
        self._base, self.adapter = base, adapter
        self._own = base.shapes
        self._names = {canonical(name): name for name in self._own}
        self._tied = HEAD_WEIGHT not in self._names
        self._whole = adapter.whole if adapter else {}
        self._replaced = _replacements(adapter, self._tied) if adapter else {}
        named = {name: self._own[own] for name, own in self._names.items()}
        self.pairs = adapter.pairs | expert_pairs(adapter, named) if adapter else {}
        self.head_parted = adapter is not None and self._tied and self._parts_head(adapter)

    def _parts_head(self, adapter: Adapter) -> bool:
        embedding, head = (self._replaced.get(name) for name in (EMBEDDING_WEIGHT, HEAD_WEIGHT))
        twin = EMBEDDING in self.pairs and adapter.config.ties  # PEFT stores one pair under both names
        trained = (HEAD in self.pairs and not twin) or adapter.token_ids(HEAD) is not None
        return trained or adapter.embedding_apart or embedding != head

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tuned model's tensors, in the order of the base's files.

        Where the adapter holds a whole tensor its shape counts: a resized vocabulary has other rows.
        """
        shapes = {name: self._shape(canonical(name), shape) for name, shape in self._own.items()}
        if self.head_parted:
            shapes[HEAD_WEIGHT] = self._shape(HEAD_WEIGHT, self._own[self._source(HEAD_WEIGHT)])
        return shapes

    def _shape(self, name: str, own: tuple[int, ...]) -> tuple[int, ...]:
        return self._whole[self._replaced[name]] if name in self._replaced else own

    @property
    def adapted_modules(self) -> tuple[str, ...]:
        """Modules that the adapter changes."""
        return tuple(dict.fromkeys([*self.pairs, *self.adapter.modules])) if self.adapter else ()

    def dtype(self, name: str) -> str:
        """The number format of the base's tensor as safetensors spells it; of a new head the embedding's."""
        return self._base.dtype(self._source(name))

    def _source(self, name: str) -> str:
        """The base's tensor of that name; for a head that the base does not have its embedding."""
        return name if name in self._own else self._names[EMBEDDING_WEIGHT]

    def check(self, plans: Iterable[TensorPlan]) -> None:
        """Raise `TuneError` with the names where the adapter changes what the base does not have."""
        if self.adapter is None:
            return
        named = [(key, module, plan.shape) for plan in plans for key, module in _parts(plan)]
        shapes = {_tensor(key, canonical(module)): shape[-2:] for key, module, shape in named}
        wanted = self._wanted_shapes(self.adapter)
        self._check_names(
            [*wanted, *self._whole, *(f"{module}.weight" for module in self.adapted_modules)], shapes
        )
        for name, shape in wanted.items():
            if name in shapes:
                _check_shape(name, shape, shapes[name])
        for name, replacing in self._replaced.items():
            self._check_replacement(name, self._whole[replacing])
        self._check_vocabulary(self.adapter, shapes)

    def _wanted_shapes(self, adapter: Adapter) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape that it must have for the adapter's pairs to fit."""
        wanted: dict[str, tuple[int, ...]] = {}
        for module, pair in self.pairs.items():
            wanted[f"{module}.weight"] = shape = adapter.shape(pair)
            if pair.bias is not None:
                wanted[f"{module}.bias"] = shape[:1]
        return wanted

    def _check_names(self, needed: Iterable[str], shapes: _Shapes) -> None:
        known = {*shapes, HEAD_WEIGHT} if self._tied else shapes.keys()
        missing = [name.removesuffix(".weight") for name in dict.fromkeys(needed) if name not in known]
        if missing:
            listed = ", ".join(one_line(name, 80) for name in missing[:5]) + (" …" if missing[5:] else "")
            raise TuneError(
                f"The adapter changes {len(missing)} modules that the base model does not have: {listed}.",
                BROKEN_ADAPTER,
            )

    def _check_replacement(self, name: str, shape: tuple[int, ...]) -> None:
        """A whole tensor has the base's shape; embedding and head may have other rows."""
        own = self._own[self._source(self._names.get(name, name))]
        first = 1 if name in (EMBEDDING_WEIGHT, HEAD_WEIGHT) else 0
        _check_shape(name, shape[first:], own[first:])

    def _check_vocabulary(self, adapter: Adapter, shapes: _Shapes) -> None:
        """Embedding and head know the same tokens, a head that stays the base's too."""
        rows = {name: shapes[name][0] for name in (EMBEDDING_WEIGHT, HEAD_WEIGHT) if name in shapes}
        if self.head_parted and HEAD_WEIGHT not in self._replaced:
            rows["base"] = self._own[self._source(HEAD_WEIGHT)][0]
        if len(set(rows.values())) > 1:
            raise TuneError("The adapter resized the vocabulary, but lacks the new head.", BROKEN_ADAPTER)
        for module in (EMBEDDING, HEAD):
            ids, shape = adapter.token_ids(module), shapes.get(f"{module}.weight")
            if ids and shape and (max(ids) >= shape[0] or adapter.token_width(module) != shape[1]):
                raise TuneError(
                    f"The adapter retrained the token {max(ids)} with {adapter.token_width(module)} numbers, "
                    f"but the base model has {shape[0]} tokens of {shape[1]}.",
                    BROKEN_ADAPTER,
                )

    def adapted(self, plan: TensorPlan) -> bool:
        """True where the adapter changes this tensor."""
        return any(self._changes(key, module) for key, module in _parts(plan))

    def _changes(self, key: str, module: str) -> bool:
        adapter, module = self.adapter, self._module(module)
        if adapter is None:
            return False
        pair, bias = self.pairs.get(module), key.endswith(".bias")
        lora = pair is not None and (not bias or pair.bias is not None)
        tokens = not bias and adapter.token_ids(module) is not None
        return lora or tokens or _tensor(key, module) in self._replaced

    def _module(self, module: str) -> str:
        """The module's name in the adapter; a head that is still the embedding goes by the embedding's."""
        module = canonical(module)
        return EMBEDDING if module == HEAD and self._tied and not self.head_parted else module

    def rows(self, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the tuned model, float32 (rows, columns)."""
        return _in_order(plan, start, stop, self._tuned_rows)

    def base_rows(self, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
        """The same rows of the base model; zeros where its vocabulary is smaller."""
        return _in_order(plan, start, stop, self._own_rows)

    def _own_rows(self, key: str, module: str, start: int, stop: int) -> torch.Tensor:
        import torch

        source = self._source(key)
        count = self._base.row_count(source)
        known = max(min(stop, count), start)
        rows = self._base.rows(source, start, known)
        return rows if known == stop else torch.cat([rows, rows.new_zeros(stop - known, rows.shape[1])])

    def _tuned_rows(self, key: str, module: str, start: int, stop: int) -> torch.Tensor:
        adapter, module = self.adapter, self._module(module)
        replaced = self._replaced.get(_tensor(key, module))
        if adapter is None or replaced is None:
            rows = self._own_rows(key, module, start, stop)
        else:
            rows = adapter.whole_rows(replaced, start, stop)
        if adapter is None:
            return rows
        if module in self.pairs:
            rows = _with_pair(adapter, key, self.pairs[module], rows, start, stop)
        if not key.endswith(".bias"):
            _put_tokens(adapter, module, rows, start, stop)
        return rows


def _replacements(adapter: Adapter, tied: bool) -> dict[str, str]:
    """Tensor of the model -> the adapter's whole tensor that stands for it.

    On a tied base a tensor that PEFT stored from the base model itself (a resized vocabulary) is both; one
    that it trained as a copy of its own (`modules_to_save`) is only its own.
    """
    found = {name: name for name in adapter.whole}
    both = [
        name
        for name in (EMBEDDING_WEIGHT, HEAD_WEIGHT)
        if name in found and (adapter.config.ties or not adapter.config.saves(name.removesuffix(".weight")))
    ]
    if tied and both:
        found |= {
            name: both[0] for name in (EMBEDDING_WEIGHT, HEAD_WEIGHT) if name not in found or name in both
        }
    return found


def _check_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        module = one_line(name.removesuffix(".weight"), 80)
        raise TuneError(f"The adapter's {module} has the shape {shape}, the base's {wanted}.", BROKEN_ADAPTER)


def _parts(plan: TensorPlan) -> Iterator[tuple[str, str]]:
    return zip(plan.keys, plan.modules, strict=True)


def _tensor(key: str, module: str) -> str:
    """The tensor's name as an adapter knows it."""
    return f"{module}.{key.rpartition('.')[2]}"


def _with_pair(
    adapter: Adapter, key: str, pair: Pair, rows: torch.Tensor, start: int, stop: int
) -> torch.Tensor:
    """base + scale * B A; a bias gets what `lora_bias` learned.

    With DoRA every row of that sum gets its stored length: magnitude / ||W + scale B A|| times the sum, as in
    PEFT 0.21.2's `DoraLinearVariant.merge_safe`.
    """
    if key.endswith(".bias"):
        bias = adapter.bias(pair, start, stop)
        return rows if bias is None else rows + bias
    rows = rows + adapter.delta(pair, start, stop)
    lengths = adapter.magnitudes(pair, start, stop)
    return rows if lengths is None else rows * (lengths / rows.norm(dim=1, keepdim=True))


def _put_tokens(adapter: Adapter, module: str, rows: torch.Tensor, start: int, stop: int) -> None:
    """Write the rows of retrained tokens over theirs."""
    for place, token in enumerate(adapter.token_ids(module) or ()):
        if start <= token < stop:
            rows[token - start] = adapter.token_row(module, place)


def _in_order(plan: TensorPlan, start: int, stop: int, read: _Read) -> torch.Tensor:
    """Rows as the GGUF holds them: computed, or read, shifted, and permuted."""
    if plan.values is not None:
        import torch

        return torch.tensor(plan.values[start:stop], dtype=torch.float32).unsqueeze(1)
    rows = in_order_of_gguf(plan, start, stop, lambda first, last: _stacked(plan, first, last, read))
    return rows + plan.shift if plan.shift else rows


def _stacked(plan: TensorPlan, start: int, stop: int, read: _Read) -> torch.Tensor:
    """Rows of a tensor, or of several experts' tensors laid one after the other."""
    if len(plan.keys) == 1:
        return read(plan.key, plan.module, start, stop)
    import torch

    size = plan.rows // len(plan.keys)
    experts = range(start // size, -(-stop // size))
    spans = ((i, max(start - i * size, 0), min(stop - i * size, size)) for i in experts)
    return torch.cat([read(plan.keys[i], plan.modules[i], first, last) for i, first, last in spans])


def in_order_of_gguf(
    plan: TensorPlan, start: int, stop: int, read: Callable[[int, int], torch.Tensor]
) -> torch.Tensor:
    """Rows read in the base's order and returned in the GGUF's; reads whole heads where rows are permuted.

    Row (head, half, i) of the base becomes row (head, i, half), because transformers rotates i with
    i + head_dim/2 and llama.cpp neighbours.
    """
    if not plan.heads:
        return read(start, stop)
    size = plan.rows // plan.heads
    first, last = start // size * size, -(-stop // size) * size
    rows = read(first, last)
    columns = rows.shape[1]
    swapped = rows.reshape(-1, 2, size // 2, columns).transpose(1, 2).reshape(-1, columns)
    return swapped[start - first : stop - first]
