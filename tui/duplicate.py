"""A run that is done again with changes takes over the wizard; what was in it is kept, to be had back."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.paths import state_dir
from ollama_tune.tui.state import BUNDLED, WizardState, answers_from


def keep_answers(answers: WizardState, given: WizardState) -> bool:
    """Keep unfinished answers before `given` takes their place; True where there is something kept now.

    Answers of a run that was started are in its run.yaml. Those that a duplicate gave, and nobody changed, do
    not push out what was kept for them.
    """
    stored = read_table(_path())
    unchanged = bool(stored) and _same(answers, answers_from(_part(stored, "given")))
    kept = _part(stored, "kept") if unchanged else _table(answers) if _unfinished(answers) else {}
    if not kept:
        forget_kept()
        return False
    with contextlib.suppress(OSError, TuneError):
        write_atomic(_path(), json.dumps({"kept": kept, "given": _table(given)}))
        return True
    return False


def kept_answers() -> WizardState | None:
    """What was kept; None where nothing was."""
    kept = _part(read_table(_path()), "kept")
    return answers_from(kept) if kept else None


def forget_kept() -> None:
    """What was kept is in the wizard again."""
    with contextlib.suppress(OSError):
        _path().unlink()


def _unfinished(answers: WizardState) -> bool:
    chosen = bool(answers.changed) or answers.model != BUNDLED or answers.data != BUNDLED
    return answers.run is None and chosen


def _same(first: WizardState, second: WizardState) -> bool:
    return _table(replace(first, step=1)) == _table(replace(second, step=1))


def _table(answers: WizardState) -> dict[str, Any]:
    return vars(answers) | {"changed": dict(answers.changed)}


def _part(stored: dict[str, Any], name: str) -> dict[str, Any]:
    part = stored.get(name)
    return part if isinstance(part, dict) else {}


def _path() -> Path:
    return state_dir() / "wizard-kept.json"
