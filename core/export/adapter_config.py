"""What an `adapter_config.json` says about the arithmetic; what has no code here is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.text import one_line

BROKEN_ADAPTER = "Train again, or export with the base model and the adapter that belong together."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of an adapter, as PEFT names them."""
_MERGE_ELSEWHERE = (
    "Merge it with the program that trained it, and export the merged folder as a model of its own."
)
_CONVERT = (
    "Save the adapter again with PEFT's save_pretrained(folder, path_initial_model_for_weight_conversion="
    "the folder of the adapter as it was before the first step), and export that folder."
)
_REQUANTIZED = "Train with another initialisation, or merge it on the quantized model with PEFT."

# Initialisations that leave the base as it is, and those that take a part out of it or round it.
_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_CHANGES_BASE = re.compile(r"pissa|olora|corda|lora_ga|loftq", re.IGNORECASE)

_ANY: tuple[Any, ...] = ()
# Every field of PEFT 0.21.2's LoraConfig, and one of 0.2: the values that change nothing, or _ANY where none
# does or this code knows what to do. Another value, or a switch that is no field here, is refused.
_FIELDS: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
            *("task_type", "peft_version", "runtime_config", "merge_weights"),
            *(
                "r",
                "lora_alpha",
                "use_rslora",
                "rank_pattern",
                "alpha_pattern",
                "use_dora",
                "lora_bias",
                "bias",
            ),
            *(
                "target_modules",
                "exclude_modules",
                "layers_to_transform",
                "layers_pattern",
                "target_parameters",
            ),
            *("modules_to_save", "trainable_token_indices", "ensure_weight_tying", "init_lora_weights"),
            *(
                "lora_dropout",
                "megatron_core",
                "loftq_config",
                "eva_config",
                "corda_config",
                "lora_ga_config",
            ),
            *("velora_config", "qalora_group_size"),
        ),
        _ANY,
    ),
    "fan_in_fan_out": (False,),
    "megatron_config": (None, {}),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}


@dataclass(frozen=True)
class LoraConfig:
    """The numbers of an adapter's arithmetic; `saved` names modules that were trained whole."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    rank_stabilised: bool
    magnitudes: bool
    saved: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    ties: bool

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A: alpha / rank, with rank-stabilised LoRA alpha / sqrt(rank)."""
        try:
            expected = int(_by_pattern(self.rank_pattern, module, self.rank))
            alpha = float(_by_pattern(self.alpha_pattern, module, self.alpha))
        except (TypeError, ValueError, re.error) as error:
            raise _unusable(error) from error
        if expected != rank:
            raise TuneError(
                f"The adapter's {one_line(module, 80)} has rank {rank}, but {CONFIG} says {expected}.",
                BROKEN_ADAPTER,
            )
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank

    def saves(self, module: str) -> bool:
        """True where PEFT trained a whole copy of the module of its own (`modules_to_save`)."""
        return any(module == name or module.endswith(f".{name}") for name in self.saved)


def read_lora_config(folder: Path) -> LoraConfig:
    """Read and check `adapter_config.json`; `TuneError` for what cannot be merged, with what to do."""
    data = read_json(folder / CONFIG)
    if data is None:
        raise TuneError(f"The folder {folder} has no {CONFIG}, so it is no adapter.", BROKEN_ADAPTER)
    _refuse_unbuilt(data)
    try:
        return LoraConfig(
            rank=int(data["r"]),
            alpha=float(data["lora_alpha"]),
            rank_pattern=dict(data.get("rank_pattern") or {}),
            alpha_pattern=dict(data.get("alpha_pattern") or {}),
            rank_stabilised=bool(data.get("use_rslora")),
            magnitudes=bool(data.get("use_dora")),
            saved=tuple(str(name) for name in data.get("modules_to_save") or ()),
            tokens=_tokens(data.get("trainable_token_indices")),
            ties=bool(data.get("ensure_weight_tying")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> TuneError:
    return TuneError(f"The adapter's {CONFIG} lacks a usable rank or alpha ({error}).", BROKEN_ADAPTER)


def _tokens(listed: Any) -> dict[str, tuple[int, ...]]:
    """Ids of retrained tokens by the name of their module; a bare list means the embedding."""
    named = listed if isinstance(listed, dict) else {"embed_tokens": listed or ()}
    return {str(name): tuple(int(token) for token in ids) for name, ids in named.items() if ids}


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name decides."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _refuse_unbuilt(data: Mapping[str, Any]) -> None:
    kind = data.get("peft_type")
    if kind != "LORA":
        raise TuneError(
            f"The adapter is of the kind {one_line(str(kind), 40)}; only LoRA can be merged here.",
            _MERGE_ELSEWHERE,
        )
    _refuse_changed_base(data.get("init_lora_weights"))
    for name, value in data.items():
        harmless = _FIELDS.get(name)
        if harmless is None:
            # A field of a later PEFT: a number or name is a detail of something, a switch turns something on.
            refused = value is True or (isinstance(value, (dict, list)) and bool(value))
        else:
            refused = bool(harmless) and value not in harmless
        if refused:
            raise TuneError(
                f"The adapter uses {one_line(name, 40)}={one_line(str(value), 40)}, "
                "which cannot be merged here.",
                _MERGE_ELSEWHERE,
            )


def _refuse_changed_base(start: Any) -> None:
    """An adapter that began with a part of the base in it means nothing on the base as it was published."""
    if start in _KEEPS_BASE:
        return
    found = _CHANGES_BASE.match(str(start))
    name = one_line(str(start), 40)
    if found is None:
        raise TuneError(
            f"The adapter was initialised with init_lora_weights={name}, which is not known here.",
            _MERGE_ELSEWHERE,
        )
    raise TuneError(
        f"The adapter was initialised with init_lora_weights={name}, which changed the base model's weights, "
        "and belongs to those changed weights.",
        _REQUANTIZED if found[0].lower() == "loftq" else _CONVERT,
    )
