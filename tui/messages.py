"""What happened: the past-tense messages that slow work posts to the application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textual.message import Message

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import Column, DatasetProfile, Example, Lengths, Problem, Row
    from ollama_tune.core.errors import TuneError
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.about import About
    from ollama_tune.core.models.values import ModelChoice, ModelSpec
    from ollama_tune.core.plan.bases import BaseFit
    from ollama_tune.core.plan.values import Choice, Plan
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.core.runs.launch import WarmWorker


@dataclass
class ProbeFinished(Message):
    """The box was looked at; `in_use` are sentences about who holds memory there."""

    machine: Machine
    in_use: tuple[str, ...] = ()


@dataclass
class OllamaUnloaded(Message):
    """Ollama was asked to unload its models; `text` says what came of it."""

    text: str


@dataclass
class BaseRecommended(Message):
    """The listed base models were weighed for this box."""

    base: Choice
    fits: Mapping[str, BaseFit]


@dataclass
class ModelsListed(Message):
    """The models on this box that can be offered."""

    models: tuple[ModelChoice, ...]


@dataclass
class ModelRead(Message):
    """A base model's files were read, or were no model (then `error` says why).

    With a `spec` and an `error` only the chat form is missing, which `about` may offer.
    """

    source: str
    revision: str | None = None
    spec: ModelSpec | None = None
    about: About | None = None
    chat: ChatFormat | None = None
    error: TuneError | None = None


@dataclass
class DatasetChecked(Message):
    """A data file was read and checked, or could not be (then `error` says why).

    `reading` are the settings it was read with. Of a profile that is not exact the exact one follows.
    `columns` are those of a file whose columns nobody knows, for the person to say what they are.
    """

    path: str
    reading: Mapping[str, Any] = field(default_factory=dict)
    profile: DatasetProfile | None = None
    error: TuneError | None = None
    columns: tuple[Column, ...] = ()


@dataclass
class RowsMeasured(Message):
    """Rows were rendered and their tokens counted, or none could be (then `error` says why).

    `chat` is the model's form with the options that suit these rows, as training will use it. `last` is off
    where only a sample was counted, and all of them are still being counted.
    """

    lengths: Lengths | None = None
    problems: tuple[Problem, ...] = ()
    error: TuneError | None = None
    last: bool = True
    chat: ChatFormat | None = None


@dataclass
class WorkAdvanced(Message):
    """Slow work says in words how far it is; a newer message replaces an older one under load."""

    name: str
    text: str

    def can_replace(self, message: Message) -> bool:
        """Only the newest news of the same work is worth handling."""
        return isinstance(message, WorkAdvanced) and message.name == self.name


@dataclass
class PlanChanged(Message):
    """A plan was made for the present answers, or none can be (then `error` says why)."""

    plan: Plan | None
    recommended: Mapping[str, Choice]
    error: TuneError | None = None


@dataclass
class LogoutRead(Message):
    """Whether a logout would end the run: a remark, or nothing."""

    remark: str


@dataclass
class RowsFound(Message):
    """The rows of a problem were looked up."""

    problem: Problem
    rows: Sequence[Row]


@dataclass
class RowRendered(Message):
    """One row as the model sees it, or why it is left out; `notes` say what is odd about its rendering.

    A row gives several examples where its template rewrites what was said; none where it is no row at all.
    `rejected` is the same row with the worse answer of a pair.
    """

    row: Row
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    error: TuneError | None = None
    rejected: Example | None = None


@dataclass
class RunStarted(Message):
    """A worker holds the new run."""

    folder: RunFolder


@dataclass
class StartFailed(Message):
    """The run could not be started."""

    error: TuneError


@dataclass
class WarmStarted(Message):
    """A warm worker is importing the training libraries."""

    worker: WarmWorker
