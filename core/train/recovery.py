"""Out of memory is an event, not an end: what failed is done again in a way that needs less.

A window (all micro-batches of one optimizer step) is redone as a whole, with fewer rows at once. The loss
is divided by the supervised tokens of the window, so its value and gradient stay the same up to rounding.
When one row at a time does not fit, activations are recomputed, then kept in the computer's memory, and at
last the process begins again from a checkpoint: a fresh process has no fragmented memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, TypeVar

import psutil

from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.host import read_memory
from ollama_tune.core.plan.settings import Recompute
from ollama_tune.core.text import human_bytes, human_rows
from ollama_tune.core.train.checkpoint import TrainState
from ollama_tune.core.train.path import STEPS_DOWN
from ollama_tune.core.train.session import Session, peak_memory
from ollama_tune.core.train.shortage import Shortage, free_memory, halved, is_out_of_memory

T = TypeVar("T")
Rows = Sequence[Sequence[int]]

PATIENCE = 3
"""That many windows without memory ..."""
SPAN = 50
"""... among so many steps keep the smaller micro-batch for good; a restart counts as new after as many."""
LOOK = 1.0
"""Seconds between two looks at the computer's free memory."""
LEAST_FREE = 192 << 20
"""The kernel begins to end processes when about that much is left."""
SAME = "rows a step stay the same."
RECOMPUTED: dict[Recompute, str] = {
    "mlp": "the feed-forward parts are recomputed in the backward pass, which takes a little longer.",
    "layers": "activations are recomputed in the backward pass, which takes longer.",
    "offload": "activations are kept in the computer's memory, which takes longer.",
}


class OutOfMemory(TuneError):
    """Every way to need less was tried."""

    @classmethod
    def at(cls, step: int) -> OutOfMemory:
        """The error of a step, counted from 1."""
        return cls(
            f"The memory of the device does not suffice for one row in step {step}.",
            "Close other programs on it and resume the run, or start one with a smaller sequence_length.",
        )


class Restart(Exception):
    """Nothing is left but to begin again from the checkpoint in a fresh process."""


def split(window: Rows, rows: int) -> list[Sequence[int]]:
    """The same rows in the same order, at most `rows` at once."""
    return [batch[start : start + rows] for batch in window for start in range(0, len(batch), rows)]


class Recomputes(Protocol):
    """What can keep less for the backward pass."""

    def recompute(self, what: Recompute) -> None:
        """From now on do so; a second call changes nothing."""


