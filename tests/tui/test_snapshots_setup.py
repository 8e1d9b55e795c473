"""What the setup steps look like, at 80x24 and 120x40 (new pictures: `pytest --snapshot-update`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from ollama_tune.tui.app import TuneApp
from tests.tui.conftest import Corner, cpu_machine, gpu_machine, make_base, settled

SIZES = [(80, 24), (120, 40)]
STEPS = {1: "machine", 2: "model", 3: "data", 4: "settings", 5: "review"}
Compare = Callable[..., bool]


def picture(compare: Compare, app: TuneApp, size: tuple[int, int], *keys: str) -> bool:
    """Compare the screen once the facts are there and the keys are pressed."""

    async def prepare(pilot: Pilot[Any]) -> None:
        await settled(pilot)
        await pilot.press(*keys)
        await settled(pilot)

    return compare(app, terminal_size=size, run_before=prepare)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("step", STEPS, ids=STEPS.get)
def test_step(step: int, size: tuple[int, int], corner: Corner, snap_compare: Compare) -> None:
    assert picture(snap_compare, corner.app(step, machine=gpu_machine), size)


def test_machine_without_gpu(corner: Corner, snap_compare: Compare) -> None:
    assert picture(snap_compare, corner.app(1), (80, 24))


def test_model_that_cannot_be_read(corner: Corner, snap_compare: Compare) -> None:
    app = corner.app(2, model="nowhere")
    assert picture(snap_compare, app, (80, 24))


def test_model_of_the_list_before_it_is_read(corner: Corner, snap_compare: Compare) -> None:
    app = corner.app(2, model="bundled", machine=gpu_machine)
    assert picture(snap_compare, app, (80, 24), "home", "down")


def test_model_with_an_offered_chat_form(corner: Corner, snap_compare: Compare) -> None:
    make_base(corner.model)
    assert picture(snap_compare, corner.app(2), (80, 24))


def test_settings_with_a_changed_and_a_wrong_value(corner: Corner, snap_compare: Compare) -> None:
    app = corner.app(4, changed={"training.epochs": 9.0})
    assert picture(snap_compare, app, (80, 24), "down", "home", *["delete"] * 12, "9", "down")


def test_settings_with_more(corner: Corner, snap_compare: Compare) -> None:
    assert picture(snap_compare, corner.app(4), (120, 40), "m")


def test_settings_in_a_small_window(corner: Corner, snap_compare: Compare) -> None:
    assert picture(snap_compare, corner.app(4), (60, 18))


def test_review_of_a_plan_that_does_not_fit(corner: Corner, snap_compare: Compare) -> None:
    app = corner.app(5, machine=lambda: cpu_machine(64 << 20))
    assert picture(snap_compare, app, (80, 24))


def test_help(corner: Corner, snap_compare: Compare) -> None:
    assert picture(snap_compare, corner.app(4), (80, 24), "f1")


def test_window_too_small(corner: Corner, snap_compare: Compare) -> None:
    assert picture(snap_compare, corner.app(4), (50, 15))


def test_no_colour(corner: Corner, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert picture(snap_compare, corner.app(3), (80, 24))
