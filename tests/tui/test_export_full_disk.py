"""An export where the disk has no room: how much is free, how much is needed, and what makes room."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.cli import cli
from ollama_tune.tui.screens.export import ExportScreen
from ollama_tune.tui.state import WizardState
from tests.small_disk import SmallDisk, small_disk

from .conftest import cpu_machine
from .plain_talk import converse
from .run_logs import Log, make_run, open_app, screen_text, until_text

NEEDED = "21.6 MiB are needed"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "2m") as disk:
        monkeypatch.setenv("OLLAMA_TUNE_HOME", str(disk.path))
        monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
        yield disk


@pytest.fixture
def run(disk: SmallDisk) -> RunFolder:
    folder = make_run()
    Log(folder).trained()
    WizardState(step=8, run=folder.name).save()
    return folder


@pytest.mark.parametrize("filled", [True, False], ids=["no room at all", "too little"])
@pytest.mark.parametrize("size", [(60, 18), (80, 24)])
async def test_the_window_says_how_much_is_free_and_needed_and_what_makes_room(
    run: RunFolder, disk: SmallDisk, size: tuple[int, int], filled: bool
) -> None:
    if filled:
        disk.fill()
    app = open_app(run, 8, cpu_machine)
    async with app.run_test(size=size) as pilot:
        await until_text(pilot, "(•) f16", "5.6 MiB")
        await pilot.press("enter")
        await until_text(pilot, "delete RUN", seconds=20)
        text = " ".join(screen_text(app).replace("█", " ").split())
        free = re.search(r"is full: (\S+) (M|k)?i?B are free, " + NEEDED, text)
        assert free is not None and (free[1] == "0") == filled, text
        assert "choose a smaller type" in text and "`ollama-tune runs` shows" in text
        assert isinstance(app.screen, ExportScreen) and app.screen.form_shown
    assert not run.export_request_path.exists() and not run.log_path.exists()


def test_the_conversation_says_so_and_tries_again_once_there_is_room(run: RunFolder, disk: SmallDisk) -> None:
    disk.fill()
    _, text = converse("mine", "1", "", "b", "q", probe=cpu_machine)
    assert f"is full: 0 B are free, {NEEDED}." in text
    assert "`ollama-tune delete RUN` removes one" in text and "Try again [yes]" in text
    assert not run.export_request_path.exists()


def test_the_command_says_so(run: RunFolder, disk: SmallDisk) -> None:
    disk.fill()
    done = CliRunner().invoke(cli, ["export", run.name, "--name", "mine", "--type", "f16"])
    assert done.exit_code == 1
    assert f"is full: 0 B are free, {NEEDED}." in str(done.exception)
    assert not run.export_request_path.exists()
