"""The questions that a run held out, and the system prompt that its model learned with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.values import Row
from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.compare import Sample
from ollama_tune.core.evaluate.conversation import HeldOut
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings

Messages = tuple[Mapping[str, Any], ...]
MOST = 1000
LONGEST = 2000


def read_held_out(folder: RunFolder) -> tuple[HeldOut, ...]:
    """The first thousand, split as the worker splits them; none where the data cannot be read any more."""
    from ollama_tune.core.data.load import load_dataset
    from ollama_tune.core.data.split import split_rows

    try:
        data = folder.settings().data
        _, held = split_rows(load_dataset(data.path, data.reading()).rows, data.validation_split, data.seed)
    except TuneError:
        return ()
    return tuple(found for row in held[:MOST] if (found := from_row(row)))


def from_row(row: Row) -> HeldOut | None:
    """The question of a row; None for mere text, and where the calls in it are no JSON."""
    if not row.prompt or row.messages[-1].role != "assistant":
        return None
    try:
        messages = tuple(message.as_dict() for message in row.prompt)
    except (ValueError, RecursionError):
        return None
    return HeldOut(messages, one_line(row.prompt[-1].content, LONGEST), row.answer, row.tools)


def from_sample(sample: Sample) -> HeldOut:
    """A question of the run's log, which knows no more than its last turn."""
    message = {"role": "user", "content": sample.prompt}
    return HeldOut((message,), one_line(sample.prompt, LONGEST), sample.reference)


def common_system(questions: Iterable[HeldOut]) -> str:
    """The system prompt, if all held-out questions begin with the same: the model learned with it."""
    heads = {_system(question) for question in questions}
    return heads.pop() if len(heads) == 1 else ""


def _system(question: HeldOut) -> str:
    first = question.messages[0]
    return str(first["content"]) if first["role"] == "system" else ""


def usual_system(settings: Settings, questions: Iterable[HeldOut]) -> str:
    """The system prompt that the model gets with it in Ollama, else the one of all its data, else none."""
    return settings.export.system or common_system(questions)


def with_system(messages: Messages, system: str | None) -> Messages:
    """The messages under another system prompt, under none where that is empty; as they are for None."""
    if system is None:
        return messages
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    return ({"role": "system", "content": system}, *rest) if system else tuple(rest)
