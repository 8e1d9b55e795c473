"""Three learning rates tried from the wizard: cost, background, table, taking over; and in plain lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from textual.pilot import Pilot

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import rates
from ollama_tune.core.runs import sweep as sweep_room
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, list_runs
from ollama_tune.core.runs.rates import RATE, RateSearch, Tried, carry_out, make_search
from ollama_tune.tui.cli import cli
from ollama_tune.tui.rates import table_lines
from ollama_tune.tui.screens.rates import RatesScreen
from ollama_tune.tui.state import load_answers
from tests import told as outputs
from tests.tui.conftest import Corner, settled, shown
from tests.tui.plain_talk import converse
from tests.tui.run_logs import until_text

LOSSES = {0: 2.0, 1: 1.0, 2: 0.5}


def short_run(folder: RunFolder, stage: str) -> None:
    """A worker that is done at once: the loss is the lower the higher the rate; the highest is given."""
    settings, number = folder.settings(), int(folder.name[-1]) - 1
    interval = settings.training.evaluation_interval
    log = EventWriter(folder.events_path)
    log.write("start", stage="train", stages=["train"], resumed_from=None, pid=1, device="cpu")
    for step in range(1, 4 * interval + 1):
        log.write("step", step=step, total_steps=1000, loss=3 / step, useful_tokens=1, seconds=1.0)
        if step % interval == 0:
            told = {"exact_match": None, "rows": 4, "model": "tuned"}
            log.write("evaluation", step=step, loss=LOSSES[number] + 1 / step, **told)
    log.write("stopped", stage="train", step=4 * interval, reason="as you asked", resumable=True)
    log.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Searches that are over at once, in this process; their folders."""
    begun: list[Path] = []

    def search_here(folder: Path) -> Done:
        begun.append(folder)
        carry_out(RateSearch.load(folder))
        return Done()

    monkeypatch.setattr(sweep_room, "start", short_run)
    monkeypatch.setattr(rates, "search_rates", search_here)
    return begun


class Done:
    """A process that has ended well."""

    def poll(self) -> int:
        return 0


async def until(pilot: Pilot[int], words: str) -> str:
    await until_text(pilot, words)
    return shown(pilot.app)


async def test_the_wizard_says_the_cost_tries_and_takes_the_best_as_a_changed_value(
    corner: Corner, at_once: list[Path]
) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(100, 40)) as pilot:
        await settled(pilot)
        assert app.facts.plan is not None
        middle = app.facts.plan.settings.training.learning_rate
        await pilot.press("f6")
        text = await until(pilot, "Enter starts them")
        assert "3 short runs of" in text and "together" in text and not at_once
        assert isinstance(app.screen, RatesScreen)
        await pilot.press("enter")
        text = await until(pilot, "Enter takes it")
        assert len(at_once) == 1 and not list_runs()
        best = float(f"{3 * middle:.3g}")
        assert f"Take {best:g}: its held-out loss is 0.5" in " ".join(text.split())
        assert "recommended" in text and "A ━━━" in await until(pilot, "A ━━━")
        await pilot.press("enter")
        await settled(pilot)
        assert app.facts.plan.settings.training.learning_rate == best
        assert f"changed, recommended: {middle:g}" in shown(app)
        assert app.answers.changed[RATE] == best
        await pilot.press("f6")
        text = await until(pilot, "Enter takes it")
        assert len(at_once) == 1, "the same search is not made again"


def test_a_short_run_that_gave_way_waits_and_one_without_a_step_is_to_come() -> None:
    search = make_search(Settings(), 171)
    first, *others = (Tried(rate, search.short) for rate in search.rates)
    lines = table_lines(search, [replace(first, step=5), *others], None)
    assert lines[1].endswith("waits") and lines[2].endswith("to come, recommended")


async def test_esc_changes_nothing_and_another_wizard_finds_the_search_on_the_review(
    corner: Corner, at_once: list[Path]
) -> None:
    for step, key in ((4, "f6"), (5, "l")):
        app = corner.app(step=step)
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(pilot)
            await pilot.press(key)
            words = "Enter takes it" if step == 5 else "Enter starts them"
            text = await until(pilot, words)
            assert words in text
            if step == 4:
                await pilot.press("enter")
                await until(pilot, "Enter takes it")
            await pilot.press("escape")
            await settled(pilot)
            assert RATE not in app.answers.changed and not isinstance(app.screen, RatesScreen)


async def test_without_held_out_rows_the_screen_says_why_there_is_no_search(corner: Corner) -> None:
    app = corner.app(step=5, changed={"data.validation_split": 0.0})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("l")
        assert "Without held-out rows no rate is better" in await until(pilot, "held-out rows no rate")


async def test_the_palette_has_it_by_name(corner: Corner) -> None:
    from ollama_tune.tui.palette import commands

    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        names = {command.name: command.keys for command in commands(app)}
        assert names["settings: try learning rates"] == "F6"


# the command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Settings().save(tmp_path / "run.yaml")
    return tmp_path / "run.yaml"


@pytest.mark.usefixtures("at_once")
def test_the_command_prints_one_object_with_the_best_and_its_reason(file: Path) -> None:
    done = CliRunner().invoke(cli, ["sweep", str(file), "--rates", "3", "--json"])
    told = outputs.told("sweep", done.stdout)
    assert list(told) == ["outcome", "folder", "steps", "rates", "best", "reason"]
    assert [entry["rate"] for entry in told["rates"]] == [6.67e-05, 2e-4, 6e-4]
    assert told["best"] == 6e-4 and "one still further that way was not tried" in told["reason"]
    assert set(told["rates"][0]) == {"rate", "state", "step", "steps", "loss", "held_out"}
    assert "Learning rate 0.0006, 3 of 3." in done.stderr and "recommended" in done.stderr


def test_a_dry_run_says_rates_and_seconds_and_makes_nothing(file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["sweep", str(file), "--rates", "5", "--dry-run", "--json"])
    told = outputs.told("sweep", done.stdout)
    assert len(told["rates"]) == 5 and told["seconds"] > 0
    assert not (tmp_path / "tune-home" / "data" / "rates").exists()
    refused = CliRunner().invoke(cli, ["sweep", str(file), "--rates", "3", "--over", f"{RATE}=1,2"])
    assert isinstance(refused.exception, UsageError)


# plain lines


@pytest.mark.usefixtures("at_once")
def test_plain_questions_say_the_cost_first_and_take_the_best_when_agreed(corner: Corner) -> None:
    corner.answers(4).save()
    status, text = converse("rates", "yes", "yes", "q")
    assert status == 0 and "3 short runs of" in text and "3 of 3: learning rate 0.0222" in text
    assert "2 of 3: learning rate 0.0074, the recommended one: held-out loss 1.0" in text
    assert "Take 0.0222: its held-out loss is" in text and "The learning rate is 0.0222 now." in text
    assert load_answers().changed[RATE] == pytest.approx(0.0222)
    _, again = converse("rates", "q")
    assert "Try them" not in again and "The learning rate is that already." in again


def test_plain_questions_start_nothing_after_a_no_and_say_what_is_missing(
    corner: Corner, at_once: list[Path]
) -> None:
    corner.answers(4).save()
    _, text = converse("rates", "no", "5 0", "rates", "q")
    assert not at_once and "Without held-out rows no rate is better." in text
    assert RATE not in load_answers().changed
