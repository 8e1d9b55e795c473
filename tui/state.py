"""What the wizard knows: the answers that survive a kill, and the facts read from the real rooms.

Both are frozen and replaced as a whole. Nothing here imports Textual, and nothing heavy at import.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ollama_tune.core.files import write_atomic
from ollama_tune.core.paths import runs_dir, state_dir
from ollama_tune.core.runs.lock import is_held
from ollama_tune.core.text import visible

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import Column, DatasetProfile, Lengths, Problem
    from ollama_tune.core.errors import TuneError
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.about import About
    from ollama_tune.core.models.values import ModelChoice, ModelSpec
    from ollama_tune.core.plan.bases import BaseFit
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.plan.values import Choice, Plan

BUNDLED = "bundled"
READING = ("columns", "labels", "form", "split", "validation", "subset", "revision", "include", "exclude")
"""The settings of the section `data` that say how a file is read; they belong to that file alone."""


@dataclass(frozen=True)
class Step:
    """One step of the wizard: its number from 1, the words for it, and where its screen lives."""

    number: int
    title: str
    module: str
    screen: str


STEPS = tuple(
    Step(number, title, f"ollama_tune.tui.screens.{module}", screen)
    for number, (title, module, screen) in enumerate(
        (
            ("This machine", "machine", "MachineScreen"),
            ("Model", "model", "ModelScreen"),
            ("Data", "data", "DataScreen"),
            ("Settings", "settings", "SettingsScreen"),
            ("Review", "review", "ReviewScreen"),
            ("Training", "training", "TrainingScreen"),
            ("Try it", "try_it", "TryItScreen"),
            ("Export", "export", "ExportScreen"),
            ("Done", "done", "DoneScreen"),
        ),
        start=1,
    )
)
SETTINGS, REVIEW, TRAINING, DONE = 4, 5, 6, 9


@dataclass(frozen=True)
class WizardState:
    """The answers so far. `template` names the chat form taken for a base model; `changed` maps dotted
    setting paths to the values the person set; `run` names the run folder that was started with them, if any.
    """

    step: int = 1
    model: str = BUNDLED
    revision: str | None = None
    data: str = BUNDLED
    changed: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "changed", MappingProxyType(dict(self.changed)))

    def save(self) -> None:
        """Write the answers in one piece into the state folder."""
        write_atomic(_wizard_path(), json.dumps(vars(self) | {"changed": dict(self.changed)}))

    def plan_values(self) -> dict[str, Any]:
        """The values that the recommendation must not touch, by dotted path."""
        values = {"model.source": self.model, "data.path": self.data}
        chosen = {"model.revision": self.revision, "model.chat_template": self.template}
        return values | {path: value for path, value in chosen.items() if value} | dict(self.changed)

    def reading_values(self) -> dict[str, Any]:
        """What the person said about how the file is read, by dotted path."""
        return {path: value for path, value in self.changed.items() if path in _READING_PATHS}

    def read_as(self, values: Mapping[str, Any]) -> WizardState:
        """The answers with those values, and no others, about how the file is read."""
        kept = {path: value for path, value in self.changed.items() if path not in _READING_PATHS}
        return replace(self, changed=kept | dict(values))


_READING_PATHS = frozenset(f"data.{name}" for name in READING)


def answers_of(settings: Settings, step: int = SETTINGS) -> WizardState:
    """The answers that give these very settings, such as those of a run that is to be done again, changed.

    Everything counts as set by hand, so that nothing changes but what the person changes; a field that is
    as recommended shows no mark. The name in Ollama is recommended anew: the old model is not to be replaced.
    """
    values = {
        f"{section}.{name}": value
        for section in ("data", "training", "evaluation", "export")
        for name, value in getattr(settings, section).model_dump().items()
    }
    kept = {path: value for path, value in values.items() if path not in _ASKED_ANEW}
    changed = {path: value for path, value in kept.items() if value or path not in _READING_PATHS}
    model, data = settings.model, settings.data.path
    return WizardState(step, model.source, model.revision, data, changed, None, model.chat_template)


_ASKED_ANEW = frozenset(("data.path", "export.name"))


@dataclass(frozen=True)
class Facts:
    """What the rooms found out for the present answers; None while it is not known (yet).

    `model_error`, `data_error` and `plan_error` say why there is none. `recommended` holds, for each
    changed field, what would be recommended instead. `busy` says in words what is being worked on.
    `columns` are those of a file whose columns are not known. `fitted` is `chat` with the options that suit
    the rows.
    `in_use` are sentences about who holds memory, `unloaded` is one about what Ollama gave back. `base` is
    the recommended base model, and `fits` says of each listed one, by its id, what it needs here. `logout`
    says what a logout would end.
    """

    machine: Machine | None = None
    in_use: tuple[str, ...] = ()
    unloaded: str = ""
    base: Choice | None = None
    fits: Mapping[str, BaseFit] = field(default_factory=dict)
    models: tuple[ModelChoice, ...] = ()
    spec: ModelSpec | None = None
    about: About | None = None
    model_error: TuneError | None = None
    profile: DatasetProfile | None = None
    data_error: TuneError | None = None
    columns: tuple[Column, ...] = ()
    chat: ChatFormat | None = None
    fitted: ChatFormat | None = None
    lengths: Lengths | None = None
    length_problems: tuple[Problem, ...] = ()
    plan: Plan | None = None
    plan_error: TuneError | None = None
    recommended: Mapping[str, Choice] = field(default_factory=dict)
    busy: Mapping[str, str] = field(default_factory=dict)
    logout: str = ""


def load_answers() -> WizardState:
    """The saved answers; whatever is missing or unreadable in the file is the default."""
    try:
        saved = json.loads(_wizard_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return WizardState()
    return answers_from(saved) if isinstance(saved, dict) else WizardState()


def answers_from(saved: dict[str, Any]) -> WizardState:
    """Answers as they were stored; whatever is missing or wrong is the default."""

    def text(name: str) -> str | None:
        return saved[name] if isinstance(saved.get(name), str) and saved[name] else None

    step, changed = saved.get("step"), saved.get("changed")
    return WizardState(
        step=step if isinstance(step, int) and 1 <= step <= len(STEPS) else 1,
        model=text("model") or BUNDLED,
        revision=text("revision"),
        template=text("template"),
        data=text("data") or BUNDLED,
        changed={k: v for k, v in changed.items() if isinstance(k, str)} if isinstance(changed, dict) else {},
        run=text("run"),
    )


def forget_answers() -> None:
    """Remove the saved answers: the next wizard starts afresh."""
    with contextlib.suppress(OSError):
        _wizard_path().unlink()


def _wizard_path() -> Path:
    return state_dir() / "wizard.json"


def live_run() -> Path | None:
    """The folder of the newest run that a worker holds now.

    It asks the lock files alone: reading a run's settings would cost the first frame 0.1 s.
    """
    locks = sorted(runs_dir().glob("*/lock"), key=lambda path: path.parent.name, reverse=True)
    return next((path.parent for path in locks if is_held(path)), None)


def goes_on(run: Path) -> str:
    """What is said of a live run where its window is left: that it goes on, and how to come back."""
    name = visible(run.name)
    return f"{name} goes on without this window: `ollama-tune attach {name}` shows it again."
