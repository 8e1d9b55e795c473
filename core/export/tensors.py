"""Which tensors a GGUF of a model holds, and where in the base's files each of them comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import gguf

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.architectures import BROKEN, OTHER_MODEL, Config
from ollama_tune.core.text import one_line

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
_SKIPPED = re.compile(r"\.rotary_emb\.inv_freq$")
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
    adapter targets it (`adapted`: module names) it gets rows of its own, made from the embedding.
    """
    names = gguf.get_tensor_name_map(_NUMBERS[config.architecture.name], config.layers)
    _require_all(config, shapes)
    plans = [_plan(config, names, key, shape) for key, shape in shapes.items() if not _SKIPPED.search(key)]
    if f"{HEAD}.weight" not in shapes and HEAD in adapted:
        key = f"{EMBEDDING}.weight"
        plans.append(TensorPlan("output.weight", (key,), (HEAD,), shapes[key]))
    if factors := config.rope_factors():
        plans.append(TensorPlan("rope_freqs.weight", (), (), (len(factors),), values=tuple(factors)))
    return plans


def _require_all(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    needed = [EMBEDDING, "model.norm"] + ([] if config.tied else [HEAD])
    needed += [f"model.layers.{i}.{part}" for i in range(config.layers) for part in config.architecture.layer]
    missing = [name for name in needed if f"{name}.weight" not in shapes]
    if missing:
        raise TuneError(
            f"The base model lacks {len(missing)} of the weights its config.json asks for, "
            f"such as {missing[0]}.weight.",
            BROKEN,
        )


def _plan(config: Config, names: gguf.TensorNameMap, key: str, shape: tuple[int, ...]) -> TensorPlan:
    module, _, _ = key.rpartition(".")
    name = names.get_name(key, try_suffixes=(".weight", ".bias"))
    if name is None or len(shape) not in (1, 2):
        raise TuneError(
            f"The base model has a weight that has no place in the GGUF: {one_line(key, 100)}.", OTHER_MODEL
        )
    heads = _heads(config, module)
    if heads and shape[0] != heads * config.head_dim:
        raise TuneError(
            f"The weight {one_line(key, 100)} has {shape[0]} rows, but config.json says {heads} heads "
            f"of {config.head_dim}.",
            BROKEN,
        )
    return TensorPlan(name, (key,), (module,), shape, heads)


def _heads(config: Config, module: str) -> int:
    projection = module.rpartition(".")[2]
    if projection not in config.architecture.permuted:
        return 0
    return config.heads if projection == "q_proj" else config.key_value_heads
