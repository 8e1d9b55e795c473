"""The rotary position encoding of a model: read from both config formats, said in GGUF's words.

transformers 4 wrote `rope_theta` and `rope_scaling`, transformers 5 writes `rope_parameters`; Gemma 3 has
one encoding for its layers with a window and one for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line

USUAL_THETA = 10000.0

_ORIGINAL = "original_max_position_embeddings"
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", _ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "longrope": ("factor", _ORIGINAL),
}
# llama.cpp blends YaRN between fixed numbers of turns and reads no others from a file.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "beta_fast": (None, 0, 32),
    "beta_slow": (None, 0, 1),
    "truncate": (None, True),
}


@dataclass(frozen=True)
class Rope:
    """A rotary encoding: its kind, base, how many numbers of a head it turns, and the kind's own numbers.

    `window_theta` is the base in layers with an attention window where that differs, else None.
    """

    kind: str
    theta: float
    dimensions: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    magnitude: float = 1.0
    window_theta: float | None = None

    @property
    def original(self) -> int:
        """The context length before it was stretched; 0 for kinds that stretch nothing."""
        return int(self.numbers.get(_ORIGINAL, 0))

    def fields(self) -> dict[str, Any]:
        """GGUF keys without the architecture in front; whole numbers are u32, the others f32."""
        values: dict[str, Any] = {"rope.dimension_count": self.dimensions, "rope.freq_base": self.theta}
        if self.window_theta is not None:
            values["rope.freq_base_swa"] = self.window_theta
        if self.kind in ("linear", "yarn", "longrope"):
            values["rope.scaling.type"] = self.kind
        if self.kind in ("linear", "yarn"):
            values["rope.scaling.factor"] = self.numbers["factor"]
        if self.kind in ("yarn", "longrope"):
            values["rope.scaling.original_context_length"] = self.original
        known = _magnitude(self.numbers["factor"]) if self.kind == "yarn" else 1.0
        if not math.isclose(self.magnitude, known):
            values["rope.scaling.attn_factor"] = self.magnitude / known
        return values

    def tensors(self) -> dict[str, tuple[float, ...]]:
        """Divisors of the frequencies by the name of their GGUF tensor, half of `dimensions` each."""
        if self.kind == "llama3":
            return {"rope_freqs.weight": self._llama3()}
        if self.kind == "longrope":
            return {"rope_factors_long.weight": self.long, "rope_factors_short.weight": self.short}
        return {}

    def _llama3(self) -> tuple[float, ...]:
        """As transformers' `llama3`: long waves divided by `factor`, short ones kept, others blended."""
        factor, low, high, original = (self.numbers[name] for name in _NEEDS["llama3"])
        factors = []
        for i in range(0, self.dimensions, 2):
            turns = original / (2 * math.pi * self.theta ** (i / self.dimensions))
            share = min(max((turns - low) / (high - low), 0.0), 1.0)
            factors.append(1.0 / ((1.0 - share) / factor + share))
        return tuple(factors)


def read_rope(
    data: Mapping[str, Any], head_dim: int, kinds: Mapping[str, str], *, partial: bool, windowed: bool
) -> Rope:
    """The encoding of a configuration; `TuneError` names what llama.cpp cannot compute.

    `kinds` maps the names that the family's config may use to those in `_NEEDS`, `partial` tells that a
    part of a head may stay unturned, `windowed` that layers with a window have an encoding of their own.
    """
    stored, scaling = data.get("rope_parameters") or {}, data.get("rope_scaling") or {}
    if not windowed:
        return _read(_filled(scaling or stored, data), data, head_dim, kinds, partial)
    rope = _filled({**(stored.get("full_attention") or {}), **scaling}, data)
    window = _filled(stored.get("sliding_attention") or {}, {"rope_theta": data["rope_local_base_freq"]})
    local = _read(window, data, head_dim, {"default": "default"}, partial)
    return replace(_read(rope, data, head_dim, kinds, partial), window_theta=local.theta)


def _filled(stored: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The stored dictionary with what transformers adds: the values beside it and its own defaults."""
    rope = {"rope_theta": data.get("rope_theta", USUAL_THETA)}
    if data.get("partial_rotary_factor") is not None:
        rope["partial_rotary_factor"] = data["partial_rotary_factor"]
    rope |= {key: value for key, value in stored.items() if value is not None}
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def _read(
    rope: dict[str, Any], data: Mapping[str, Any], head_dim: int, kinds: Mapping[str, str], partial: bool
) -> Rope:
    kind = kinds.get(str(rope["rope_type"]), "")
    changed = [name for name, same in _FIXED.items() if kind == "yarn" and rope.get(name) not in same]
    share = float(rope.get("partial_rotary_factor", 1.0))
    if share != 1.0 and not partial:
        changed.append("partial_rotary_factor")
    if not kind or changed:
        what = ", ".join([f"rope type {one_line(str(rope['rope_type']), 40)}", *changed])
        raise TuneError(
            f"The position encoding of the base model ({what}) cannot be exported; "
            f"supported: {', '.join(kinds)} without changes to their details.",
            "Choose another base model, or a newer ollama-tune that knows this one.",
        )
    dimensions = int(head_dim * share)
    _stretch(rope, data, kind)
    numbers = {name: float(rope[name]) for name in _NEEDS[kind]}
    for name, value in {"rope_theta": float(rope["rope_theta"]), **numbers}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}")
    short, long = (_factors(rope, f"{n}_factor", kind, dimensions) for n in ("short", "long"))
    magnitude = _attention(rope, numbers, kind)
    return Rope(kind, float(rope["rope_theta"]), dimensions, numbers, short, long, magnitude)


def _stretch(rope: dict[str, Any], data: Mapping[str, Any], kind: str) -> None:
    """Lengths that transformers takes from beside the dictionary, and the factor that follows from them."""
    longest = data.get("max_position_embeddings")
    if _ORIGINAL in _NEEDS[kind]:
        rope[_ORIGINAL] = data.get(_ORIGINAL) or rope.get(_ORIGINAL) or longest
    if kind in ("yarn", "longrope") and rope.get("factor") is None and longest is not None:
        rope["factor"] = longest / rope[_ORIGINAL]


def _factors(rope: Mapping[str, Any], name: str, kind: str, dimensions: int) -> tuple[float, ...]:
    if kind != "longrope":
        return ()
    values = tuple(float(value) for value in rope[name])
    if len(values) != dimensions // 2:
        raise ValueError(f"{name} holds {len(values)} numbers instead of {dimensions // 2}")
    return values


def _attention(rope: Mapping[str, Any], numbers: Mapping[str, float], kind: str) -> float:
    """What the turned numbers are multiplied with, as transformers computes it."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = numbers["factor"]
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(numbers[_ORIGINAL])) if factor > 1 else 1.0
    scale, everywhere = rope.get("mscale"), rope.get("mscale_all_dim")
    if scale and everywhere:
        return _magnitude(factor, float(scale)) / _magnitude(factor, float(everywhere))
    return _magnitude(factor)


def _magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's factor of the attention, equal in transformers and in llama.cpp (arXiv 2309.00071, eq. 22)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
