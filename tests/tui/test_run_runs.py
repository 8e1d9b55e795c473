from __future__ import annotations

import pytest
from textual.widgets import OptionList

from ollama_tune.core.runs.folder import RunFolder, create_run, list_runs
from ollama_tune.tui.app import Start, TuneApp
from ollama_tune.tui.duplicate import keep_answers, kept_answers
from ollama_tune.tui.screens.done import DoneScreen
from ollama_tune.tui.screens.runs import RunsScreen
from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.screens.training import TrainingScreen
from ollama_tune.tui.state import WizardState
from ollama_tune.tui.widgets.confirm import ConfirmScreen

from .conftest import Corner, settled
from .run_logs import NASTY, Log, alive, make_run, open_app, screen_text, until, until_text


def run_in(state: str) -> RunFolder:
    """A run whose log ends as a run in that state does."""
    folder = make_run(state)
    log = Log(folder)
    log.training(30)
    if state == "stopped":
        log("stopped", stage="train", step=30, reason="as you asked", resumable=True)
    elif state == "failed":
        log("error", what=f"It broke {NASTY}.", fix="Mend it.", details="")
    elif state == "exported":
        log.trained().exported()
    return folder


async def opened(app: TuneApp) -> None:
    await app.push_screen(app.runs_screen())


def choose(app: TuneApp, folder: RunFolder) -> None:
    screen = app.screen
    assert isinstance(screen, RunsScreen)
    names = [run.folder.name for run in screen._runs]
    screen.query_one(OptionList).highlighted = names.index(folder.name)


async def test_every_state_is_shown_by_a_sign_and_a_word() -> None:
    folders = [run_in(state) for state in ("crashed", "stopped", "failed", "exported", "running")]
    app = open_app(folders[0])
    with alive(folders[-1]):
        async with app.run_test() as pilot:
            await opened(app)
            await until_text(pilot, "✗ crashed", "■ stopped", "✗ failed", "✓ finished", "▶ running", "30/200")
            choose(app, folders[2])
            await until_text(pilot, "problem", "It broke [/foo] [bold]x␛[2J")
            choose(app, folders[3])
            await until_text(pilot, "in Ollama as kitchen", "2.0% exact answers before, 95.8% after")


async def test_a_live_run_is_followed() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(10)
    app = open_app(folder)
    with alive(folder):
        async with app.run_test() as pilot:
            await opened(app)
            await until_text(pilot, "10/200")
            log.step(11, 200, 0.123)
            await until_text(pilot, "11/200", "0.1230")
            await pilot.press("s")
            await until_text(pilot, f"Stop {folder.name}?")
            await pilot.press("y")
            await until(pilot, folder.stop_path.exists)


async def test_keys_show_only_where_they_do_something() -> None:
    running, stopped, exported = run_in("running"), run_in("stopped"), run_in("exported")
    app = open_app(running)
    with alive(running):
        async with app.run_test(size=(100, 24)) as pilot:
            await opened(app)
            await until_text(pilot, "▶ running")
            for folder, shown, hidden in (
                (running, ["s Stop"], ["r Resume", "x Delete"]),
                (stopped, ["r Resume", "x Delete"], ["s Stop"]),
                (exported, ["x Delete"], ["s Stop", "r Resume"]),
            ):
                choose(app, folder)
                await until_text(pilot, folder.path.name, *shown)
                await until(pilot, lambda hidden=hidden: not any(key in screen_text(app) for key in hidden))


async def test_enter_opens_a_run_as_it_goes_and_the_end_of_an_exported_one() -> None:
    stopped, exported = run_in("stopped"), run_in("exported")
    app = open_app(stopped)
    async with app.run_test() as pilot:
        await opened(app)
        await until_text(pilot, "■ stopped", "✓ finished")
        for folder, kind in ((stopped, TrainingScreen), (exported, DoneScreen)):
            choose(app, folder)
            await pilot.press("enter")
            await until(pilot, lambda kind=kind: isinstance(app.screen, kind))
            assert app.screen.folder == folder  # type: ignore[attr-defined]
            await app.pop_screen()
            await until(pilot, lambda: isinstance(app.screen, RunsScreen))


@pytest.mark.parametrize(("key", "left"), [("enter", 2), ("escape", 2), ("y", 1)])
async def test_delete_names_the_run_and_its_size_and_only_y_says_yes(key: str, left: int) -> None:
    kept, doomed = run_in("stopped"), run_in("crashed")
    (doomed.path / "checkpoints").mkdir()
    (doomed.path / "checkpoints" / "weights").write_bytes(bytes(3 << 20))
    app = open_app(kept)
    async with app.run_test() as pilot:
        await opened(app)
        await until_text(pilot, "■ stopped")
        choose(app, doomed)
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await until_text(pilot, f"Delete run {doomed.name}, 3.0 MiB?")
        await pilot.press(key)
        await until(pilot, lambda: len(list_runs()) == left)
        await until(pilot, lambda: isinstance(app.screen, RunsScreen) and len(app.screen._runs) == left)
    assert kept.path.exists() and doomed.path.exists() is (left == 2)


async def test_without_a_run_there_is_a_sentence() -> None:
    folder = make_run()
    app = open_app(folder)
    async with app.run_test() as pilot:
        await until_text(pilot, "Not started")
        folder.settings_path.unlink()
        await opened(app)
        await until_text(pilot, "There is no run yet")


async def test_a_run_with_an_odd_name_or_a_broken_log_is_listed() -> None:
    folder = make_run()
    odd = create_run(folder.settings(), "odd")
    odd.path.rename(odd.path.with_name("[foo] \x1b[2J"))
    folder.events_path.write_bytes(b'{"n": 0}\nnot json\n{"n": 1, "t": 5, "kind": "step", "step": "x"}\n')
    app = open_app(folder)
    async with app.run_test() as pilot:
        await opened(app)
        await until_text(pilot, "[foo] ␛[2J", folder.name, "✗ crashed", "· not started")


