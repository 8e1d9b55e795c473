"""What a wizard starts is its run.yaml and nothing else: the same file gives the same curve, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from ollama_tune.core.machine.values import Machine
from ollama_tune.core.plan.room import settings_here
from ollama_tune.core.plan.schema import json_schema
from ollama_tune.core.plan.settings import load
from ollama_tune.core.runs.events import Event, effective
from ollama_tune.core.runs.folder import RunFolder, State, list_runs
from ollama_tune.tui.screens.training import TrainingScreen
from tests.core.train_parts import curve, wait_for
from tests.tui.conftest import Corner, settled
from tests.tui.plain_talk import converse

RATE = "0.003"
QUICK = {
    "training.epochs": 1.0,
    "training.dropout": 0.1,
    "evaluation.rows": 2,
    "evaluation.max_new_tokens": 4,
    "export.name": None,
}
"""Dropout, so that the random numbers are compared too."""


def measured(events: list[Event]) -> list[tuple[object, ...]]:
    found = effective(events)
    return [(e["step"], e["model"], e["loss"], e["exact_match"]) for e in found if e.kind == "evaluation"]


async def test_a_run_of_the_wizard_and_of_its_file_in_another_home_are_the_same_bit_for_bit(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that is typed into the wizard, and the same rate by --set on the file of before; plain too."""
    app = corner.app(step=5, changed=QUICK)
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        await pilot.press("w")
        await settled(pilot)
        assert load(corner.home / "run.yaml").training.learning_rate != float(RATE)
        await pilot.press("escape")
        await settled(pilot)
        editor = app.screen.query_one("#field-training-learning_rate").query_one("TextField")
        editor.focus()
        await pilot.press("home", *["delete"] * 20, *RATE)
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, TrainingScreen)
        (wizard,) = list_runs()
        wait_for(lambda: wizard.status().state in (State.FINISHED, State.FAILED))
    by_file = run_file(corner.home / "run.yaml", corner.home / "elsewhere", f"training.learning_rate={RATE}")
    assert len(curve(wizard.events())) >= 4
    assert curve(by_file.events()) == curve(wizard.events())
    assert measured(by_file.events()) == measured(wizard.events()) != []
    assert by_file.settings() == wizard.settings()
    named = "adapter_model.safetensors"
    assert (by_file.adapter / named).read_bytes() == (wizard.adapter / named).read_bytes()

    corner.answers(4, changed=QUICK).save()
    converse(f"2 {RATE}", "", "w", "q")
    assert load(corner.home / "run-2.yaml") == wizard.settings()
    schema = Draft202012Validator(json_schema())
    for name in ("run.yaml", "run-2.yaml"):
        assert schema.is_valid(yaml.safe_load((corner.home / name).read_text()))


def not_asked() -> Machine:
    raise AssertionError("the file leaves nothing to this box")


@pytest.mark.parametrize(
    "said",
    [{"training.method": name} for name in ("adalora", "full", "prompt")] + [{"training.objective": "dpo"}],
    ids=lambda said: str(*said.values()),
)
async def test_the_file_of_the_wizard_is_its_plan_whatever_is_trained_and_however(
    corner: Corner, said: dict[str, str]
) -> None:
    """The worker is given a run.yaml alone, so that the same file is the same curve."""
    pairs = ({"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}."} for n in range(60))
    if "training.objective" in said:
        corner.rows.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    app = corner.app(step=5, changed=said)
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        assert app.facts.plan is not None, app.facts
        await pilot.press("w")
        await settled(pilot)
        planned = app.facts.plan.settings
    path, value = next(iter(said.items()))
    assert planned.get(path) == value
    assert settings_here(corner.home / "run.yaml", {}, not_asked) == (planned, {})


def run_file(file: Path, home: Path, change: str) -> RunFolder:
    """The run of `ollama-tune run` in a home of its own, from another folder."""
    environment = os.environ | {"OLLAMA_TUNE_HOME": str(home)}
    command = [sys.executable, "-m", "ollama_tune.tui", "run", str(file), "--set", change]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    (path,) = (home / "data" / "runs").iterdir()
    return RunFolder(path)
