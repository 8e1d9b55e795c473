"""Reads the configuration of a base model for its GGUF; what cannot be said in one is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.families import ARCHITECTURES, Architecture
from ollama_tune.core.models.rope import Rope, read_rope
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.text import one_line

__all__ = ["ARCHITECTURES", "Architecture", "Config", "find_architecture", "read_config", "require_json"]

OTHER_MODEL = "Choose another base model, or a newer ollama-tune that knows this one."
BROKEN = "Download the base model again or choose another."

# llama.cpp's own limits (src/llama-hparams.h), and a width beyond every model's.
_MOST_LAYERS = _MOST_EXPERTS = 512
_LARGEST = 2**20


@dataclass(frozen=True)
class Config:
    """The numbers of a `config.json` that a GGUF needs; `rope` unites the formats of transformers 4 and 5.

    `experts` is 0 for dense models. `window` is the attention window, in tokens, that training knows and
    llama.cpp does not: in longer texts its answers differ; 0 where there is none. `extra` are the
    family's own GGUF keys.
    """

    architecture: Architecture
    layers: int
    context: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_dim: int
    epsilon: float
    rope: Rope
    tied: bool
    experts: int
    window: int
    extra: dict[str, Any]

    @property
    def even_context(self) -> int:
        """The context length up to which llama.cpp treats short texts as training did.

        Longrope has factors for short and for long texts. transformers chooses by the length of the text,
        llama.cpp by the context it was started with, so a larger context changes answers to short texts.
        """
        return min(self.context, self.rope.original) if self.rope.kind == "longrope" else self.context

    def fields(self, vocabulary: int) -> dict[str, Any]:
        """Key-value pairs of the family; whole numbers are u32, the others f32."""
        values = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_value_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": self.epsilon,
            "vocab_size": vocabulary,
        }
        values |= self.rope.fields() | self.extra
        return {f"{self.architecture.name}.{name}": value for name, value in values.items()}

    def rope_factors(self) -> dict[str, tuple[float, ...]]:
        """Computed tensors of the position encoding by their name in the GGUF; most models have none."""
        return self.rope.tensors()

    def layer_weights(self) -> list[str]:
        """Names of the weights that every layer must have, without `model.layers.N.` and `.weight`."""
        family = self.architecture
        return [*family.layer, *(name.format(i) for i in range(self.experts) for name in family.experts)]


def read_config(folder: Path) -> Config:
    """Read `config.json` of a base model; what cannot be exported raises `TuneError` by its name."""
    data = require_json(folder / "config.json")
    architecture = find_architecture(data)
    try:
        return _config(architecture, architecture.defaults | _renamed(data))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = one_line(str(error), 100)
        raise TuneError(
            f"The base model's config.json lacks a usable value for the export ({what}).", BROKEN
        ) from error


def find_architecture(data: Mapping[str, Any]) -> Architecture:
    """The table row of a configuration, or a `TuneError` that names the class nobody wrote a row for."""
    names = data.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "an unnamed architecture"
    if data.get("auto_map") and name not in ARCHITECTURES:
        raise TuneError(
            f"The base model brings its own code ({one_line(name, 60)}), which is never run.", OTHER_MODEL
        )
    if name not in ARCHITECTURES:
        known = ", ".join(known.removesuffix("ForCausalLM") for known in ARCHITECTURES)
        raise TuneError(
            f"{one_line(name, 60)} can be trained, not exported to Ollama; exported are: {known}.",
            OTHER_MODEL,
        )
    kind = data.get("model_type")
    if kind != ARCHITECTURES[name].model_type:
        raise TuneError(
            f"The base model's config.json contradicts itself: {one_line(name, 60)} with the model type "
            f"{one_line(str(kind), 40)}.",
            BROKEN,
        )
    return ARCHITECTURES[name]


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 4 and 5 count experts under different names."""
    return {"num_local_experts" if key == "num_experts" else key: value for key, value in data.items()}


def _config(architecture: Architecture, data: Mapping[str, Any]) -> Config:
    layers = _whole(data, "num_hidden_layers", _MOST_LAYERS)
    heads, hidden = _whole(data, "num_attention_heads"), _whole(data, "hidden_size")
    width = hidden // heads if data["head_dim"] is None else _whole(data, "head_dim")
    _refuse_different(architecture, data)
    extra = {key: convert(data[name]) for key, (name, convert) in architecture.keys.items()}
    config = Config(
        architecture=architecture,
        layers=layers,
        context=_whole(data, "max_position_embeddings", 2**31),
        hidden=hidden,
        feed_forward=_whole(data, "intermediate_size"),
        heads=heads,
        key_value_heads=heads if data["num_key_value_heads"] is None else _whole(data, "num_key_value_heads"),
        head_dim=width,
        epsilon=float(data["rms_norm_eps"]),
        rope=read_rope(
            data,
            width,
            architecture.ropes,
            partial=architecture.partial_rope,
            windowed=architecture.window_rope,
        ),
        tied=bool(data["tie_word_embeddings"]),
        experts=_whole(data, "num_local_experts", _MOST_EXPERTS) if architecture.experts else 0,
        window=_ignored_window(architecture, data),
        extra={key: value for key, value in extra.items() if value is not None},
    )
    _check_written(config)
    return config


def _whole(data: Mapping[str, Any], name: str, largest: int = _LARGEST) -> int:
    value = data[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
        raise ValueError(f"{name}={value}")
    return value


def _check_written(config: Config) -> None:
    """Numbers that a GGUF cannot hold, or that are none, are found before anything is written."""
    for key, value in config.fields(1).items():
        if isinstance(value, int) and not 0 <= value < 2**32:
            raise ValueError(f"{key}={value}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value}")
    config.rope_factors()


def _refuse_different(architecture: Architecture, data: Mapping[str, Any]) -> None:
    """Whatever changes the computation and has no counterpart in llama.cpp is refused by its name."""
    found = [f"{name}={data[name]}" for name, same in architecture.fixed.items() if data[name] not in same]
    found += [text for check in architecture.checks if (text := check(data))]
    if found:
        raise TuneError(
            "llama.cpp, which Ollama runs models with, cannot compute this base model: its config.json has "
            f"{one_line(', '.join(found), 120)}.",
            OTHER_MODEL,
        )


def _ignored_window(architecture: Architecture, data: Mapping[str, Any]) -> int:
    """The attention window of a family whose window llama.cpp leaves out, where a text can exceed it."""
    known = architecture.defaults
    size = data["sliding_window"] if "sliding_window" in known and not architecture.windowed else None
    used = data["use_sliding_window"] if "use_sliding_window" in known else True
    if not size or not used or size >= data["max_position_embeddings"]:
        return 0
    if "max_window_layers" in known:
        kinds = data["layer_types"] or range(data["max_window_layers"], data["num_hidden_layers"])
        used = "sliding_attention" in kinds if data["layer_types"] else len(kinds) > 0
    return int(size) if used else 0


def require_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that must be there; anything else is a `TuneError`."""
    data = read_json(path)
    if data is None:
        raise TuneError(f"{path} is missing.", BROKEN)
    return data