class Recovery:
    """Does the work of a run such that running out of memory does not end it.

    What is kept for good stands in `state` (a `TrainState`), which checkpoints carry along: `micro_batch`
    and `recompute`. `discard` forgets a half-done window: gradients and the like. `changed` is True when
    something was changed for good since the last checkpoint. `steps_down` are the ways to keep less for
    the backward pass; where the CPU trains its memory is no other place to keep something.
    """

    def __init__(
        self,
        session: Session,
        path: Recomputes,
        state: TrainState,
        discard: Callable[[], None],
        most_rows: int | None = None,
    ) -> None:
        import torch

        self._session = session
        self._training = session.settings.training
        self.most_rows = most_rows or self._training.batch_size
        self._path = path
        self._discard = discard
        self._looked = 0.0
        self._warned = False
        self._peak = peak_memory()
        self._one = torch.ones(())
        self._older = self._one.clone().requires_grad_() * 1
        self.state = state
        self.changed = False
        self.evaluation_rows = self._training.batch_size
        self.steps_down = STEPS_DOWN[: -1 if self._training.device == "cpu" else None]

    @property
    def micro_batch(self) -> int:
        """Rows computed at once, as far as it was settled for good."""
        return self.state.micro_batch or self.most_rows

    @property
    def recompute(self) -> Recompute:
        """What the backward pass computes again, by the settings or since memory ran out."""
        return self.state.recompute or self._training.gradient_checkpointing

    def adopt(self, state: TrainState) -> None:
        """Go on with a checkpoint's state: what was changed for good stays changed."""
        self.state = state
        self._path.recompute(self.recompute)

    def window(self, step: int, window: Rows, work: Callable[[Rows], T]) -> T:
        """Let `work` compute the window of a step (counted from 1), in smaller parts where it must be.

        `work` gets the micro-batches, seeds its random numbers itself and leaves nothing behind when it
        fails but what `discard` forgets. Raises `Restart` or, after one, `OutOfMemory` when nothing helps.
        """
        rows = most = min(max(map(len, window)), self.micro_batch)
        free = self._little_left()
        if free is not None:
            rows = self._early(step, rows, free)
        failed = False
        while True:
            try:
                result = work(split(window, rows))
                if failed or rows < most:
                    self._note(step, rows, most)
                return result
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                shortage = Shortage.of(error, self._training.device)
            failed = True
            self._discard()
            self.drain()
            free_memory()
            rows = self._need_less(step, rows, shortage)

    def drain(self) -> None:
        """Let autograd drop what a failed backward pass left in this thread's queue, with all it refers to.

        It pops later operations first, so a graph older than every window gets its turn when the queue is
        empty (measured: without this the tensors of a failed backward pass live on).
        """
        self._older.backward(self._one, retain_graph=True)  # type: ignore[no-untyped-call]

    def _need_less(self, step: int, rows: int, shortage: Shortage) -> int:
        """Take the next rung of the ladder and say so; returns the rows to compute at once now."""
        if rows > 1:
            after = halved(rows)
            change = f"the step is done again with {human_rows(after)} at once instead of {rows}."
            self._tell("training", step, change, shortage, before=rows, after=after)
            return after
        what = self._keep_less()
        if what is None:
            self._begin_again(step, shortage)
        change = f"from now on {what}"
        self._tell("training", step, change, shortage, before=1, after=1, kept=True)
        return 1

    def _begin_again(self, step: int, shortage: Shortage) -> NoReturn:
        """Mark the restart in the state, once in `SPAN` steps; else there is nothing left to try."""
        before = self.state.restarted_at
        if before is not None and step - 1 - before < SPAN:
            self._tell("training", step, None, shortage, before=1, after=None)
            raise OutOfMemory.at(step)
        self.state.restarted_at, self.state.micro_batch = step - 1, 1
        change = "the worker begins again from a checkpoint of this step, one row at a time."
        self._tell("training", step, change, shortage, before=1, after=1, kept=True)
        raise Restart

    def cheaper(self) -> str | None:
        """Settle for less from the start: fewer rows at once, then kept; what, None if neither."""
        rows = self.micro_batch
        if rows > 1:
            self.state.micro_batch = halved(rows)
            what = f"{human_rows(halved(rows))} at once are computed instead of {rows}; {SAME}"
            self.changed = True
            return what
        return self._keep_less()

    def _keep_less(self) -> str | None:
        """Take the next step down of what is kept for the backward pass; what, None at the lowest."""
        below = self.steps_down[STEPS_DOWN.index(self.recompute) + 1 :]
        if not below:
            return None
        self.state.recompute, self.changed = below[0], True
        self._path.recompute(below[0])
        return RECOMPUTED[below[0]]

    def _note(self, step: int, rows: int, most: int) -> None:
        """Remember a window that needed less; the third among 50 steps settles it for good."""
        recent = [*(old for old in self.state.shortages if step - old < SPAN), step]
        self.state.shortages = recent
        if len(recent) < PATIENCE or rows >= most:
            return
        self.state.shortages, self.state.micro_batch, self.changed = [], rows, True
        change = f"from now on {human_rows(rows)} at once are computed instead of {most}; {SAME}"
        self._tell("training", step, change, None, before=most, after=rows, kept=True)

    def evaluation(self, step: int, work: Callable[[int], T]) -> T | None:
        """Let `work` measure with so many rows at once; anew with half of them if that is too much.

        The smaller batch stays for later evaluations and never touches the training's. None when not even
        one row fits: then this evaluation is left out.
        """
        while True:
            rows = self.evaluation_rows
            try:
                return work(rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                shortage = Shortage.of(error, self._training.device)
            free_memory()
            after = halved(rows)
            change = f"the evaluation is done again with {human_rows(after)} at once instead of {rows}."
            if rows == 1:
                change = "the evaluation is left out, because not even one row at once fits."
            self._tell("evaluation", step, change, shortage, before=rows, after=after)
            if rows == 1:
                return None
            self.evaluation_rows = after

    def answers(self, before: int, after: int, shortage: Shortage) -> None:
        """Tell that answers are written for fewer questions at once; `after` 0 leaves one without answer."""
        change = f"{after} questions at once are answered instead of {before}."
        if not after:
            change = "one question is left without an answer, because not even it alone fits."
        self._tell("answers", self.state.step, change, shortage, before=before, after=after)

    def twice(self, name: str, step: int, work: Callable[[], T], given_up: str) -> T | None:
        """Let `work` do what the run can go on without, twice if memory ran out; None if it did again."""
        for attempt in range(2):
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                shortage = Shortage.of(error, self._training.device)
            free_memory()
            self._tell(name, step, given_up if attempt else "it is tried once more.", shortage)
        return None

    def tell_probe(self, change: str, shortage: Shortage, before: int) -> None:
        """Tell that the probe at the start ran out of memory and what was chosen instead."""
        self._tell(
            "probe", self.state.step, change, shortage, before=before, after=self.micro_batch, kept=True
        )

    def _tell(
        self,
        work: str,
        step: int,
        change: str | None,
        shortage: Shortage | None,
        *,
        before: int | None = None,
        after: int | None = None,
        kept: bool = False,
    ) -> None:
        self._session.emit(
            "out_of_memory",
            work=work,
            step=step,
            change=change and change[0].upper() + change[1:],
            batch_before=before,
            batch_after=after,
            kept=kept,
            allocated=shortage.allocated if shortage else None,
            free=shortage.free if shortage else None,
            wish=shortage.wish if shortage else None,
        )

    def _little_left(self) -> int | None:
        """The computer's free memory where it is less than a step has needed besides what is held already.

        Only where the CPU trains: there the kernel would end the process without a word. Looked at once a
        second; a step's need is the most this process ever held, if that was not while it loaded the model,
        less what it holds now.
        """
        if self._training.device != "cpu" or time.monotonic() - self._looked < LOOK:
            return None
        self._looked = time.monotonic()
        peak, free = peak_memory(), read_memory()[0]
        need = peak - psutil.Process().memory_info().rss if peak > self._peak else 0
        if free < LEAST_FREE + max(need, 0):
            return free
        self._warned = False
        return None

    def _early(self, step: int, rows: int, free: int) -> int:
        """Fewer rows at once before the kernel ends the process; returns how many."""
        after = halved(rows)
        if after == rows and self._warned:
            return rows
        self._warned = True
        fix = f"It is computed with {human_rows(after)} at once instead of {rows}; close other programs."
        if after == rows:
            fix = "Close other programs, or the system may end the run; it can be resumed then."
        self._session.warn(f"Only {human_bytes(free)} of memory are free at step {step}.", fix)
        return after
