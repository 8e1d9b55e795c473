"""What the training changed: the figures and answers of the base and of the tuned model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.runs.events import Event


@dataclass(frozen=True)
class Figures:
    """What was measured of one model; a share from 0 to 1, loss in nats a token, None where not measured."""

    exact_match: float | None
    loss: float | None


@dataclass(frozen=True)
class Sample:
    """One held-out question with the wanted answer and both models' answers."""

    prompt: str
    reference: str
    base: str | None
    tuned: str | None


@dataclass(frozen=True)
class Comparison:
    """Before and after; `rows` is how many held-out rows were answered.

    `preferred` is the share of held-out pairs whose better answer gained more than the worse one; None where
    no preferences were learned.
    """

    base: Figures
    tuned: Figures
    rows: int
    samples: tuple[Sample, ...]
    preferred: float | None = None


def compare(events: Sequence[Event]) -> Comparison:
    """Collect the comparison from a run's log; later measurements replace earlier ones."""
    samples: dict[str, Sample] = {}
    for event in events:
        if event.kind == "sample":
            new = Sample(event["prompt"], event["reference"], event["base"], event["tuned"])
            samples[new.prompt] = new
    measured = [event for event in events if event.kind == "evaluation"]
    answered = [event for event in measured if event["exact_match"] is not None]
    return Comparison(
        base=_figures([event for event in measured if event["model"] == "base"]),
        tuned=_figures([event for event in measured if event["model"] == "tuned"]),
        rows=int(answered[-1]["rows"]) if answered else 0,
        samples=tuple(samples.values()),
        preferred=next((e["reward_accuracy"] for e in measured[::-1] if "reward_accuracy" in e.data), None),
    )


def _figures(events: Sequence[Event]) -> Figures:
    def last(name: str) -> float | None:
        return next((event[name] for event in reversed(events) if event[name] is not None), None)

    return Figures(exact_match=last("exact_match"), loss=last("loss"))