async def many(*labels: str) -> list[RunFolder]:
    folders = []
    for number, label in enumerate(labels):
        folder = make_run(label)
        Log(folder).training(10 * (number + 1), 200)
        folders.append(folder)
    return folders


async def test_a_word_filters_the_list_and_escape_takes_it_away() -> None:
    folders = await many("apple", "pear", "plum", "apple-pie", "cherry", "fig")
    app = open_app(folders[0])
    async with app.run_test(size=(100, 30)) as pilot:
        await opened(app)
        await until_text(pilot, "apple-pie", "fig")
        await pilot.press("f", *"apple", "enter")
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 2)
        assert app.screen.query_one(OptionList).has_focus
        await pilot.press("f", *"zz")
        await until_text(pilot, "No run has 'zz'")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 6)
        assert isinstance(app.screen, RunsScreen)


async def test_o_orders_by_loss_size_and_name() -> None:
    folders = await many("b", "a", "c", "e", "d", "f")
    (folders[2].path / "big").write_bytes(bytes(5 << 20))
    app = open_app(folders[0])
    async with app.run_test(size=(100, 30)) as pilot:
        await opened(app)
        await until_text(pilot, "5.0 MiB", "when▾")
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        for heading, first in (("loss▾", folders[5]), ("size▾", folders[2]), ("run▾", folders[1])):
            await pilot.press("o")
            await until_text(pilot, heading)
            assert screen._shown[0] == first.path


async def test_the_details_say_what_the_curves_mean() -> None:
    folder = run_in("exported")
    app = open_app(folder)
    async with app.run_test(size=(100, 30)) as pilot:
        await opened(app)
        await until_text(
            pilot, "✓ Finished: loss", "Best at the end (step 200)", "ollama-tune run FOLDER/run.yaml"
        )


async def test_no_key_of_the_list_stops_or_deletes_by_accident() -> None:
    """s and d are never confused: d does nothing, s only asks, and only where a worker is."""
    folder = run_in("stopped")
    app = open_app(folder)
    async with app.run_test() as pilot:
        await opened(app)
        await until_text(pilot, "■ stopped")
        await pilot.press("d", "s")
        assert isinstance(app.screen, RunsScreen)
        with alive(folder):
            await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 1)
            app.screen._read_runs()  # type: ignore[attr-defined]
            await until_text(pilot, "s Stop")
            await pilot.press("d")
            assert isinstance(app.screen, RunsScreen)
            await pilot.press("s")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        assert not folder.stop_path.exists()


async def test_again_opens_the_wizard_with_what_differs_from_the_recommendation(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = corner.app(4)
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        assert app.facts.plan is not None
        wanted = app.facts.plan.settings.with_values({"training.rank": 4, "training.epochs": 7.0})
        folder = create_run(wanted, "again")
        app.set_value("training.alpha", 99)
        mine = app.answers
        await opened(app)
        await until_text(pilot, "not started")
        read = app.read_answers
        monkeypatch.setattr(app, "read_answers", lambda: None)
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, SettingsScreen))
        await until_text(pilot, "Reading the data")
        assert app.facts.plan is None, "the plan of other answers could be started"
        read()
        await settled(pilot)
        await until_text(pilot, "Your unfinished", "b in Runs brings them back")
        plan, recommended = app.facts.plan, app.facts.recommended
        assert plan.settings.training == wanted.training and plan.settings.data == folder.settings().data
        differ = {path for path, choice in recommended.items() if plan.settings.get(path) != choice.value}
        assert differ >= {"training.rank", "training.epochs"} and "training.alpha" not in differ
        assert app.answers.run is None and len(app.screen_stack) == 2
        await opened(app)
        await until_text(pilot, "b Bring back")
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, SettingsScreen))
        assert dict(app.answers.changed) == dict(mine.changed) and app.answers.data == mine.data
        assert kept_answers() is None


def test_answers_are_kept_once_and_not_pushed_out_by_a_duplicate() -> None:
    mine = WizardState(step=3, data="mine.jsonl")
    first, second = (WizardState(step=4, changed={"training.rank": rank}) for rank in (4, 8))
    assert keep_answers(mine, first)
    assert keep_answers(first, second)
    assert kept_answers() == mine
    changed = WizardState(step=4, changed={"training.rank": 8, "training.alpha": 2})
    assert keep_answers(changed, first)
    assert kept_answers() == changed
    assert not keep_answers(WizardState(run="x", data="mine.jsonl"), second)
    assert kept_answers() is None
    assert not keep_answers(WizardState(), second)


async def test_a_run_whose_settings_cannot_be_read_is_not_done_again() -> None:
    folder = run_in("stopped")
    folder.settings_path.write_text("training: [\n")
    app = open_app(folder)
    async with app.run_test() as pilot:
        await opened(app)
        await until_text(pilot, "■ stopped")
        await pilot.press("n")
        await until_text(pilot, "is not valid YAML")
        assert isinstance(app.screen, RunsScreen)


async def test_escape_from_a_run_opened_by_itself_leads_to_the_list_and_then_to_the_wizard() -> None:
    """`attach` opens the run without the wizard below it: two Esc must not leave an empty screen."""
    folder = run_in("crashed")
    app = TuneApp(Start(WizardState(step=1), folder.path), warm=False)
    app.read_everything = lambda: None  # type: ignore[method-assign]
    async with app.run_test() as pilot:
        await until_text(pilot, "✗ Crashed at step 30")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        await until_text(pilot, "✗ crashed")
        await pilot.press("escape")
        await until_text(pilot, "Step 1 of 9")
