"""The coach: one sentence on what the curves of a run mean now, and what to do about it.

It looks at the buckets of the curves (`LossCurve`) and at the held-out measurements, never at a single step.
A difference counts only where it is larger than a few standard errors, so that noise does not turn a
verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ollama_tune.core.text import human_count
from ollama_tune.tui.course import Block, Course, Held, Jumps, Level, blocks_of
from ollama_tune.tui.run_view import RunView

FIRST_STEPS = 12
FIRST_SHARE = 0.08
"""Nothing is judged before so many steps, nor before this share of all: the rate still rises."""
LATE = 0.25
SHORT = 40
"""That a loss does not fall, or not much, is said only after this share of the steps; and before so many
only of a run that is over: the steps of a short run scatter more than they fall."""
SURE = 4.0
"""Standard errors that a difference must have to count."""
CLEAR = math.log(1.03)
"""A change by less is nothing to act on."""
UNSURE = 0.3
"""Two standard errors so wide (as a logarithm) hide whether a loss still falls."""
FLAT = 0.03
"""A loss that fell by a smaller share has not learned."""
SLOW = 0.25
SLOW_HALF = 0.22
"""One that falls by less than the first share of its start in a whole run, and did that part of it in the
later half, learns slowly: with a good rate the steepest fall comes first."""
LOW = 0.05
HELD_LOW = 0.15
"""Losses (nats a token) below which nearly every token is known: of the training rows, of the held-out."""
TOOK_BACK = 0.15
"""A loss that took back this share of its fall is rising."""
JUMP = 8.0
MANY = 3
"""A gradient norm so many times the usual one is a jump; so many jumps are no accident."""
WILD = 30.0
"""Two jumps, one of them so high, come from a learning rate that is too high."""
LOW_RATE = 1e-4


@dataclass(frozen=True)
class Advice:
    """What the curves mean now (at most 80 characters) and what to do. `kind` names the verdict for programs.

    The sign is `✓` (well), `·` (nothing to act on), `!` (look at it) or `✗` (this leads nowhere).
    """

    sign: str
    sentence: str
    advice: str
    kind: str


@dataclass(frozen=True)
class Seen:
    """What the checks see of a run: levels of its losses, held-out measurements and gradient norms."""

    view: RunView
    blocks: list[Block]
    course: Course
    held: Held | None
    base: float | None
    jumps: Jumps

    @classmethod
    def at(cls, view: RunView, blocks: list[Block]) -> Seen:
        """Of a run with at least eight blocks of steps."""
        losses = ((at, point.loss) for at, point in view.validation.items())
        found = sorted((at, loss) for at, loss in losses if isinstance(loss, (int, float)))
        points = [(at, loss) for at, loss in found if at and math.isfinite(loss)]
        base = found[0][1] if found and not found[0][0] else None
        norms = blocks_of(view.norms)
        warm = len(norms) * FIRST_SHARE * max(view.total_steps / max(view.step, 1), 1.0)
        jumps = Jumps.of(norms[math.ceil(warm) :], JUMP)
        return cls(view, blocks, Course.of(blocks), Held.of(points) if points else None, base, jumps)

    @property
    def over(self) -> bool:
        """True when training came to its end."""
        return self.view.trained

    @property
    def rate(self) -> float:
        """The highest learning rate so far."""
        return max((bucket.high for bucket in self.view.rates.buckets if bucket.count), default=0.0)

    @property
    def now(self) -> float:
        """The training loss now."""
        return self.course.now.loss

    @property
    def known(self) -> bool:
        """True where the training loss has been low, and is not far from there."""
        return self.course.low.loss <= LOW and self.now <= 2 * LOW

    @property
    def best_step(self) -> int:
        """The step whose state is kept: the best by what decides."""
        assert self.held is not None
        return self.view.scored.best_step if self.view.scored is not None else self.held.best_step

    @property
    def decides(self) -> str:
        """What decides which state is best."""
        return self.view.scored.title if self.view.scored is not None else "held-out loss"

    @property
    def early(self) -> bool:
        """True while it cannot be said that the loss does not fall."""
        return not self.over and self.view.step < max(LATE * self.view.total_steps, SHORT)

    @property
    def compared(self) -> bool:
        """True where the held-out loss is known before training and since."""
        return self.held is not None and bool(self.base) and math.isfinite(self.base or 0.0)

    @property
    def held_fell(self) -> bool:
        """True where the held-out loss is clearly below the base model's."""
        return self.compared and self.held is not None and self.held.last < (1 - FLAT) * (self.base or 0.0)

    @property
    def fell(self) -> bool:
        """True where the training loss is lower than at the start by more than chance."""
        return self.course.start.above(self.course.now, 3) and self.course.fall >= FLAT

    @property
    def nothing(self) -> bool:
        """True where neither loss fell, and it is known well enough: on the held-out rows, else by a training
        loss that scatters little."""
        if self.held_fell or self.fell:
            return False
        doubt = 2 * math.hypot(self.course.start.error, self.course.now.error)
        return self.compared or self.course.start.value - self.course.now.value + doubt < 2 * CLEAR

    def level_near(self, step: float) -> Level:
        """The training loss around a step."""
        nearest = sorted(self.blocks, key=lambda block: abs(block.at - step))[:3]
        return Level.of(nearest, self.course.start.error)


