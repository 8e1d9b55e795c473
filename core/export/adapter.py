"""An adapter as PEFT and the tools built on it store one: what it holds for each module of the base model."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter_config import BROKEN_ADAPTER, WEIGHTS, read_lora_config
from ollama_tune.core.export.weights import Weights
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    import torch

PICKLE = "adapter_model.bin"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_HELD = 4
"""Modules whose factors stay in memory: enough for neighbouring tensors that are computed at once."""

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^module\."
)
_TEXT_PART = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")
_MIXTRAL_EXPERT = re.compile(r"(?<=\.)(w[123])(?=$|\.)")
_MIXTRAL_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_LORA = re.compile(
    r"^(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?P<name>(?!weight$|bias$)[^.]+))?(?:\.(?P<attribute>weight|bias))?$"
)
_TOKENS = re.compile(
    r"^(?P<module>.+)\.token_adapter\.(?P<part>trainable_tokens_delta)(?:\.(?P<name>[^.]+))?$"
)
_WHOLE = re.compile(
    r"^(?P<module>.+?)(?:\.modules_to_save(?:\.(?P<name>[^.]+))?|(?:\.token_adapter)?\.base_layer)?"
    r"\.(?P<attribute>weight|bias)$"
)


_CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    f"w = torch.load('{PICKLE}', map_location='cpu', weights_only=True); "
    f"s.save_file({{k: v.contiguous().clone() for k, v in w.items()}}, '{WEIGHTS}')\""
)


_STACK = re.compile(r"\.experts(?:\.base_layer)*$")
"""A module whose parameters hold all experts; PEFT wraps one of them around the other."""


def canonical(name: str) -> str:
    """A module's or tensor's name without the wrappers of PEFT, torch, and models with pictures.

    Mixtral's files have names of their own for the feed-forward part; here it is named as in other models.
    """
    name = _WRAPPERS.sub("", name).removeprefix("base_model.model.")
    if ".block_sparse_moe." in name:
        name = _MIXTRAL_EXPERT.sub(lambda match: _MIXTRAL_NAMES[match[0]], name)
        name = name.replace(".block_sparse_moe.", ".mlp.")
    if match := _TEXT_PART.match(name):
        rest = name[match.end() :]
        return rest if rest.startswith(HEAD) else f"model.{rest}"
    return name


@dataclass
class _Found:
    """Names in the file: parts of LoRA by module, retrained token rows by module, whole tensors by name."""

    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Expert:
    """Where the pair of one expert lies in a pair of all: its number of how many, and rows of its B."""

    number: int
    count: int
    start: int
    stop: int


@dataclass(frozen=True)
class Pair:
    """The LoRA of one module: names of its A and B in the file, its rank and scale, and what goes with them.

    A of an embedding is (rank, tokens), B (width, rank); of a linear layer (rank, in) and (out, rank). Of an
    `expert` both are parts of those of all experts: A (experts x rank, in), B (out, rank x experts).
    """

    a: str
    b: str
    rank: int
    scale: float
    embedding: bool = False
    magnitude: str | None = None
    bias: str | None = None
    expert: Expert | None = None


class Adapter:
    """A LoRA adapter: pairs of A and B, whole tensors that replace the base's, rows of retrained tokens.

    Modules and tensors go by their names in the base (`model.layers.0.self_attn.q_proj`), whatever wrappers
    the adapter's file has around them. Several threads may read at once.
    """

    def __init__(self, folder: Path) -> None:
        self.config = read_lora_config(folder)
        self._weights = Weights([_file(folder)])
        try:
            self._take(_sort(self._weights.shapes))
        except BaseException:
            self.close()
            raise
        self.factors = functools.lru_cache(maxsize=_HELD)(self._read_factors)
        """Pair -> scaled (rows, rank) and (rank, columns); their product is the change of the weight."""
        self._experts_b = functools.lru_cache(maxsize=2)(self._read_experts_b)

    def _take(self, found: _Found) -> None:
        self.stacks = {module: parts for module, parts in found.parts.items() if _STACK.search(module)}
        plain = {module: parts for module, parts in found.parts.items() if module not in self.stacks}
        self.pairs = {module: self._pair(module, parts) for module, parts in plain.items()}
        self._whole, self._tokens = found.whole, found.tokens
        self._token_ids = {module: self._listed(module) for module in self._tokens}
        if not (found.parts or self._whole or self._tokens):
            raise TuneError("The adapter holds nothing.", BROKEN_ADAPTER)

    def _pair(self, module: str, parts: Mapping[str, str]) -> Pair:
        shapes = self._weights.shapes
        embedding = "embedding_A" in parts or "embedding_B" in parts
        a, b = (parts.get(f"embedding_{side}" if embedding else side) for side in "AB")
        if a is None or b is None:
            raise _unknown(next(iter(parts.values())))
        rank, magnitude, bias = shapes[a][0], parts.get("magnitude_vector"), parts.get("bias")
        vectors = [shapes[key] for key in (magnitude, bias) if key is not None]
        if len(shapes[a]) != 2 or shapes[b][1:] != (rank,) or any(v != shapes[b][:1] for v in vectors):
            raise TuneError(
                f"The adapter's A and B of {one_line(module, 80)} do not fit each other.", BROKEN_ADAPTER
            )
        if (magnitude is not None) != self.config.magnitudes:
            raise TuneError(
                f"The adapter's {one_line(module, 80)} does not fit its use_dora={self.config.magnitudes}.",
                BROKEN_ADAPTER,
            )
        if magnitude is not None and embedding:
            raise TuneError(
                "The adapter uses use_dora on the token embedding, which cannot be merged here.",
                "Train without use_dora, or without the token embedding among the target modules.",
            )
        scale = self.config.scale(module, rank)
        return Pair(a, b, rank, scale, embedding, magnitude, bias)

    def stored_shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor in the file, by its name there."""
        return self._weights.shapes[key]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that the adapter changes, without single experts."""
        whole = (name.rpartition(".")[0] for name in self._whole)
        return tuple(dict.fromkeys([*self.pairs, *whole, *self._tokens]))

    @property
    def whole(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors that replace the base's, such as `lm_head.weight`."""
        return {name: self._weights.shapes[key] for name, key in self._whole.items()}

    @property
    def embedding_apart(self) -> bool:
        """True where the embedding was trained without the head, even if the base uses one for both.

        PEFT wraps the embedding alone, so that a tied head goes on with the base's rows; retrained rows of
        single tokens (`trainable_token_indices`) and embeddings of a resized vocabulary stay tied.
        """
        changed = EMBEDDING in self.pairs or (
            f"{EMBEDDING}.weight" in self._whole and self.config.saves(EMBEDDING)
        )
        return changed and not self.config.ties

    def shape(self, pair: Pair) -> tuple[int, int]:
        """(rows, columns) of the weight that a pair belongs to."""
        outer, inner = self._weights.shapes[pair.b][0], self._weights.shapes[pair.a][1]
        if pair.expert is not None:
            outer = pair.expert.stop - pair.expert.start
        return (inner, outer) if pair.embedding else (outer, inner)

    def delta(self, pair: Pair, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of scale * B A as float32."""
        left, right = self.factors(pair)
        return left[start:stop] @ right

    def _read_factors(self, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        if pair.expert is not None:
            expert = pair.expert
            a = self._weights.rows(pair.a, expert.number * pair.rank, (expert.number + 1) * pair.rank)
            b = self._experts_b(pair.b, expert.count)[expert.number, expert.start : expert.stop]
            return b * pair.scale, a
        a, b = self._all(pair.a), self._all(pair.b)
        if pair.embedding:
            return (a * pair.scale).T.contiguous(), b.T.contiguous()
        return b.mul_(pair.scale), a

    def _read_experts_b(self, key: str, count: int) -> torch.Tensor:
        """(experts, rows, rank) of a B whose columns are rank x experts, as PEFT lays them."""
        rows = self._all(key)
        return rows.reshape(len(rows), -1, count).permute(2, 0, 1).contiguous()

    def magnitudes(self, pair: Pair, start: int, stop: int) -> torch.Tensor | None:
        """The lengths that DoRA gives rows [start, stop) of the weight (rows, 1); None without DoRA."""
        return None if pair.magnitude is None else self._weights.rows(pair.magnitude, start, stop)

    def bias(self, pair: Pair, start: int, stop: int) -> torch.Tensor | None:
        """What `lora_bias` adds to the base's bias, scaled (rows, 1); None without it."""
        return None if pair.bias is None else self._weights.rows(pair.bias, start, stop) * pair.scale

    def whole_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor that replaces the base's."""
        return self._weights.rows(self._whole[name], start, stop)

    def token_ids(self, module: str) -> tuple[int, ...] | None:
        """Ids of the retrained tokens of an embedding or head; None where the module has none."""
        return self._token_ids.get(module)

    def token_width(self, module: str) -> int:
        """Numbers in the row of a retrained token."""
        return self._weights.shapes[self._tokens[module]][-1]

    def token_row(self, module: str, place: int) -> torch.Tensor:
        """The row that replaces that of the token at a place in `token_ids`."""
        return self._weights.rows(self._tokens[module], place, place + 1)[0]

    def _listed(self, module: str) -> tuple[int, ...]:
        """Ids that the configuration lists for a module, one a stored row."""
        named = self.config.tokens
        ids = next((ids for name, ids in named.items() if module == name or module.endswith(f".{name}")), ())
        stored = self._weights.shapes[self._tokens[module]][0]
        if len(ids) != stored:
            raise TuneError(
                f"The adapter holds {stored} retrained tokens, but its trainable_token_indices "
                f"lists {len(ids)}.",
                BROKEN_ADAPTER,
            )
        return ids

    def _all(self, key: str) -> torch.Tensor:
        return self._weights.rows(key, 0, self._weights.shapes[key][0])

    def close(self) -> None:
        """Close the file."""
        self._weights.close()


def _file(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLE).is_file():
        raise TuneError(
            f"The adapter in {folder} is stored as pickle ({PICKLE}), which can run programs hidden in it.",
            f"If you trust it, convert it in that folder with: {_CONVERT}",
        )
    if not path.is_file():
        raise TuneError(f"The adapter in {folder} has no weights ({WEIGHTS}).", BROKEN_ADAPTER)
    return path


def _unknown(key: str) -> TuneError:
    return TuneError(
        f"The adapter holds {one_line(key, 120)}, which cannot be merged here.",
        "Train plain LoRA on linear layers, or merge it with the program that trained it.",
    )


def _sort(shapes: Mapping[str, tuple[int, ...]]) -> _Found:
    """Every tensor of the file in its place; one that is nothing known is refused by name."""
    found = _Found()
    for key, shape in shapes.items():
        name = canonical(key)
        if 0 in shape:
            raise TuneError(
                f"The adapter's {one_line(key, 120)} is empty: it was saved before its parts were gathered "
                "from all processes (DeepSpeed ZeRO-3 or FSDP).",
                "Save the adapter again as that program's manual says for several GPUs.",
            )
        if ".original_module." in name:
            continue  # the base's own weight beside a trained copy
        match = _LORA.match(name) or _TOKENS.match(name) or (None if ".lora_" in name else _WHOLE.match(name))
        if match is None:
            raise _unknown(key)
        groups = match.groupdict()
        found.names.update({groups["name"]} - {None})
        module, part = groups["module"], groups.get("part")
        if part == "trainable_tokens_delta":
            found.tokens[module] = key
        elif part is not None:
            found.parts.setdefault(module, {})["bias" if groups["attribute"] == "bias" else part] = key
        else:
            found.whole[f"{module}.{groups['attribute']}"] = key
    if len(found.names) > 1:
        listed = ", ".join(one_line(name, 40) for name in sorted(found.names))
        raise TuneError(
            f"The file holds several adapters: {listed}.",
            "Save the one you want in a folder of its own.",
        )
    return found
