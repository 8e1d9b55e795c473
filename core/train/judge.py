"""What a run is judged by while it trains: when its end comes early, and what the model answers by now."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.plan.stopping import TITLES, score_words
from ollama_tune.core.train.checkpoint import TrainState
from ollama_tune.core.train.measure import SAMPLES, Held, question
from ollama_tune.core.train.session import Session

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.generate import Generator
    from ollama_tune.core.plan.utilisation import Utilisation
    from ollama_tune.core.train.score import Scorer

LEAST_FALL = 1e-3
"""A held-out loss that is lower by a smaller share than this has not fallen: the rest is chance."""
SAMPLE_TOKENS = 48
SAMPLE_SHARE = 0.02
"""Of the time spent in steps, for the answers in between; the last token of one may take it to 3 %."""
SAMPLE_SECONDS = 2.0
"""For them in any case: else a run of some seconds would show no more than their first words."""


def is_better(
    loss: float, best: float | None, score: float | None = None, best_score: float | None = None
) -> bool:
    """True when a measurement is the best so far: by the score where there is one (the higher the better),
    else and between equal scores by the held-out loss; one that is not a number never is."""
    if not math.isfinite(loss):
        return False
    if score is not None and best_score is not None and score != best_score:
        return score > best_score
    return best is None or loss < best


@dataclass(frozen=True)
class Patience:
    """When a run ends whose held-out loss no longer falls: after `evaluations` without a better one; 0 never.

    Evaluations up to `first_step` do not count: the rate still rises, or the rows were not all seen once.
    Everything else stands in the `TrainState`, so that a resumed run ends at the same step.
    """

    evaluations: int
    first_step: int

    @classmethod
    def of(cls, training: TrainingSettings, total_steps: int) -> Patience:
        """By the settings; the first epoch counts as a beginning, but at most half of the run."""
        epoch = min(math.ceil(total_steps / training.epochs), total_steps // 2)
        return cls(training.early_stopping, max(math.ceil(training.warmup * total_steps), epoch))

    def note(self, state: TrainState, loss: float | None, score: float | None = None) -> None:
        """Take in what was measured at `state.step`; a loss of None (nothing was) changes nothing."""
        if loss is None:
            return
        if _clearly_better(state, loss, score):
            state.fallen_step, state.fallen_loss, state.without_better = state.step, loss, 0
            state.fallen_score = score
        elif state.step > self.first_step:
            state.without_better += 1

    def ended(self, state: TrainState) -> bool:
        """True when the run shall train no further."""
        return 0 < self.evaluations <= state.without_better


def _clearly_better(state: TrainState, loss: float, score: float | None) -> bool:
    """By more than chance than the last that was so; equal scores are told apart by the loss."""
    if state.fallen_loss is None:
        return True
    before = state.fallen_score
    if score is not None and before is not None and abs(score - before) > LEAST_FALL * before:
        return score > before
    return loss < state.fallen_loss * (1 - LEAST_FALL)


class Samples:
    """Asks the model a few held-out questions in between, in a fixed share of the training's time.

    Besides the first two seconds, steps earn the time that answers spend; answers end when it is spent.
    """

    def __init__(
        self, session: Session, held: Held, generator: Generator, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._held = Held(held.rows[:SAMPLES], held.prompts[:SAMPLES])
        self._generator = generator
        self._clock = clock
        self._base: dict[str, str | None] | None = None
        self._limit = min(SAMPLE_TOKENS, session.settings.evaluation.max_new_tokens)
        self.credit = SAMPLE_SECONDS

    def earn(self, seconds: float) -> None:
        """Count the seconds of a step."""
        self.credit += SAMPLE_SHARE * seconds

    def ask(self, step: int) -> None:
        """Write a `sample` event a question; nothing where the last answers cost more than was earned."""
        if self.credit <= 0 or not self._held.rows:
            return
        began = self._clock()
        end = began + self.credit
        answers = self._generator.greedy(
            self._held.prompts,
            self._limit,
            tuned=True,
            stopped=lambda: self._clock() > end or self._session.stopped(),
        )
        self.credit -= self._clock() - began
        for row, answer in zip(self._held.rows, answers, strict=True):
            asked = question(row)
            self._session.emit(
                "sample",
                step=step,
                prompt=asked,
                reference=row.answer,
                base=self._known().get(asked),
                tuned=answer.text,
                cut=not answer.ended,
            )

    def _known(self) -> dict[str, str | None]:
        """What the base model answered, read from the log once."""
        if self._base is None:
            events = self._session.folder.events()
            self._base = {e["prompt"]: e["base"] for e in events if e.kind == "sample" and e["base"]}
        return self._base


class Judge:
    """Told of every step and evaluation by the loop; what it decides stands in the `TrainState`."""

    def __init__(self, session: Session, total_steps: int) -> None:
        self._session = session
        self._total_steps = total_steps
        self._patience = Patience.of(session.settings.training, total_steps)
        self._samples: Samples | None = None
        self._scorer: Scorer | None = None
        self.utilisation: Utilisation | None = None
        """Set where the card's rate is known; the steps then tell their share of it."""

    def ask(self, held: Held, generator: Generator) -> None:
        """From now on ask these questions at every evaluation."""
        self._samples = Samples(self._session, held, generator)

    def score_by(self, scorer: Scorer) -> None:
        """From now on this decides which state is best, in place of the held-out loss."""
        self._scorer = scorer

    def step(self, useful_tokens: int, seconds: float) -> dict[str, Any]:
        """Count a step; returns further fields of its `step` event."""
        if self._samples is not None:
            self._samples.earn(seconds)
        share = self.utilisation.share(useful_tokens, seconds) if self.utilisation else None
        return {} if share is None else {"mfu": round(share, 4)}

    def measured(self, state: TrainState, loss: float | None) -> tuple[bool, dict[str, Any]]:
        """Take in the held-out loss of `state.step` (None where nothing is held out), score it where a metric
        decides, and note it; whether this is the best state so far, and fields of the `evaluation` event."""
        score = self._scorer.score() if self._scorer is not None and loss is not None else None
        best = loss is None or is_better(loss, state.best_loss, score, state.best_score)
        if best:
            state.best_step, state.best_loss, state.best_score = state.step, loss, score
        self._patience.note(state, loss, score)
        told = {
            "best_step": state.best_step,
            "best_loss": state.best_loss,
            "without_better": state.without_better,
            "patience": self._patience.evaluations,
        }
        return best, told | self._scored(state, score)

    def _scored(self, state: TrainState, score: float | None) -> dict[str, Any]:
        if self._scorer is None or score is None:
            return {}
        found = {"metric": self._scorer.metric.name, "score": score, "best_score": state.best_score}
        return found | {"score_rows": self._scorer.rows}

    def sample(self, state: TrainState) -> None:
        """Ask the model what it answers by now; not at the end, where all questions are asked."""
        if self._samples is not None and state.step < self._total_steps and not self.ended(state):
            self._samples.ask(state.step)

    def ended(self, state: TrainState) -> bool:
        """True when the run shall train no further although steps are left."""
        return self._patience.ended(state)

    def reason(self, state: TrainState) -> str | None:
        """Why a run ended before its last step, in a sentence with the figures; None where it did not."""
        if not self.ended(state) or state.step >= self._total_steps:
            return None
        count = "1 evaluation" if state.without_better == 1 else f"{state.without_better} evaluations"
        metric = self._scorer.metric.name if self._scorer is not None else "loss"
        what, verb = TITLES[metric], "fallen" if metric == "loss" else "risen"
        before = _figure(metric, state.fallen_loss, state.fallen_score)
        best = _figure(metric, state.best_loss, state.best_score)
        return (
            f"The {what} has not {verb} since step {state.fallen_step} ({before}) in {count}, so training "
            f"ends at step {state.step}; the best state, of step {state.best_step}, is kept ({best})."
        )


def _figure(metric: str, loss: float | None, score: float | None) -> str:
    """What decides, in words: the score where there is one."""
    return f"{loss:.4f}" if score is None else score_words(metric, score)


def in_parts(figures: dict[str, Any], fixed: dict[str, int]) -> dict[str, Any]:
    """The fields of a `memory` event: what stays through the run by part, and what the steps add to it.

    `activations` is the peak less all fixed parts: what the forward pass keeps, and what kernels need for a
    moment. On a GPU that is the peak of tensors (`allocated`); what the allocator holds besides is `cache`.
    """
    peak = int(figures["peak"])
    allocated = int(figures.get("allocated", peak))
    parts = fixed | {"activations": max(allocated - sum(fixed.values()), 0)}
    return figures | {"parts": parts | ({"cache": peak - allocated} if peak > allocated else {})}