Check = Callable[[Seen], Advice | None]


def advise(view: RunView) -> Advice | None:
    """The verdict on a run as its view stands; None before the first step, or for an adapter from elsewhere.

    Pure, and cheap enough for every redraw (`tests/bench/coach.py` says how long it takes and how often it
    is wrong).
    """
    if not view.step or not view.losses.buckets:
        return None
    if view.loss is None and not view.trained:
        return _not_a_number(view)
    blocks = blocks_of(view.losses)
    if len(blocks) < 8 or (view.step < FIRST_STEPS and not view.trained):
        return _few(view) if view.trained else _started(view)
    seen = Seen.at(view, blocks)
    if view.step < FIRST_SHARE * view.total_steps and not view.trained:
        return _so_far(seen)
    return next(advice for check in CHECKS if (advice := check(seen)) is not None)


def _not_a_number(view: RunView) -> Advice:
    return Advice(
        "✗",
        f"The loss of step {view.step:,} is not a number: the figures grew too large.",
        "The run mends this by itself; if it comes again, take a lower learning rate.",
        "not_a_number",
    )


def _started(view: RunView) -> Advice:
    words = f"Too early to say how it goes: step {view.step:,} of {view.total_steps:,}."
    return Advice("·", words, "Nothing to do yet.", "started")


def _few(view: RunView) -> Advice:
    """The end of a handful of steps: only the held-out rows can say something of them."""
    after = f"Finished after {view.step:,} step{'s' if view.step > 1 else ''}"
    losses = [point.loss for _, point in sorted(view.validation.items()) if point.loss is not None]
    if len(losses) < 2 or 0 not in view.validation:
        return Advice("·", f"{after}: too few to say how it went.", "Try it, and compare the answers.", "few")
    words = f"{after}: held-out loss {_figure(losses[0])} before, {_figure(losses[-1])} now."
    if losses[-1] < (1 - FLAT) * losses[0]:
        return Advice("·", words, "More epochs may bring more. Try it, and compare the answers.", "few")
    return Advice("!", words, "So few steps taught next to nothing: more epochs, or more rows.", "few")


def _so_far(seen: Seen) -> Advice:
    """Nothing to judge yet, or figures that scatter too much for it."""
    if not seen.fell:
        return _started(seen.view)
    words = f"So far: loss {seen.course.start.loss:.2f} at the start, {_figure(seen.now)} now."
    return Advice("·", words, "Nothing to do yet.", "started")


