"""The three-point search of a learning rate in words: what it costs, how far it is, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_tune.core.text import human_estimate

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Lengths
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.values import ModelSpec
    from ollama_tune.core.plan.values import Choice, Plan
    from ollama_tune.core.runs.rates import Outcome, RateSearch, Tried

LETTERS = "ABCDE"
STATES = {"waiting": "to come", "going": "going", "done": "", "failed": "failed"}
ABOUT = (
    "A learning rate that is far too low or too high is the usual reason of a bad run, and the first steps "
    "show it."
)


def search_of(plan: Plan, recommended: Mapping[str, Choice]) -> RateSearch:
    """The search around the recommended rate, also where the person has set another one."""
    from ollama_tune.core.runs.rates import RATE, make_search

    wanted = recommended.get(RATE)
    return make_search(plan.settings, plan.work.steps, float(wanted.value) if wanted is not None else None)


def seconds_of(
    search: RateSearch, spec: ModelSpec, lengths: Lengths, machine: Machine
) -> tuple[float, float]:
    """How long all short runs take together, and by which factor that may be wrong."""
    from ollama_tune.core.plan.duration import estimate

    work = estimate(search.counted, spec, lengths, machine)
    return work.seconds * search.points, work.spread


def cost_line(search: RateSearch, seconds: float, spread: float) -> str:
    """`Three runs of 24 steps with 6.7e-05, 0.0002 and 0.0006: about 2 min (1 to 4 min).`"""
    *others, last = (f"{rate:g}" for rate in search.rates)
    low, high = human_estimate(seconds / spread), human_estimate(seconds * spread)
    names = f"{', '.join(others)} and {last}"
    return (
        f"{search.points} short runs of {search.short} steps, with {names}: about "
        f"{human_estimate(seconds)} together ({low} to {high})."
    )


def table_lines(search: RateSearch, tried: Sequence[Tried], found: Outcome | None) -> list[str]:
    """A line a rate: how far it is, its losses, and whether it is the recommended one or the best."""
    lines = [f"{'':<3}{'rate':<10}{'steps':<10}{'loss':>8}{'held-out':>10}"]
    for letter, point in zip(LETTERS, tried, strict=False):
        steps = f"{point.step} of {point.steps}"
        loss = f"{point.train[-1][1]:.4f}" if point.train else "–"
        held = f"{point.held_out[-1][1]:.4f}" if point.held_out else "–"
        waits = "waits" if point.state == "waiting" and point.step else STATES[point.state]
        signs = [waits] if waits else []
        signs += ["recommended"] if point.rate == search.middle else []
        signs += ["best"] if found is not None and point.rate == found.rate else []
        line = f"{letter:<3}{point.rate:<10g}{steps:<10}{loss:>8}{held:>10}   {', '.join(signs)}"
        lines.append(line.rstrip())
    return lines


def waiting_line(name: str) -> str:
    """What the short runs wait for, and why."""
    return (
        f"They wait until {name} has ended, for two at once would share cores and memory; then they go on by "
        "themselves."
    )


def outcome_line(found: Outcome) -> str:
    """The best rate with its reason."""
    return f"Take {found.rate:g}: {found.reason}"


def tried_json(point: Tried) -> dict[str, Any]:
    """A rate for programs."""
    return {
        "rate": point.rate,
        "state": point.state,
        "step": point.step,
        "steps": point.steps,
        "loss": point.loss,
        "held_out": [list(pair) for pair in point.held_out],
    }
