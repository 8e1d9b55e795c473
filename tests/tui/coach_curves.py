"""Random runs of which it is known what their curves mean: the coach is measured by them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ollama_tune.core.runs.events import Event
from ollama_tune.tui.coach import advise
from ollama_tune.tui.run_values import Patience, ValidationPoint
from ollama_tune.tui.run_view import RunView

RECORDED = Path(__file__).with_name("coach_runs.json")
"""Curves of real runs of the bundled model, made by `python -m tests.bench.coach --record`."""


@dataclass(frozen=True)
class Kind:
    """A kind of run: its losses at a share of the steps, and which verdicts on its end are right.

    `train` and `held` take the share of the steps done (0 to 1) and the draw of this run.
    """

    train: Callable[[float, Draw], float]
    held: Callable[[float, Draw], float]
    right: frozenset[str]
    until: tuple[float, float] = (0.6, 1.0)
    jumps: tuple[float, float] = (0.0, 1.0)
    """How many of the steps have a jump of the gradient norm, and up to how many times the usual."""


@dataclass(frozen=True)
class Draw:
    """What is drawn once a run: steps, first loss, noise, and two shares for the kind to use."""

    total: int
    first: float
    noise: float
    u: float
    v: float
    heavy: bool


def _fall(x: float, draw: Draw, floor: float, pace: float) -> float:
    return draw.first * (floor + (1 - floor) * math.exp(-x / pace))


def _soon(x: float, draw: Draw) -> float:
    return _fall(x, draw, 0.3 + 0.4 * draw.u, 0.03 + 0.04 * draw.v)


def _steadily(x: float, draw: Draw) -> float:
    return _fall(x, draw, 0.15 + 0.2 * draw.u, 0.3 + 0.4 * draw.v)


def _to_nothing(x: float, draw: Draw) -> float:
    return max(draw.first * math.exp(-x / (0.04 + 0.03 * draw.v)), 0.004)


def _up_again(x: float, draw: Draw) -> float:
    turn = 0.15 + 0.25 * draw.u
    low = draw.first * 0.5
    return low + (draw.first - low) * math.exp(-5 * x / turn) + max(x - turn, 0) * draw.first * (0.5 + draw.v)


def _held_turns(x: float, draw: Draw) -> float:
    turn = 0.2 + 0.2 * draw.u
    low = 0.6 * draw.first
    return (
        low
        + (draw.first - low) * math.exp(-4 * x / turn)
        + max(x - turn, 0) * draw.first * (0.3 + 0.4 * draw.v)
    )


KINDS: dict[str, Kind] = {
    "falling": Kind(_steadily, lambda x, d: 1.03 * _steadily(x, d), frozenset({"falling"}), (0.3, 0.7)),
    "level": Kind(_soon, lambda x, d: 1.04 * _soon(x, d), frozenset({"level"})),
    "flat": Kind(lambda x, d: d.first, lambda x, d: 1.01 * d.first, frozenset({"flat"})),
    "slow": Kind(
        lambda x, d: d.first * (1 - (0.08 + 0.1 * d.u) * x),
        lambda x, d: d.first * (1 - (0.08 + 0.1 * d.u) * x),
        frozenset({"slow"}),
    ),
    "overfitting": Kind(_steadily, _held_turns, frozenset({"overfitting", "by_heart"}), (0.75, 1.0)),
    "by heart": Kind(_to_nothing, lambda x, d: 0.7 * d.first, frozenset({"by_heart", "overfitting"})),
    "learned": Kind(_to_nothing, lambda x, d: 1.5 * _to_nothing(x, d), frozenset({"learned"})),
    "rising": Kind(_up_again, lambda x, d: 1.02 * _up_again(x, d), frozenset({"too_high"}), (0.75, 1.0)),
    "wild": Kind(_soon, lambda x, d: 1.04 * _soon(x, d), frozenset({"too_high"}), (0.6, 1.0), (0.03, 2000.0)),
    "unstable": Kind(
        _steadily,
        lambda x, d: 1.03 * _steadily(x, d),
        frozenset({"unstable", "too_high"}),
        (0.4, 0.9),
        (0.06, 25.0),
    ),
}


def draw_run(kind: Kind, random: random.Random) -> Iterator[RunView]:
    """A run of that kind, told after each twentieth of its steps from the first tenth on."""
    draw = Draw(
        total=int(math.exp(random.uniform(math.log(80), math.log(4000)))),
        first=math.exp(random.uniform(math.log(0.9), math.log(6.0))),
        noise=random.uniform(0.03, 0.3),
        u=random.random(),
        v=random.random(),
        heavy=random.random() < 0.3,
    )
    end = int(draw.total * random.uniform(*kind.until))
    view, told = RunView(), 0
    view.total_steps, view.patience = draw.total, Patience(0, 0)
    measure_every = max(draw.total // random.choice((8, 10, 20)), 1)
    view.validation[0] = ValidationPoint(0, kind.held(0.0, draw), None)
    for step in range(1, end + 1):
        _add_step(view, kind, draw, step, random)
        if step % measure_every == 0:
            held = kind.held(step / draw.total, draw) * math.exp(random.gauss(0, 0.004))
            view.validation[step] = ValidationPoint(step, held, None)
        if step * 20 // end > told and step >= 0.1 * draw.total:
            told = step * 20 // end
            yield view
    yield view


def _add_step(view: RunView, kind: Kind, draw: Draw, step: int, random: random.Random) -> None:
    """The loss scatters by a share of its height, in some runs with far outliers; the rate warms up."""
    spread = draw.noise * (3 if draw.heavy and random.random() < 0.02 else 1)
    share, times = kind.jumps
    jump = math.exp(random.uniform(math.log(times / 3), math.log(times))) if random.random() < share else 1.0
    loss = kind.train(step / draw.total, draw) * math.exp(random.gauss(0, spread))
    view.step, view.loss = step, loss
    view.losses.add(step, loss)
    view.norms.add(step, math.exp(random.gauss(0, 0.3)) * jump)
    view.rates.add(step, 2e-4 * min(20 * step / draw.total, 1.0))


def verdicts(kind: Kind, seed: int) -> list[str]:
    """What the coach said of one random run, in the order of its steps; the last is on its end."""
    return [advice.kind for view in draw_run(kind, random.Random(seed)) if (advice := advise(view))]


def turns(said: list[str]) -> int:
    """How often the verdict went back to one that it had left."""
    changes = [kind for kind, before in zip(said, ["", *said], strict=False) if kind != before]
    return len(changes) - len(set(changes))


def real_run(name: str) -> Iterator[RunView]:
    """A recorded run, told after every step; the last time as one that is finished."""
    run = json.loads(RECORDED.read_text())[name]
    held = dict(run["held"])
    view = RunView()
    view.total_steps, view.patience = run["total"], Patience(0, 0)
    view.validation[0] = ValidationPoint(0, held.get(0), None)
    for step, (loss, norm, rate) in enumerate(run["steps"], start=1):
        view.step, view.loss = step, loss
        for curve, value in ((view.losses, loss), (view.norms, norm), (view.rates, rate)):
            curve.add(step, value)
        if step in held:
            view.validation[step] = ValidationPoint(step, held[step], None)
        yield view
    view.done["train"] = Event(0, 0.0, "done", {"stage": "train"})
    yield view
