"""The fields of LLaMA-Factory, Axolotl and TRL for preferences (DPO) as settings of a run.yaml.

Names and defaults are those of the tools' public documentation and argument classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ollama_tune.core.plan.import_rules import Found, Rule, dropped, missing, take, words

OBJECTIVE = "training.objective"
METHOD = "This method is not in a run.yaml of this release."
_DPO = Found("taken", {OBJECTIVE: "dpo"})
_OTHER_LOSS = Found(
    "missing", why="The loss here is the usual one of answers; of preferences the sigmoid of the DPO paper."
)
_NOT_LEARNED = Found("missing", why=f"{METHOD} A run learns the answers, of pairs the better ones (sft).")
_REFERENCE = dropped("The reference is the model without its adapter, computed once a pair.")
_NONE_ADDED = missing("Nothing is added to the loss of a pair here.", same=(0, 0.0))


def _beta(value: Any) -> Found:
    """A field that only preferences have tells the objective too."""
    return Found("taken", {"training.beta": value, OBJECTIVE: "dpo"})


def _loss(value: Any) -> Found:
    """TRL's one loss, or a list of one."""
    only = value[0] if isinstance(value, list) and len(value) == 1 else value
    usual = Found("dropped", why="This is the loss here.")
    return {"sigmoid": _DPO, "nll": usual, "chunked_nll": usual}.get(str(only), _OTHER_LOSS)


PREFERENCES: Mapping[str, Mapping[str, Rule]] = {
    "llamafactory": {
        "stage": words(
            {
                "sft": Found("taken", {OBJECTIVE: "sft"}),
                "dpo": _DPO,
                "pt": Found("taken", {OBJECTIVE: "sft", "data.form": "text"}),
            },
            _NOT_LEARNED,
        ),
        "pref_beta": take("training.beta"),
        "pref_loss": words({"sigmoid": Found("dropped", why="This is the loss here.")}, _OTHER_LOSS),
        "pref_ftx": _NONE_ADDED,
        "pref_bco_weight": _NONE_ADDED,
        "dpo_label_smoothing": _NONE_ADDED,
        "ref_model": missing("The reference is the model without its adapter."),
    },
    "axolotl": {
        "rl": words({"dpo": _DPO}, _NOT_LEARNED),
        "rl_beta": take("training.beta"),
        "dpo_beta": take("training.beta"),
        "dpo_label_smoothing": _NONE_ADDED,
        "rpo_alpha": _NONE_ADDED,
        "precompute_ref_log_probs": _REFERENCE,
    },
    "trl": {
        "beta": _beta,
        "loss_type": _loss,
        "label_smoothing": _NONE_ADDED,
        "rpo_alpha": _NONE_ADDED,
        "precompute_ref_log_probs": _REFERENCE,
        "precompute_ref_batch_size": _REFERENCE,
        "max_prompt_length": dropped("Pairs that do not fit are left out whole, and counted."),
        "max_completion_length": dropped("Pairs that do not fit are left out whole, and counted."),
    },
}
"""Fields that have to do with preferences, by tool."""


class Ways(NamedTuple):
    """A value with which preferences cannot be learned here, the nearest, and why."""

    not_here: Any
    instead: Any
    why: str


WAYS: Mapping[str, Ways] = {
    "training.method": Ways(
        "full",
        "lora",
        "Preferences are learned by an adapter here, as the model without it is the reference; an adapter "
        "takes a learning rate about ten times as high.",
    ),
    "training.packing": Ways(
        True, False, "Both answers of a pair are computed together, so none are packed."
    ),
}


def trl_rate(values: Mapping[str, Any]) -> float:
    """TRL's own learning rate, which for preferences is far lower."""
    return 1e-6 if values.get(OBJECTIVE) == "dpo" else 2e-5
