"""What a run teaches the next plan about the speed of its device."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_tune.core.data.values import Example
from ollama_tune.core.machine.host import read_host
from ollama_tune.core.plan.duration import estimate
from ollama_tune.core.plan.settings import parse
from ollama_tune.core.runs.folder import create_run
from ollama_tune.core.train.pace import learn_pace, tokens_per_second
from ollama_tune.core.train.session import Session, StopWish
from tests.cases import SHORT, TINY, machine

ROW = Example("", tuple(range(50)), (False,) * 36 + (True,) * 14, ((0, 0),) * 50)


def steps(count: int, seconds: float = 0.5, warm_up: float = 9.0) -> list[dict[str, Any]]:
    return [{"useful_tokens": 100, "seconds": warm_up if n < 3 else seconds} for n in range(count)]


def test_the_speed_is_that_of_the_steps_after_the_warm_up() -> None:
    assert tokens_per_second(steps(23)) == pytest.approx(200)


@pytest.mark.parametrize("told", [[], steps(12), steps(50, seconds=0.0, warm_up=0.0)])
def test_too_few_steps_or_none_tell_nothing(told: list[dict[str, Any]]) -> None:
    assert tokens_per_second(told) is None


def run_with(count: int, seconds: float) -> Session:
    folder = create_run(parse({"training": {"device": "cpu"}}), "pace")
    session = Session(folder, StopWish(folder))
    for step in steps(count, seconds):
        session.emit("step", **step)
    return session


def test_the_next_plan_on_this_device_takes_the_speed_of_the_last_run() -> None:
    box = machine()
    box = type(box)(box.gpu, read_host(), box.disk, box.ollama)
    settings = parse({"training": {"device": "cpu"}})
    before = estimate(settings, TINY, SHORT, box)
    learn_pace(run_with(40, 0.5), TINY, [ROW] * 360)
    slow = estimate(settings, TINY, SHORT, box)
    assert "last run" in slow.ground and slow.seconds > 3 * before.seconds
    learn_pace(run_with(40, 0.05), TINY, [ROW] * 360)
    assert estimate(settings, TINY, SHORT, box).seconds < slow.seconds / 3
    learn_pace(run_with(5, 500.0), TINY, [ROW] * 360)
    assert estimate(settings, TINY, SHORT, box).seconds < slow.seconds / 3, (
        "a run of five steps tells nothing"
    )
