"""The rules for ways of training besides LoRA: what is recommended otherwise than for it, and why."""

from __future__ import annotations

from collections.abc import Mapping

from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.exportable import export_obstacle
from ollama_tune.core.plan.impossible import SOFT_PROMPTS
from ollama_tune.core.plan.settings import Method, Settings, TrainingSettings
from ollama_tune.core.plan.values import Choice

RATES: Mapping[Method, Choice] = {
    "prompt": Choice(
        3e-2, "one for all models: vectors as long as embeddings need large steps", rules.PRACTICE
    ),
    "ptuning": Choice(1e-3, "one for all models: the usual one of a small network", rules.PRACTICE),
}
"""Of the methods whose rate does not follow from LoRA's.

On the examples and the model that ollama-tune brings, after 171 steps: a soft prompt has loss 4.25 with 3e-3,
1.52 with 1e-2, 0.76 with 3e-2 and 0.62 with 1e-1; p-tuning 3.17 with 3e-4, 1.82 with 1e-3, 1.55 with 3e-3,
2.03 with 1e-2 and 3.37 with 3e-2, and wider networks want smaller steps.
"""
ADALORA_TIMES = 5
"""By how much AdaLoRA's rate is above LoRA's.

Its paper has 5e-4 to 2.2e-3 where 2e-4 is usual for LoRA. As above: 0.91 with 1e-3, 0.05 with 5e-3, 0.02 with
1e-2 and 2e-2; LoRA 0.03 with 1e-3.
"""
NO_LAYER = ("rank", "alpha", "dropout", "targets")
"""Fields of adapters on layers."""


def learning_rate(spec: ModelSpec, training: TrainingSettings, steps: int) -> Choice:
    """The method's own rate, or what it is by LoRA's."""
    if training.method in RATES:
        return RATES[training.method]
    usual = rules.learning_rate(spec, training.rank, steps)
    if training.method == "full":
        usual = rules.learning_rate(spec, rules.LEAST_RANK, steps)
        return Choice(rules.rounded(usual.value / 10), f"a tenth of LoRA's {usual.value:g}", rules.LWR)
    if training.method != "adalora":
        return usual
    rate = rules.rounded(ADALORA_TIMES * usual.value)
    return Choice(
        rate,
        f"{ADALORA_TIMES} x LoRA's {usual.value:g}: it learns through few singular values",
        rules.PRACTICE,
    )


def virtual_tokens(training: TrainingSettings) -> Choice:
    """20, above which little is gained."""
    used = "more than 20 gain little" if training.method in SOFT_PROMPTS else "only soft prompts have some"
    return Choice(20, used, rules.PRACTICE)


def of_no_use(training: TrainingSettings) -> dict[str, Choice]:
    """Fields that a method without adapter does not have, as they stand."""
    if training.method not in (*SOFT_PROMPTS, "full"):
        return {}
    names: tuple[str, ...] = NO_LAYER
    words = "of no effect: all weights learn"
    if training.method in SOFT_PROMPTS:
        words, names = "of no effect: only the soft prompt learns", (*NO_LAYER, "freeze_layers")
    return {f"training.{name}": Choice(getattr(training, name), words, rules.PRACTICE) for name in names}


def packing(training: TrainingSettings, usual: Choice) -> Choice:
    """Never with a soft prompt."""
    if training.method in SOFT_PROMPTS:
        return Choice(False, "every row has its soft prompt in front", rules.PRACTICE)
    return usual


def export_name(settings: Settings, spec: ModelSpec) -> Choice:
    """A name where the run can end in Ollama."""
    if obstacle := export_obstacle(settings):
        return Choice(None, f"no export: {obstacle.partition(', so')[0]}", rules.PRACTICE)
    return rules.export_name(spec, settings.data.path)
