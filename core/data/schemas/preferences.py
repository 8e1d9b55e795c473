"""Pairs of a better and a worse answer to the same question, in the forms that people keep them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable, cell_text
from ollama_tune.core.data.schemas.markup import marked_turns, open_turn
from ollama_tune.core.data.schemas.pairs import answer_turns, asked_turns, following_input, history_of
from ollama_tune.core.data.schemas.table import Base, Convert, Plan, Record, Table, make_plan
from ollama_tune.core.data.schemas.tidy import tidy
from ollama_tune.core.data.schemas.turns import Conversation, turns
from ollama_tune.core.data.values import Message

TROUBLES = {
    "no-rejected": "A pair has no worse answer.",
    "equal-answers": "Both answers of a pair are the same, so there is nothing to prefer.",
    "other-question": "The two answers of a pair do not follow the same question.",
}
"""Why a row with both columns is no pair; its better answer can be learned all the same."""
SCORE_ORDER = "By their scores the rejected answer of a pair is the better one; the columns are believed."
EQUAL_SCORES = "Both answers of a pair have the same score; the columns are believed."
LEFT_OUT = "With training.objective dpo the row is left out."


def preference(table: Table) -> Plan | None:
    """Two columns of answers, with the question in a third one, or in front of both answers."""
    chosen, rejected = table.find("chosen"), table.find("rejected")
    own = ("answer", "text", "conversation", "label")
    if chosen is None or rejected is None or any(table.given(part) for part in own):
        return None
    columns = (chosen, rejected)
    question = table.find("question", *columns) or table.find("conversation", *columns)
    extra = following_input(table, question, {*columns, question}) if question else None
    history = table.find("history", *columns, question)
    parts = [("question", question), ("input", extra), ("history", history)]
    scores = _scores(table)
    parts += [("chosen", chosen), ("rejected", rejected), *(("score", name) for name in scores)]
    note = (
        "preference-pairs",
        f"Each row has a better answer ({chosen!r}) and a worse one ({rejected!r}): training.objective dpo "
        f"teaches to prefer the better one, sft to give it.",
    )
    asked = [name for name in (question, extra) if name]
    better, worse = (
        make_plan(table, "preference pairs", parts, side(asked, history, *pair), [note])
        for pair in (columns, columns[::-1])
    )
    convert = both_sides(better.convert, worse.convert)
    return replace(better, convert=_doubted(convert, *scores) if scores else convert)


def _scores(table: Table) -> tuple[str, ...]:
    """The columns that hold the scores of the better and of the worse answer."""
    for word in ("score", "rating", "reward"):
        for names in ((f"{word}_chosen", f"{word}_rejected"), (f"chosen_{word}", f"rejected_{word}")):
            if all(name in table.names for name in names):
                return tuple(table.names[name] for name in names)
    return ()


def _doubted(inner: Convert, chosen: str, rejected: str) -> Convert:
    """The same, telling of pairs whose scores say something else."""

    def convert(record: Record, line: int, log: ProblemLog) -> Conversation:
        found, scores = inner(record, line, log), (record[chosen], record[rejected])
        if all(isinstance(score, (int, float)) for score in scores) and scores[0] <= scores[1]:
            equal = scores[0] == scores[1]
            log.warn("equal-scores" if equal else "score-order", EQUAL_SCORES if equal else SCORE_ORDER, line)
        return found

    return convert


def both_sides(better: Convert, worse: Convert) -> Convert:
    """A reader of pairs, made of those of their two sides."""

    def convert(record: Record, line: int, log: ProblemLog) -> Conversation:
        found = better(record, line, log)
        try:
            other = worse(record, line, ProblemLog()).messages
        except Unusable:
            other = ()
        return found._replace(rejected=other)

    return convert


def side(asked: Sequence[str], history: str | None, column: str, other: str) -> Base:
    """The conversation with the answer of one column; `other` is that of the other answer."""

    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        cell = record[column]
        before = record[asked[0]] if asked else None
        text = _joined(before, cell)
        marked = marked_turns(text) if text else None
        after = turns(marked, line, log) if marked else answer_turns(cell, line, log)
        if any(message.role == "user" for message in after):
            return after
        if not asked:
            return _after_shared(cell_text(cell), cell_text(record[other]))
        told = history_of(record[history]) if history else []
        return [*told, *asked_turns([record[name] for name in asked], line, log), *after]

    return base


def _joined(before: object, cell: object) -> str:
    """A text with the marks of turns: the answer's own, or that of a question which opens the answer."""
    if not isinstance(cell, str):
        return ""
    if isinstance(before, str):
        return f"{before.rstrip()}\n{cell}" if open_turn(before) else ""
    return cell if before is None else ""


def _after_shared(text: str, other: str) -> list[Message]:
    """Two texts that begin alike hold the question in what they share (TRL's implicit prompt)."""
    both = enumerate(zip(text, other, strict=False))
    shared = text[: next((i for i, (a, b) in both if a != b), min(len(text), len(other)))]
    cut = max(shared.rfind(" "), shared.rfind("\n")) if shared not in (text, other) else -1
    if cut <= 0:
        raise Unusable("no-question", "There is no question.")
    return [Message("user", text[:cut]), Message("assistant", text[cut:])]


def other_side(
    messages: Sequence[Message], found: Conversation, line: int, log: ProblemLog
) -> tuple[Message, ...]:
    """The conversation with the worse answer, tidied; nothing, and why, where the row is no pair after all.

    `messages` are those with the better answer as they were tidied.
    """
    if found.rejected is None:
        return ()
    try:
        other = tidy(found.rejected, line, ProblemLog()) if found.rejected else ()
    except Unusable:
        other = ()
    trouble = _trouble(messages, other)
    if trouble:
        log.warn(trouble, f"{TROUBLES[trouble]} {LEFT_OUT}", line)
        return ()
    return other


def _trouble(messages: Sequence[Message], other: Sequence[Message]) -> str:
    """The kind of trouble with two conversations, which are to differ from some answer on."""
    if not other:
        return "no-rejected"
    both = enumerate(zip(messages, other, strict=False))
    at = next((i for i, (one, two) in both if _said(one) != _said(two)), min(len(messages), len(other)))
    if at == len(messages) == len(other):
        return "equal-answers"
    answers = (*messages[at : at + 1], *other[at : at + 1])
    return "" if [turn.role for turn in answers] == ["assistant", "assistant"] else "other-question"


def _said(message: Message) -> tuple[object, ...]:
    """What must differ in two answers: not blanks around them."""
    return message.role, message.content.strip(), message.reasoning.strip(), message.tool_calls
