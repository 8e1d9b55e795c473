"""What is done when a loss or gradient is infinite or not a number: it must not spread, nor end the run.

Such a step changes no weight. If it happens again soon, or the weights themselves are no longer finite, the
run goes back to its last checkpoint and on with half the learning rate; when that has not helped three times,
the run ends as it was at its last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ollama_tune.core.errors import TuneError
from ollama_tune.core.train.checkpoint import Checkpoint, TrainState, newest
from ollama_tune.core.train.path import TrainPath
from ollama_tune.core.train.session import Session

SPAN = 50
"""Steps after which a step that was left out is forgotten."""
RETURNS = 3
"""How often the run goes back within them before it ends."""
LEAST_SCALE = 1.0
"""The scaler of float16 halves its factor at every infinite gradient; below this, that is not the cause."""


class NotFinite(TuneError):
    """Going back did not help; the last checkpoint is as good as it was."""

    @classmethod
    def at(cls, step: int, what: str, rate: float) -> NotFinite:
        """The error of a step, counted from 1, at a learning rate that was halved already."""
        return cls(
            f"In step {step} the {what} is infinite or not a number once more, although the run went back "
            f"{RETURNS} times.",
            f"Start a run with a learning rate below {rate:.2g}, and with bfloat16 or float32 if this one "
            "used float16; the last checkpoint can still be resumed or exported.",
        )


def not_finite(loss: float, norm: float, scale: float | None) -> str | None:
    """Which of a step's results is infinite or not a number, in a word; None where all is well.

    With a scaler (`scale`, float16 only) an infinite gradient is its own business: it leaves the step out and
    takes a smaller factor.
    """
    if not math.isfinite(loss):
        return "loss"
    scaled = scale is not None and scale >= LEAST_SCALE
    return None if math.isfinite(norm) or scaled else "gradient"


class Guard:
    """Decides about steps whose loss or gradient is not finite, says so, and knows what to go back to.

    All that it remembers stands in the `TrainState`: `not_finite`, such steps among the last 50, and
    `rate_factor`, which every learning rate is multiplied with. So a resumed run decides the same.
    """

    def __init__(self, session: Session, path: TrainPath) -> None:
        self._session = session
        self._path = path
        self._start: Callable[[], None] | None = None

    def remember_start(self) -> None:
        """Keep a way back to the weights before the first step, until there are checkpoints to go back to."""
        self._start = self._path.way_back()

    def leave_out(self, state: TrainState, step: int, what: str) -> bool:
        """Note that a step (counted from 1) was not finite; True where it is left out, False to go back.

        Weights that are damaged themselves are not mended by leaving a step out. Raises `NotFinite` when
        going back did not help.
        """
        recent, damaged = [old for old in state.not_finite if step - old < SPAN], not self.sound()
        state.not_finite = [*recent, step]
        if len(recent) + damaged > RETURNS:
            raise NotFinite.at(step, what, self._session.settings.training.learning_rate * state.rate_factor)
        if recent or damaged:
            state.rate_factor /= 2
            return False
        self._session.warn(
            f"In step {step} the {what} was infinite or not a number, so this step changed nothing.",
            f"Nothing has to be done: if it happens again within {SPAN} steps, the run goes back to a "
            "checkpoint and on with half the learning rate.",
        )
        return True

    def sound(self) -> bool:
        """Whether every trained weight is a finite number."""
        return all(bool(weight.isfinite().all()) for weight in self._path.weights.values())

    def may_save(self, step: int) -> bool:
        """False, and told, where the weights must not take the place of good ones on the disk."""
        if self.sound():
            return True
        self._session.warn(
            f"At step {step} weights are infinite numbers or none at all, so no checkpoint is written.",
            "Nothing has to be done: the run goes on from the checkpoint before.",
        )
        return False

    def refuge(self, state: TrainState) -> Checkpoint | None:
        """The newest checkpoint from before the step that was not finite first; None for the beginning.

        The one of just that step would only do the same again, so it is taken where there is no other.
        """
        first = state.not_finite[0]
        found, _ = newest(self._session.folder, below=first - 1)
        if found is None and self._start is None:
            found, _ = newest(self._session.folder)
        return found

    def load_start(self) -> None:
        """Put the weights of the beginning back."""
        assert self._start is not None
        self._start()

    def tell_return(self, step: int, what: str, state: TrainState) -> None:
        """Say that and where to the run went back because of a step."""
        place = f"the checkpoint of step {state.step}" if state.step else "the beginning"
        rate = self._session.settings.training.learning_rate * state.rate_factor
        again = " again" if len(state.not_finite) > 1 else ""
        self._session.emit(
            "warning",
            what=f"In step {step} the {what} was infinite or not a number{again}: the run went back to "
            f"{place} and goes on with half the learning rate, at most {rate:.3g}.",
            fix="Nothing has to be done; a run with a lower learning rate from its start may end better.",
            back_to=state.step,
        )

    def saved(self) -> None:
        """A checkpoint was written: with two of them the weights of the beginning are not needed."""
        if self._start is not None and len(list(self._session.folder.checkpoints.glob("step-*"))) > 1:
            self._start = None
