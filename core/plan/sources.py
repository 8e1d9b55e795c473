"""How sure the recommended values are: figures, published experiments, convention, or the person's own."""

from __future__ import annotations

from collections import Counter

from ollama_tune.core.plan import rules
from ollama_tune.core.plan.settings import field_paths
from ollama_tune.core.plan.values import Plan

CERTAIN = (rules.DATA, rules.MACHINE, rules.MODEL, rules.MEMORY)
EXPERIMENTS = (rules.LWR, rules.TINKER, rules.QLORA)


def count_sources(plan: Plan) -> str:
    """`8 by figures (your data, this machine), 6 by experiments (QLoRA), 12 by convention, 2 yours`."""
    found = Counter(plan.choices[path].source for path in field_paths() if path in plan.choices)
    parts = [
        _part(found, "by figures", CERTAIN),
        _part(found, "by experiments", EXPERIMENTS),
        _part(found, "by convention", (rules.PRACTICE,)),
        f"{len(plan.changed)} yours" if plan.changed else "",
    ]
    return ", ".join(part for part in parts if part)


def _part(found: Counter[str], words: str, names: tuple[str, ...]) -> str:
    """How many values have one of these sources, and which."""
    there = [name for name in names if found[name]]
    if not there:
        return ""
    named = f" ({', '.join(there)})" if len(names) > 1 else ""
    return f"{sum(found[name] for name in there)} {words}{named}"
