"""What the rules promise of the setup, proved from outside: estimates in time, nothing done before Enter, a
command that works, screens that leave no trace in others."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import list_runs
from ollama_tune.tui import tasks
from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.fields import FIELDS, text_of
from ollama_tune.tui.screens.done import DoneScreen
from ollama_tune.tui.screens.machine import MachineScreen
from ollama_tune.tui.screens.review import ReviewScreen
from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.state import answers_of
from ollama_tune.tui.widgets.form import FieldRow
from tests.terminal import Terminal
from tests.tui.conftest import Corner, gpu_machine, settled, shown
from tests.tui.run_logs import Log, make_run, open_app, until, until_text

TUI = Path(__file__).parents[2] / "tui"


def row(app: TuneApp, path: str) -> FieldRow:
    return app.screen.query_one("#field-" + path.replace(".", "-"), FieldRow)


def painted(app: TuneApp) -> str:
    return " ".join(shown(app).replace("│", "").split())


# Estimates and recommendations


async def test_an_edit_has_its_estimate_and_is_planned_once(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[str] = []
    plan = tasks.plan
    monkeypatch.setattr(tasks, "plan", lambda *given: planned.append("") or plan(*given))
    app = corner.app(step=4, machine=gpu_machine, changed={"training.rank": 32, "training.epochs": 3.0})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        row(app, "training.batch_size").editor.focus()
        await pilot.press("end", "backspace")
        await settled(pilot)
        for digit in "6789":
            before = app.facts.plan
            planned.clear()
            await pilot.press("backspace", digit)
            await until(pilot, lambda before=before: app.facts.plan is not before and not app.facts.busy)
            assert 1 <= len(planned) <= 2, "for the field without its digit, and with it"
            assert app.facts.plan is not None
            assert app.facts.plan.settings.training.batch_size == int(digit)


async def test_one_key_restores_all_that_was_changed_and_how_data_is_read_stays(corner: Corner) -> None:
    changed = {"training.epochs": 9.0, "training.rank": 64, "data.exclude": ["secret"]}
    app = corner.app(step=4, changed=changed)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "F4 All recommended" in shown(app) and app.facts.plan is not None
        before = app.facts.plan.settings.training.epochs
        row(app, "training.batch_size").editor.focus()
        await pilot.press("home", *["delete"] * 8, "0", "f4")
        await settled(pilot)
        assert dict(app.answers.changed) == {"data.exclude": ["secret"]}
        assert app.facts.plan.settings.training.epochs != before
        assert "changed, recommended" not in shown(app) and "✗" not in shown(app)
        for path in ("training.epochs", "training.rank", "training.batch_size"):
            value = app.facts.plan.settings.get(path)
            assert row(app, path).editor.value == text_of(FIELDS[path], value)  # type: ignore[union-attr]
        assert "All recommended" not in shown(app)


def test_the_answers_of_a_run_give_its_settings_again_and_a_name_of_its_own() -> None:
    settings = Settings().with_values(
        {
            "model.source": "org/name",
            "model.revision": "main",
            "data.path": "/x.jsonl",
            "data.form": "text",
            "training.rank": 64,
            "training.targets": ["q_proj"],
            "export.name": "mine",
        }
    )
    answers = answers_of(settings)
    again = Settings().with_values(answers.plan_values())
    assert again.with_value("export.name", "mine") == settings
    assert "export.name" not in answers.changed and answers.run is None and answers.step == 4
    assert "data.split" not in answers.changed, "what nobody said about the data is not said now"


# Nothing before Enter, and the command


@contextmanager
def counting_proxy() -> Iterator[list[str]]:
    """A proxy for everything that goes to the network; it answers nobody and counts who asks."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked.append(f"http://127.0.0.1:{server.getsockname()[1]}")

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(200).decode("latin1").partition("\r\n")[0])

        threading.Thread(target=serve, daemon=True).start()
        yield asked


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_fetched_started_or_written_elsewhere_before_the_summary_is_confirmed(
    corner: Corner,
) -> None:
    corner.answers(1).save()
    home, own = corner.home, "tune-home"
    before = files_below(home)
    with counting_proxy() as asked:
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        env = {**os.environ, **dict.fromkeys(names, asked[0]), "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "ollama_tune.tui"]
        with Terminal(command, env, cwd=str(home), columns=120, lines=40) as terminal:
            for text in ("Ollama", "can be tuned", "tokens,", "Epochs", "does the same without the wizard"):
                terminal.wait(text)
                terminal.pump(0.3)
                if not text.startswith("does"):
                    terminal.press("enter")
            terminal.pump(1.5)
            children = psutil.Process(terminal.process.pid).children(recursive=True)
            started = [" ".join(child.cmdline()) for child in children]
            assert "100 % full" not in terminal.text
            for part in ("Disk", "for checkpoints", "a new folder in", "about"):
                assert part in terminal.text
            terminal.press("ctrl+q")
            assert terminal.finish() == 0
        assert asked[1:] == []
    assert all("ollama_tune" in line or "multiprocessing" in line for line in started), started
    assert not any("train.worker" in line and "--warm" not in line and "warm" not in line for line in started)
    _, alive = psutil.wait_procs(children, timeout=300)
    assert alive == [], "what was warmed up ends with the wizard"
    new = files_below(home) - before
    assert {path.split("/")[0] for path in new} <= {own}, new
    assert not list((home / own / "data" / "runs").glob("*"))
    assert {path.split("/")[1] for path in new} <= {"state", "cache"}, new


async def test_the_command_on_the_review_runs_as_it_is_shown_and_gives_the_same_run(corner: Corner) -> None:
    changed = {"training.epochs": 0.1, "evaluation.rows": 0, "export.name": None}
    app = corner.app(step=5, changed=changed)
    async with app.run_test(size=(200, 50)) as pilot:
        await settled(pilot)
        assert isinstance(app.screen, ReviewScreen) and app.facts.plan is not None
        (command,) = re.findall(r"ollama-tune run \S+", shown(app))
        settings = app.facts.plan.settings
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd="/", env={**os.environ, "PATH": path}, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    (folder,) = list_runs()
    assert folder.settings() == settings


# Screens


def test_no_screen_dresses_the_widgets_of_another() -> None:
    """Textual keeps the rules of every screen that was once shown, so each begins with a class of ours."""
    ours = "|".join(
        re.findall(r"^class (\w+)", "\n".join(map(Path.read_text, TUI.rglob("*.py"))), re.MULTILINE)
    )
    for file in (TUI / "screens").glob("*.tcss"):
        text = re.sub(r"/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        for selectors in re.findall(r"([^{}]+)\{", text):
            for selector in selectors.split(","):
                assert re.match(rf"({ours})\b", selector.strip()), (file.name, selector)


@pytest.mark.parametrize("step", [1, 3, 5])
async def test_a_screen_looks_the_same_after_all_others_were_shown(step: int, corner: Corner) -> None:
    fresh = corner.app(step, machine=gpu_machine)
    async with fresh.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        first = shown(fresh)
    app = corner.app(1 if step > 1 else 5, machine=gpu_machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        for key in ["enter"] * 4 + ["escape"] * (5 - step) if step > 1 else ["escape"] * 4:
            await pilot.press(key)
            await settled(pilot)
        assert isinstance(app.screen, MachineScreen) == (step == 1)
        assert shown(app) == first


async def test_train_again_opens_the_settings_of_the_run(corner: Corner) -> None:
    folder = make_run("again", name="again")
    settings = folder.settings().with_values(
        {"model.source": str(corner.model), "data.path": str(corner.rows), "training.rank": 8}
    )
    settings.save(folder.settings_path)
    Log(folder).trained().exported("again")
    app = corner.app(9, run=folder.name)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "✓ again is in Ollama", "Ask it, for example:", "t Train again")
        assert isinstance(app.screen, DoneScreen)
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, SettingsScreen))
        await settled(pilot)
        plan = app.facts.plan
        assert plan is not None
        assert plan.settings.training == settings.training
        assert plan.settings.export.name != "again"


async def test_the_end_names_where_everything_is() -> None:
    folder = make_run("ends")
    Log(folder).trained().exported("ends")
    app = open_app(folder, 9)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "ollama run ends", "export/verification.json", "adapter/", "run.yaml:")
