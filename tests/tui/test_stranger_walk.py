"""What strangers stumbled over: a refused command leaves nothing behind, and nothing is taken in silence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.values import Reading
from ollama_tune.core.errors import BusyError
from ollama_tune.core.paths import asset
from ollama_tune.core.plan.prepare import prepare_for
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, RunLock, create_run
from ollama_tune.tui import exporting
from ollama_tune.tui.cli import main
from ollama_tune.tui.comparing import read_compared, setting_rows
from ollama_tune.tui.data_report import Report, as_json, lines
from ollama_tune.tui.outputs import output_schema
from ollama_tune.tui.shell import assignments


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Questions and answers under headings that say nothing, with one row twice."""
    rows = [f"Where is parcel {n}?;It comes on day {n}, by van." for n in (*range(12), 3)]
    path = tmp_path / "mails.csv"
    path.write_text("\n".join(["First;Second", *rows]))
    return path


def test_an_export_that_is_refused_as_busy_changes_no_later_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was only paused exported under the refused command's name when it went on."""
    settings = Settings().with_values({"export.name": "kitchen"})
    folder = RunFolder(tmp_path)
    settings.save(folder.settings_path)
    monkeypatch.setattr(exporting, "FREE_SECONDS", 0.0)
    other = settings.export.model_copy(update={"name": "other", "type": "q4_k_m"})
    lock = RunLock(folder)
    try:
        with pytest.raises(BusyError, match="already going"):
            exporting.begin_export(folder, other, 0)
    finally:
        lock.release()
    assert folder.export_settings() == settings.export


def test_an_open_question_names_the_setting_of_each_answer(table: Path) -> None:
    report = Report(load_dataset(str(table), Reading()))
    (asked,) = as_json(report)["questions"]
    assert asked["settings"] == [
        {"data.columns": {"answer": "Second", "question": "First"}},
        {"data.columns": {"answer": "First", "question": "Second"}},
    ]
    shown = "\n".join(lines(report))
    for said in asked["settings"]:
        text = f"data.columns={json.dumps(said['data.columns'])}"
        assert f"with plan and run: --set '{text}'" in shown
        assert assignments((text,)) == said
        chosen = Reading(columns=tuple(sorted(said["data.columns"].items())))
        assert not load_dataset(str(table), chosen).questions


def test_a_plan_tells_what_is_left_out_and_what_was_taken(table: Path) -> None:
    warnings = prepare_for("bundled", str(table), {}).plan.warnings
    assert "1 of the data's 13 rows are left out: `ollama-tune data` says why." in warnings
    (taken,) = [words for words in warnings if "Taken:" in words]
    assert 'data.columns={"answer": "Second", "question": "First"}' in taken
    assert "parcel" not in taken


def test_a_run_whose_worker_was_killed_ends_for_programs_with_an_error_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line was its last step: nothing told a program that no more would come."""
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))
    folder = create_run(Settings(), "kitchen")
    log = EventWriter(folder.events_path)
    log.write("start", stage="train", stages=["train"], run=folder.name, pid=1, device="cpu")
    log.close()
    monkeypatch.setattr("sys.argv", ["ollama-tune", "attach", folder.name, "--json"])
    assert main() == 1
    start, error = map(json.loads, capsys.readouterr().out.splitlines())
    assert start["kind"] == "start"
    assert error["outcome"] == "error" and error["code"] == "failed"
    assert "killed" in error["what"] and f"ollama-tune resume {folder.name}" in error["fix"]


def test_data_of_the_same_name_in_two_folders_is_told_apart_in_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))
    files = ("/data/old/rows.jsonl", "/data/new/rows.jsonl", "/data/new/more.jsonl")
    runs = [
        read_compared(create_run(Settings().with_values({"data.path": file}), "kitchen")) for file in files
    ]
    assert setting_rows(runs)[0].cells == ("old/rows.jsonl", "new/rows.jsonl", "new/more.jsonl")
    assert setting_rows(runs[1:])[0].cells == ("rows.jsonl", "more.jsonl")


@pytest.mark.parametrize(("verdict", "status"), [("better", 0), ("worse", 1), ("no clear difference", 1)])
def test_the_job_on_the_page_for_agents_fails_where_the_model_is_not_better(
    verdict: str, status: int, tmp_path: Path
) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", asset("docs/agents.md").read_text(encoding="utf-8"), re.DOTALL
    )
    told = {"main": "chrf", "metrics": [{"name": "chrf", "difference": {"verdict": verdict}}]}
    assert verdict in json.dumps(output_schema("evaluate"))
    command = tmp_path / "ollama-tune"
    command.write_text(f"#!/bin/sh\nprintf '%s' '{json.dumps(told)}'\n")
    command.chmod(0o700)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run([sys.executable, "-I", "-c", code], env=path, check=False).returncode == status