def _too_high(seen: Seen) -> Advice | None:
    """The loss rises, or the gradient jumps wildly while there is still much to learn."""
    course, jumps = seen.course, seen.jumps
    if seen.now < 2 * LOW:
        return None
    if _risen(course):
        at, low = f"{round(course.low_at):,}", f"{course.low.loss:.2f}"
        words = f"The loss rises: {low} around step {at}, {seen.now:.2f} now."
    elif jumps.count > 1 and jumps.times > WILD:
        words = f"The gradient jumps (to {_short(jumps.largest)}, usually {_short(jumps.usual)})."
    else:
        return None
    again = f"start again with {seen.rate / 3:.1g} or less (it was {seen.rate:.2g})."
    if seen.over:
        return Advice("✗", f"{words} Learning rate too high.", f"Better {again}", "too_high")
    return Advice("✗", f"{words} Learning rate too high.", f"Stop it and {again}", "too_high")


def _risen(course: Course) -> bool:
    back, fell = course.now.value - course.low.value, course.start.value - course.low.value
    clear = back > CLEAR and back > TOOK_BACK * max(fell, 0.0)
    return clear and course.now.above(course.low, SURE + 1)


def _learned(seen: Seen) -> Advice | None:
    """Both losses are next to nothing."""
    held = seen.held
    if not seen.known or held is None or held.best > HELD_LOW or held.last > 2 * HELD_LOW:
        return None
    words = f"Learned: loss {_figure(seen.now)}, on held-out rows {_figure(held.last)}."
    if seen.over:
        return Advice("✓", words, _best_is(seen), "learned")
    return Advice("✓", words, "More steps bring next to nothing; the best state is kept.", "learned")


def _overfitting(seen: Seen) -> Advice | None:
    """The held-out loss rises while the training loss falls."""
    held = seen.held
    if held is None or held.rise < max(CLEAR, 0.0 if held.climbs else SURE * held.noise):
        return None
    falls = seen.level_near(held.best_step).above(seen.course.now, 2) or seen.now < 0.7 * held.last
    if not falls:
        return None
    words = f"Overfitting since step {held.best_step:,}: held-out loss rises, training loss falls."
    kept = f"Step {seen.best_step:,} is kept."
    waits = seen.view.patience
    stops = waits is not None and waits.patience and not seen.over and seen.view.scored is None
    advice = f"{kept} {'Early stopping ends the run.' if stops else 'Next time fewer epochs, or more rows.'}"
    return Advice("!", words, advice, "overfitting")


def _by_heart(seen: Seen) -> Advice | None:
    """The training rows are known; what is held out is not, or nothing is."""
    awaited = seen.held is None and seen.view.validation_rows and not seen.over
    if not seen.known or awaited:
        return None
    held = f"; held-out {_figure(seen.held.last)}" if seen.held is not None else ""
    words = f"The training rows are known by heart (loss {_figure(seen.now)}{held})."
    return Advice("!", words, "More steps bring little; more varied rows would.", "by_heart")


def _flat(seen: Seen) -> Advice | None:
    """Nothing was learned, or next to nothing."""
    course, view = seen.course, seen.view
    if seen.early:
        return None
    steps = f"{course.start.loss:.2f} at the start, {seen.now:.2f} after {view.step:,} steps"
    if seen.nothing:
        return Advice("!", f"Nothing is learned: loss {steps}.", _try_higher(seen), "flat")
    fall, late = _shape(seen)
    if (seen.fell or seen.held_fell) and fall < _slow(view) and late > SLOW_HALF:
        return Advice("!", f"Learning is slow: loss {steps}.", _try_higher(seen), "slow")
    return None


def _slow(view: RunView) -> float:
    """The share by which a loss falls at the least by now where the learning rate is good."""
    return SLOW * min(view.step / max(view.total_steps, 1), 1.0)


def _shape(seen: Seen) -> tuple[float, float]:
    """How far the loss fell as a share, and which part of that in the later half; by the held-out rows where
    they were measured often enough, because they scatter less."""
    held, course = seen.held, seen.course
    if held is not None and held.points > 3 and seen.base and seen.held_fell:
        start, middle, now = math.log(seen.base), held.middle, math.log(held.last)
    else:
        start, middle, now = course.start.value, course.middle.value, course.now.value
    return 1 - math.exp(now - start), (middle - now) / (start - now) if start > now else 0.0


