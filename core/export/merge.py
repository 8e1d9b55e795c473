"""Reads rows of the base model and adds the adapter to them, a chunk at a time and in 32 bit.

Nothing here holds a whole tensor of the base: rows are read by their place in the safetensors file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.tensors import TensorPlan
from ollama_tune.core.models.architectures import require_json
from ollama_tune.core.models.weights import weight_names
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    import torch

# safetensors' name of a type -> torch's, and bytes a number
_DTYPES = {"F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
_BROKEN_FILE = "Download or copy the model again."
_BROKEN_ADAPTER = "Train again, or export with the base model and the adapter that belong together."
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class _Stored:
    path: Path
    dtype: str
    item: int
    shape: tuple[int, ...]
    start: int


class Weights:
    """The tensors of one or several safetensors files, read by row ranges.

    It reads with `pread` and not through a memory map: what is resident stays as small as a chunk, and a
    truncated file is an error instead of a SIGBUS.
    """

    def __init__(self, files: list[Path]) -> None:
        self._stored: dict[str, _Stored] = {}
        for path in files:
            self._stored |= _read_header(path)
        self._descriptors = {path: os.open(path, os.O_RDONLY) for path in files}

    @classmethod
    def of_model(cls, folder: Path) -> Weights:
        """The weights of a model folder, in one file or in shards."""
        return cls([folder / name for name in weight_names(folder)])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, in the order of the files."""
        return {name: stored.shape for name, stored in self._stored.items()}

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) as float32 (rows, columns); vectors have one column."""
        import torch

        stored = self._stored[name]
        columns = math.prod(stored.shape[1:])
        width = columns * stored.item
        data = bytearray((stop - start) * width)
        self._fill(stored, memoryview(data), stored.start + start * width)
        values = torch.frombuffer(data, dtype=getattr(torch, stored.dtype))
        return values.reshape(stop - start, columns).float()

    def _fill(self, stored: _Stored, view: memoryview, position: int) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptors[stored.path], [view[done:]], position + done)
            except OSError as error:
                raise _unreadable(stored.path, error) from error
            if not count:
                raise TuneError(f"{stored.path} is shorter than it says it is.", _BROKEN_FILE)
            done += count

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _unreadable(path: Path, error: OSError) -> TuneError:
    return TuneError(f"{path} cannot be read: {error.strerror}.", _BROKEN_FILE)


def _read_header(path: Path) -> dict[str, _Stored]:
    """What a safetensors file holds; every offset is checked against the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise ValueError("length of the header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {name: _stored(path, entry, 8 + length, size) for name, entry in header.items()}
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TuneError(f"{path} is not a whole safetensors file ({error}).", _BROKEN_FILE) from error
    return dict(sorted(found.items(), key=lambda item: item[1].start))


def _stored(path: Path, entry: Mapping[str, Any], data: int, size: int) -> _Stored:
    shape = tuple(int(length) for length in entry["shape"])
    start, stop = (int(offset) for offset in entry["data_offsets"])
    dtype, item = _DTYPES.get(entry["dtype"], ("", 0))
    if not dtype:
        raise TuneError(
            f"{path} holds weights of the type {one_line(str(entry['dtype']), 20)}, not 16 or 32 bit floats.",
            "Use the original model that was not quantized.",
        )
    if start < 0 or stop - start != math.prod(shape) * item or data + stop > size:
        raise ValueError("a weight lies outside the file")
    return _Stored(path, dtype, item, shape, data + start)


_PATTERN = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
_INITIALISATIONS = (True, False, "gaussian", "eva")
# Settings of PEFT's LoRA that change the result and have no code here, with their harmless values.
_NOT_BUILT: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "modules_to_save": ([],),
    "trainable_token_indices": ({}, []),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "bias": ("none",),
    "layer_replication": ([],),
    "target_parameters": ([],),
    "alora_invocation_tokens": (),
    "use_qalora": (False,),
    "use_bdlora": (),
    "arrow_config": (),
    "kasa_config": (),
    "velora_config": (),
    "monteclora_config": (),
    "init_lora_weights": _INITIALISATIONS,
}


