"""Which tensors a GGUF of a model holds, and where in the base's files each of them comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import gguf

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter import canonical
from ollama_tune.core.models.architectures import BROKEN, OTHER_MODEL, Config
from ollama_tune.core.text import one_line

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
_SKIPPED = re.compile(r"\.rotary_emb\.inv_freq$")
_EXPERT = re.compile(
    r"^(?P<before>model\.layers\.\d+\.\w+\.experts)\.(?P<number>\d+)\.(?P<after>\w+\.weight)$"
)
_NUMBERS = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the GGUF: its name there, its names in the base, and the modules an adapter calls it by.

    `keys` and `modules` have one entry; a tensor of stacked experts has one an expert, in order. `shape`
    is (rows, columns), (rows,) or (experts, rows, columns). `heads` > 0 means that the rows are permuted
    within that many heads. `shift` is added to every number (Gemma stores its norms less one). `values`
    holds a computed tensor that is in no file.
    """

    name: str
    keys: tuple[str, ...]
    modules: tuple[str, ...]
    shape: tuple[int, ...]
    heads: int = 0
    shift: float = 0.0
    values: tuple[float, ...] | None = None

    @property
    def key(self) -> str:
        """The name in the base for messages; the first of several, empty for a computed tensor."""
        return self.keys[0] if self.keys else ""

    @property
    def module(self) -> str:
        """The module behind it; the first of several, empty for a computed tensor."""
        return self.modules[0] if self.modules else ""

    @property
    def rows(self) -> int:
        """How many rows, those of all experts together."""
        return self.shape[0] if len(self.shape) == 1 else math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Numbers a row; 1 for vectors."""
        return 1 if len(self.shape) == 1 else self.shape[-1]


def plan_tensors(
    config: Config, shapes: Mapping[str, tuple[int, ...]], adapted: Iterable[str]
) -> list[TensorPlan]:
    """Every tensor of the GGUF in the order of the base's files (`shapes`: name -> shape there).

    A head that is not in the files is the embedding used twice, and so it is in a GGUF; only when the
    adapter targets it (`adapted`: module names) or llama.cpp insists, it gets rows of its own, made from
    the embedding.
    """
    names = gguf.get_tensor_name_map(_NUMBERS[config.architecture.name], config.layers)
    current = {canonical(key): key for key in shapes if not _SKIPPED.search(key)}
    _require_all(config, current)
    head, own = f"{HEAD}.weight" in current, config.architecture.own_head
    if own is False and (head or HEAD in adapted):
        raise TuneError(
            f"The tuned model has an output layer of its own, and in the family {config.architecture.name} "
            "llama.cpp computes with the input embedding instead.",
            "Train again without lm_head or embed_tokens among the trained modules.",
        )
    plans = [
        _plan(config, names, group[0], tuple(current[name] for name in group), shapes)
        for group in _groups(current)
    ]
    if not head and (own or HEAD in adapted):
        key = current[f"{EMBEDDING}.weight"]
        plans.append(TensorPlan("output.weight", (key,), (HEAD,), shapes[key]))
    for name, values in config.rope_factors().items():
        plans.append(TensorPlan(name, (), (), (len(values),), values=values))
    return plans


def _groups(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Every name by itself, but those of a layer's experts together, in the order of the experts."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        found = _EXPERT.match(name)
        groups.setdefault(_common(name), []).append((int(found["number"]) if found else 0, name))
    return [tuple(name for _, name in sorted(group)) for group in groups.values()]


def _common(name: str) -> str:
    """The name without the number of the expert, as gguf's table knows it."""
    return _EXPERT.sub(r"\g<before>.\g<after>", name)


def _require_all(config: Config, present: Container[str]) -> None:
    needed = [EMBEDDING, "model.norm"] + ([] if config.tied else [HEAD])
    needed += [f"model.layers.{i}.{part}" for i in range(config.layers) for part in config.layer_weights()]
    missing = [name for name in needed if f"{name}.weight" not in present]
    if missing:
        raise TuneError(
            f"The base model lacks {len(missing)} of the weights its config.json asks for, "
            f"such as {missing[0]}.weight.",
            BROKEN,
        )


def _plan(
    config: Config,
    names: gguf.TensorNameMap,
    current: str,
    keys: tuple[str, ...],
    shapes: Mapping[str, tuple[int, ...]],
) -> TensorPlan:
    shape = _shape(config, current, keys, shapes)
    name = names.get_name(_common(current), try_suffixes=(".weight", ".bias"))
    if name is None or len(shape) > 3:
        raise TuneError(
            f"The base model has a weight that has no place in the GGUF: {one_line(keys[0], 100)}.",
            OTHER_MODEL,
        )
    shift = config.architecture.norm_shift if current.endswith("norm.weight") else 0.0
    modules = tuple(key.rpartition(".")[0] for key in keys)
    return TensorPlan(name, keys, modules, shape, _heads(config, modules[0]), shift)


def _shape(
    config: Config, current: str, keys: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    shape, key = shapes[keys[0]], one_line(keys[0], 100)
    heads = _heads(config, keys[0].rpartition(".")[0])
    if heads and shape[0] != heads * config.head_dim:
        raise TuneError(
            f"The weight {key} has {shape[0]} rows, but config.json says {heads} heads of {config.head_dim}.",
            BROKEN,
        )
    if not _EXPERT.match(current):
        return shape
    if len(keys) != config.experts or any(shapes[other] != shape for other in keys):
        raise TuneError(f"The experts beside {key} are not {config.experts} of one shape.", BROKEN)
    return (len(keys), *shape)


def _heads(config: Config, module: str) -> int:
    projection = module.rpartition(".")[2]
    if projection not in config.architecture.permuted:
        return 0
    return config.heads if projection == "q_proj" else config.key_value_heads
