"""How fast a run trains, how long it took so far, and when its last step is expected."""

from __future__ import annotations

from collections import deque

WINDOW = 32
LEAST_STEPS = 2
"""Steps of this start before the time left is told."""


class Pace:
    """Times of a run over all its starts. Unix seconds; what it waited in a pause is no training time.

    The pace is the mean since this start with its evaluations and checkpoints, but without what is done
    once only (asking the base model), for that does not come again.
    """

    def __init__(self) -> None:
        self._speeds: deque[tuple[float, float, float | None]] = deque(maxlen=WINDOW)
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)
        self._banked = 0.0
        self._began: float | None = None
        self._paused: float | None = None
        self._once: float | None = None

    @property
    def running(self) -> bool:
        """True from the first step of this start on."""
        return self._first is not None

    def start(self, now: float) -> None:
        """A worker took the run."""
        self._began, self._first = now, None
        self._speeds.clear()

    def step(self, now: float, step: int, tokens: float, seconds: float, mfu: float | None) -> None:
        """One step was done, with so many useful tokens."""
        if self._first is None:
            self._first = now, step
        self._last = now, step
        self._speeds.append((tokens, seconds, mfu))

    def back(self) -> None:
        """The run went back to an earlier step."""
        self._first = None

    def pause(self, now: float) -> None:
        """It waits."""
        self._paused = now

    def go_on(self, waited: float) -> None:
        """It goes on."""
        self._paused = None
        if self._began is not None:
            self._began += waited
        self._leave_out(waited)

    def once(self, now: float) -> None:
        """Work began that is done once in a run's life, or (with the next call of `every`) ended."""
        self._once = now

    def every(self, now: float) -> None:
        """The usual work goes on."""
        if self._once is not None:
            self._leave_out(max(now - self._once, 0.0))
        self._once = None

    def _leave_out(self, seconds: float) -> None:
        if self._first is not None:
            self._first = self._first[0] + seconds, self._first[1]
            self._last = self._last[0] + seconds, self._last[1]

    def end(self, now: float) -> None:
        """The worker is gone, or done with training."""
        if self._began is not None:
            self._banked += max((now if self._paused is None else self._paused) - self._began, 0.0)
        self._began = self._paused = self._once = None

    def elapsed(self, now: float) -> float:
        """Seconds spent on training over all starts."""
        if self._began is None:
            return self._banked
        return self._banked + max((now if self._paused is None else self._paused) - self._began, 0.0)

    def finish(self, total: int) -> float | None:
        """When the last of `total` steps is expected; None until two steps of this start are known."""
        if self._first is None:
            return None
        (since, first), (last, step) = self._first, self._last
        if step - first < LEAST_STEPS - 1:
            return None
        return last + max(last - since, 0.0) / (step - first) * (total - step)

    @property
    def tokens_per_second(self) -> float | None:
        """Useful tokens a second over the last 32 steps."""
        seconds = sum(second for _, second, _ in self._speeds)
        return sum(tokens for tokens, _, _ in self._speeds) / seconds if seconds > 0 else None

    @property
    def mfu(self) -> float | None:
        """The share of the card's arithmetic that the last 32 steps used; None where it is not known."""
        known = [(share, second) for _, second, share in self._speeds if share is not None]
        seconds = sum(second for _, second in known)
        return sum(share * second for share, second in known) / seconds if seconds > 0 else None