def _try_higher(seen: Seen) -> str:
    if seen.over and seen.view.step < SHORT:
        return f"More epochs, or a higher learning rate ({3 * seen.rate:.1g}), would go further."
    if seen.rate and seen.rate < LOW_RATE:
        return f"The learning rate ({seen.rate:.2g}) is small: try {10 * seen.rate:.1g}."
    return f"Try a higher learning rate ({3 * seen.rate:.1g}), or look at what the rows teach."


def _unstable(seen: Seen) -> Advice | None:
    """Several jumps of the gradient norm, though the loss bears them."""
    jumps = seen.jumps
    if jumps.count < MANY or seen.now < 2 * LOW:
        return None
    usual = f"usually {_short(jumps.usual)}"
    words = f"The gradient norm is unstable: it jumps to {_short(jumps.largest)}, {usual}."
    advice = "Long gradients are cut. If the loss jumps too, halve the learning rate."
    return Advice("!", words, advice, "unstable")


def _waiting(seen: Seen) -> Advice | None:
    """Early stopping is near."""
    waits = seen.view.patience
    if seen.over or waits is None or not waits.patience or waits.waited < max(waits.patience - 1, 1):
        return None
    words = f"{waits.waited} of {waits.patience} evaluations without a better {seen.decides}."
    best = f"; step {seen.best_step:,}, the best, is kept" if seen.held is not None else ""
    return Advice("·", words, f"Nothing to do: one more ends the run{best}.", "waiting")


def _finished(seen: Seen) -> Advice | None:
    """The end, with nothing to complain about."""
    if not seen.over:
        return None
    start = f"loss {seen.course.start.loss:.2f} at the start, {_figure(seen.now)} at the end"
    if seen.held is None:
        return Advice("✓", f"Finished: {start}.", "Try it, and compare the answers.", "finished")
    words = f"Finished: {start}; held-out {_figure(seen.held.best)} at best."
    return Advice("✓", words, _best_is(seen), "finished")


def _best_is(seen: Seen) -> str:
    assert seen.held is not None
    step, falling = seen.best_step, seen.held.falling or (seen.held.points == 1 and seen.held_fell)
    still = falling or seen.course.before.above(seen.course.now, 3)
    if seen.view.pairs:
        return f"Step {step:,} is kept. No better? Then learn the better answers first (sft)."
    if seen.held.after == 0 and step == seen.held.best_step and still:
        return f"Best at the end (step {step:,}): more epochs may bring more."
    return f"Best at step {step:,}, and that state is kept. Try it."


def _falling(seen: Seen) -> Advice | None:
    """Lower than half way here by more than chance, or lower than ever on the held-out rows."""
    course, held = seen.course, seen.held
    lower = course.middle.above(course.now, 3) and course.middle.value - course.now.value > CLEAR
    if not (lower or (held is not None and held.falling)):
        return None
    well = " well" if course.fall > min(2 * _slow(seen.view), SLOW) else ""
    words = f"Falling{well}: loss {course.start.loss:.2f} at the start, {_figure(seen.now)} now."
    return Advice("✓" if well else "·", words, "Nothing to do.", "falling")


def _level(seen: Seen) -> Advice:
    """Neither up nor down; near the beginning, and where the loss scatters widely, that says nothing yet."""
    doubt = 2 * math.hypot(seen.course.middle.error, seen.course.now.error)
    if seen.early or doubt > UNSURE:
        return _so_far(seen)
    words = f"Levelled off: loss {_figure(seen.now)} ({seen.course.start.loss:.2f} at the start)."
    return Advice("·", words, "Nothing to do; more steps like these bring little.", "level")


CHECKS: tuple[Check, ...] = (
    _too_high,
    _learned,
    _overfitting,
    _by_heart,
    _flat,
    _unstable,
    _waiting,
    _finished,
    _falling,
    _level,
)
"""In this order the first that has something to say is heard."""


def _figure(loss: float) -> str:
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.4f}"


def _short(value: float) -> str:
    return human_count(value) if value >= 10 else f"{value:.2g}"