class Adapter:
    """A LoRA adapter of PEFT: a pair A (rank, in), B (out, rank) and a scale for each adapted module."""

    def __init__(self, folder: Path) -> None:
        config = require_json(folder / "adapter_config.json")
        _refuse_unbuilt(config)
        self._weights = Weights([folder / "adapter_model.safetensors"])
        self._ranks = _ranks(self._weights.shapes)
        self._scales = {module: _scale(config, module, rank) for module, rank in self._ranks.items()}
        self._held: tuple[str, torch.Tensor, torch.Tensor] | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the adapted modules, such as `model.layers.0.self_attn.q_proj`."""
        return tuple(self._ranks)

    def scale(self, module: str) -> float:
        """The factor of B A: alpha / rank, with rank-stabilised LoRA alpha / sqrt(rank)."""
        return self._scales[module]

    def check_targets(self, plans: list[TensorPlan]) -> None:
        """Raise `TuneError` with the names where the adapter changes what the base does not have."""
        shapes = {plan.module: plan.shape for plan in plans if len(plan.shape) == 2 and plan.key}
        missing = [module for module in self.modules if module not in shapes]
        if missing:
            listed = ", ".join(one_line(name, 80) for name in missing[:5]) + (" …" if missing[5:] else "")
            raise TuneError(
                f"The adapter changes {len(missing)} modules that the base model does not have: {listed}.",
                _BROKEN_ADAPTER,
            )
        for module in self.modules:
            self._check_shape(module, shapes[module])

    def _check_shape(self, module: str, shape: tuple[int, ...]) -> None:
        a, b = (self._weights.shapes[_key(module, side)] for side in "AB")
        if (b[0], a[1]) != shape:
            raise TuneError(
                f"The adapter's {one_line(module, 80)} has the shape {(b[0], a[1])}, the base's {shape}.",
                _BROKEN_ADAPTER,
            )

    def delta(self, module: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of scale * B A as float32."""
        held = self._held
        if held is None or held[0] != module:
            a, b = (self._weights.rows(key, 0, self._weights.shapes[key][0]) for key in _keys(module))
            held = self._held = (module, a, b * self.scale(module))
        return held[2][start:stop] @ held[1]

    def close(self) -> None:
        """Close the file."""
        self._weights.close()


def _key(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def _keys(module: str) -> tuple[str, str]:
    return _key(module, "A"), _key(module, "B")


def _refuse_unbuilt(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise TuneError(
            f"The adapter is of the kind {one_line(str(kind), 40)}; only LoRA can be merged.",
            "Train with LoRA.",
        )
    for name, harmless in _NOT_BUILT.items():
        value = config.get(name)
        if value is not None and value not in harmless:
            raise TuneError(
                f"The adapter uses {name}={one_line(str(value), 40)}, which cannot be merged yet.",
                f"Train without {name}.",
            )


def _ranks(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Module -> rank; a tensor that is no complete A, B pair is refused by name."""
    for name in shapes:
        match = _PATTERN.match(name)
        if match is None or not all(key in shapes for key in _keys(match["module"])):
            raise TuneError(
                f"The adapter holds {one_line(name, 120)}, which cannot be merged yet.",
                "Train plain LoRA on linear layers.",
            )
    modules = [match["module"] for name in shapes if (match := _PATTERN.match(name)) and match["side"] == "A"]
    ranks = {module: shapes[_key(module, "A")][0] for module in modules}
    wrong = [module for module, rank in ranks.items() if shapes[_key(module, "B")][1:] != (rank,)]
    if wrong or not ranks:
        raise TuneError("The adapter's A and B do not fit each other.", _BROKEN_ADAPTER)
    return ranks


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    try:
        expected = int(_by_pattern(config.get("rank_pattern"), module, config["r"]))
        alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise TuneError(
            f"The adapter's adapter_config.json lacks a usable rank or alpha ({error}).", _BROKEN_ADAPTER
        ) from error
    if expected != rank:
        raise TuneError(
            f"The adapter's {one_line(module, 80)} has rank {rank}, but adapter_config.json says {expected}.",
            _BROKEN_ADAPTER,
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name decides."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


class MergedRows:
    """Rows of the tuned model in the order of the GGUF: base + adapter, permuted where llama.cpp wants it."""

    def __init__(self, base: Weights, adapter: Adapter | None) -> None:
        self._base = base
        self._adapter = adapter
        self._adapted = frozenset(adapter.modules) if adapter else frozenset[str]()

    def adapted(self, plan: TensorPlan) -> bool:
        """True where the adapter changes this tensor."""
        return plan.module in self._adapted and len(plan.shape) == 2

    def rows(self, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the tuned model, float32 (rows, columns)."""
        rows = self.base_rows(plan, start, stop)
        return rows + self.delta_rows(plan, start, stop) if self.adapted(plan) else rows

    def base_rows(self, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
        """The same rows of the base model."""
        if plan.values is not None:
            import torch

            return torch.tensor(plan.values[start:stop], dtype=torch.float32).unsqueeze(1)
        return _ordered(plan, start, stop, lambda first, last: self._base.rows(plan.key, first, last))

    def delta_rows(self, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
        """What the adapter adds to those rows; only for adapted tensors."""
        adapter = self._adapter
        assert adapter is not None
        return _ordered(plan, start, stop, lambda first, last: adapter.delta(plan.module, first, last))


def _ordered(
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
