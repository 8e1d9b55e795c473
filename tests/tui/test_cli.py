"""The command line without a terminal: it never asks, never shows a traceback, and says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.core.train_parts import write_rows
from tests.tiny import build_model

COMMANDS = ["attach", "data", "delete", "demo", "export", "paths", "plan", "predict", "probe", "resume"]
COMMANDS += ["run", "runs", "stop", "verify"]


def tune(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ollama_tune.tui", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"OLLAMA_TUNE_HOME": str(home), "PATH": "", "OLLAMA_HOST": "127.0.0.1:9"},
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(tmp_path: Path, command: str) -> None:
    done = tune(tmp_path, command, "--help")
    assert done.returncode == 0 and done.stdout.startswith("Usage:")


def test_the_wizard_without_a_terminal_names_the_commands(tmp_path: Path) -> None:
    done = tune(tmp_path)
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr and "ollama-tune run" in done.stderr


def test_version_names_what_decides(tmp_path: Path) -> None:
    done = tune(tmp_path, "--version")
    assert done.returncode == 0 and "ollama-tune 0." in done.stdout and "torch" in done.stdout


def test_an_empty_list_of_runs_says_how_to_start(tmp_path: Path) -> None:
    assert "ollama-tune demo" in tune(tmp_path, "runs").stdout
    assert json.loads(tune(tmp_path, "runs", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attach"], "There is no run yet."),
        (["stop", "nothing"], "no run called 'nothing'"),
        (["run", "absent.yaml"], "absent.yaml cannot be read"),
        (["plan", "--set", "training.rnk=3"], "Did you mean 'training.rank'"),
        (["plan", "--set", "rank"], "has no '='"),
        (["plan", "--data", "absent.jsonl"], "absent.jsonl"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_two_or_one(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = tune(tmp_path, *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr and "Traceback" not in done.stderr + done.stdout


def test_a_wrong_field_in_a_run_file_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training:\n  learning_rat: 1.0e-4\n")
    done = tune(tmp_path, "run", str(file))
    assert done.returncode == 2 and "training.learning_rate" in done.stderr
    assert not list((tmp_path / "data").glob("runs/*")), "nothing was started"


def test_a_base_model_without_its_chat_form_is_refused_before_anything_starts(tmp_path: Path) -> None:
    model = build_model(tmp_path / "base")
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    file = tmp_path / "run.yaml"
    file.write_text(f"model:\n  source: {model}\nexport:\n  name: null\n")
    done = tune(tmp_path, "run", str(file))
    assert done.returncode == 2
    assert "base model" in done.stderr and "model.chat_template to 'plain roles'" in done.stderr
    assert not list((tmp_path / "data").glob("runs/*")), "nothing was started"


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on a tiny model, without an export."""
    folder = tmp_path_factory.mktemp("run")
    settings = {
        "model": {"source": str(build_model(folder / "model"))},
        "data": {"path": str(write_rows(folder / "rows.jsonl", 12)), "validation_split": 0.2},
        "training": {"epochs": 1.0, "rank": 4},
        "evaluation": {"rows": 2, "max_new_tokens": 4},
        "export": {"name": None},
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    return folder / "run.yaml"


def test_a_run_without_a_terminal_is_told_in_plain_lines(tmp_path: Path, run_file: Path) -> None:
    done = tune(tmp_path, "run", str(run_file), "--plain")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Run folder: ") and any(line.startswith("  step     1 of 2") for line in lines)
    assert lines[1].startswith("Not in run.yaml, so chosen for this box: training.compute_dtype ")
    written = yaml.safe_load((Path(lines[0].removeprefix("Run folder: ")) / "run.yaml").read_text())
    assert f"training.compute_dtype {written['training']['compute_dtype']}, " in lines[1]


def test_a_run_can_be_told_in_its_own_events(tmp_path: Path, run_file: Path) -> None:
    done = tune(tmp_path, "run", str(run_file), "--events")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    folder = Path(done.stderr.splitlines()[0].removeprefix("Run folder: "))
    assert told == [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["n"] for event in told] == list(range(len(told)))
    assert (told[0]["kind"], told[-1]["kind"]) == ("start", "done")


def test_deleting_without_a_terminal_needs_yes(tmp_path: Path) -> None:
    run = tmp_path / "data" / "runs" / "old"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text("version: 1\n")
    assert tune(tmp_path, "delete", "old").returncode == 2
    assert run.exists()
    assert tune(tmp_path, "delete", "old", "--yes").returncode == 0
    assert not run.exists()


def test_paths_lie_below_the_home(tmp_path: Path) -> None:
    lines = tune(tmp_path, "paths").stdout.splitlines()
    assert len(lines) == 6 and all(str(tmp_path) in line for line in lines)
