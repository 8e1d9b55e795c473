"""Schemas of a question and an answer in columns of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.calls import calls_of, is_calls
from ollama_tune.core.data.schemas.cells import Unusable, cell_text, content_text, decoded, is_nothing
from ollama_tune.core.data.schemas.columns import ALIASES, INSTRUCTIONS, PAIRS, PROMPTS, normal
from ollama_tune.core.data.schemas.dialogues import shown
from ollama_tune.core.data.schemas.markup import marked_turns, open_turn
from ollama_tune.core.data.schemas.table import Base, Note, Plan, Record, Table, make_plan
from ollama_tune.core.data.schemas.turns import is_turns, turns
from ollama_tune.core.data.values import Message, Question

_CONSTANT = 5
"""Rows that must have the same instruction before it is called the same in all."""


def pair(table: Table) -> Plan | None:
    """A question and an answer by the names of their columns, with what belongs to them."""
    found = _chosen_pair(table)
    if found is None:
        return None
    question, answer = found
    used = {question, answer}
    context = table.find("context", *used) or (table.given("context") and table.find("context"))
    context = context or _title(table, question)
    extra = following_input(table, question, used | {context or ""})
    history, reasoning = table.find("history", *used), table.find("reasoning", *used)
    parts = [("context", context), ("question", question), ("input", extra), ("history", history)]
    parts += [("reasoning", reasoning), ("answer", answer)]
    notes, questions = _doubts(table, question, answer, extra)
    if reasoning:
        text = f"Column {reasoning!r} is learned as the reasoning before the answer."
        notes.append(("reasoning-column", text))
    asked = [name for name in (context, question, extra) if name]
    called = table.find("tools") is not None and table.holds(answer, is_calls)
    base = _pair_base(asked, answer, history, reasoning, called)
    if isinstance(table.record[question], str) and table.holds(question, _is_open):
        base = _open_base(question, answer)
    return make_plan(table, _kind(question, answer, context, extra), parts, base, notes, questions)


def _is_open(cell: Any) -> bool:
    return isinstance(cell, str) and open_turn(cell)


def _chosen_pair(table: Table) -> tuple[str, str] | None:
    if not table.given("question") and not table.given("answer"):
        for asked, answered in PAIRS:
            if asked in table.names and answered in table.names:
                return table.names[asked], _best_answer(table, table.names[answered], table.names[asked])
    answers = _answers(table)
    question = _question(table, answers[0] if answers else None)
    answers = [name for name in answers if name != question]
    return (question, answers[0]) if question and answers else None


def _best_answer(table: Table, answer: str, question: str) -> str:
    """The answer that belongs to a question by name, unless its first cells are all empty."""
    filled = [name for name in _answers(table) if name != question and table.cells(name)]
    return answer if table.cells(answer) or not filled else filled[0]


def _answers(table: Table) -> list[str]:
    """Columns that may hold the answer; those that are empty in the first rows come last."""
    names = [*table.all("answer"), *(name for name in table.all("summary"))]
    if table.given("answer"):
        names = table.all("answer")
    return sorted(dict.fromkeys(names), key=lambda name: not table.cells(name))


def _question(table: Table, answer: str | None) -> str | None:
    if table.given("question"):
        return table.given("question")
    for part in ("question", "conversation", "input"):
        column = table.find(part, answer)
        if column is not None and (part != "conversation" or table.holds(column, is_turns)):
            return column
    summarises = answer is not None and normal(answer) in ALIASES["summary"]
    order = ("document", "context", "text") if summarises else ("context", "text", "document")
    return next((name for part in order if (name := table.find(part, answer))), None)


def following_input(table: Table, question: str, used: set[str]) -> str | None:
    """What follows the question: Alpaca's input, or a question beside an instruction."""
    extra = table.find("input", *used)
    if extra is None and normal(question) in INSTRUCTIONS:
        names = [table.names.get(name) for name in ("question", "query", "problem")]
        extra = next((name for name in names if name and name not in used), None)
    return extra


def _title(table: Table, question: str) -> str | None:
    """The title above a question that is called a body."""
    return table.names.get("title") if normal(question).endswith("body") else None


def _kind(question: str, answer: str, context: str | None, extra: str | None) -> str:
    asked = normal(question)
    if asked in INSTRUCTIONS:
        return "alpaca"
    if normal(answer) in ALIASES["summary"]:
        return "text and summary"
    if asked in PROMPTS:
        return "prompt and completion"
    if asked in ALIASES["input"]:
        return "input and output"
    return "question and answer with context" if context or extra else "question and answer"


def _doubts(table: Table, question: str, answer: str, extra: str | None) -> tuple[list[Note], list[Question]]:
    """What the names leave open: several columns for the answer, an instruction that never changes."""
    notes: list[Note] = []
    questions: list[Question] = []
    answers = [
        answer,
        *(name for name in _answers(table) if name not in (answer, question) and table.cells(name)),
    ]
    if len(answers) > 1 and not table.given("answer"):
        listed = ", ".join(repr(name) for name in answers)
        notes.append(
            ("answer-columns", f"Several columns may hold the answer: {listed}; {answer!r} is learned.")
        )
        options = [(f"{name!r}, such as {_sample(table, name)}", {"answer": name}) for name in answers]
        questions.append(table.ask("answer-columns", "Which column holds the answer?", options))
    if extra and not table.given("system") and _is_constant(table, question, extra):
        text = (
            f"Column {question!r} says the same in every row looked at; it stands before {extra!r} in each "
            f"question. It could be the system text instead."
        )
        notes.append(("same-instruction", text))
        options = [
            (f"{question!r} stays in the question, before {extra!r}", {"question": question}),
            (
                f"{question!r} is the system text, {extra!r} the question",
                {"system": question, "question": extra},
            ),
        ]
        questions.append(table.ask("same-instruction", "Where does the instruction belong?", options))
    return notes, questions


def _sample(table: Table, column: str) -> str:
    return f"“{shown(next(iter(table.cells(column)), ''))}”"


def _is_constant(table: Table, question: str, extra: str) -> bool:
    asked, given = table.cells(question), table.cells(extra)
    same = len({cell_text(cell) for cell in asked}) == 1
    return len(asked) >= _CONSTANT and same and len({cell_text(cell) for cell in given}) > len(given) / 2


def _pair_base(
    asked: Sequence[str], answer: str, history: str | None, reasoning: str | None, called: bool
) -> Base:
    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        before = history_of(record[history]) if history else []
        before += asked_turns([record[name] for name in asked], line, log)
        cell = record[answer]
        after = [_calling(cell)] if called and is_calls(cell) else answer_turns(cell, line, log)
        thought = cell_text(record[reasoning]) if reasoning else ""
        if thought.strip() and after:
            after[-1] = replace(after[-1], reasoning=thought)
        return [*before, *after]

    return base


def _calling(cell: Any) -> Message:
    return Message("assistant", "", tool_calls=calls_of(cell))


def _open_base(question: str, answer: str) -> Base:
    """A prompt that carries the marks of a chat format up to the head of the answer."""

    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        asked, answered = content_text(record[question]), answer_text(record[answer], line, log)
        marked = marked_turns(asked.rstrip() + "\n" + answered) if open_turn(asked) else None
        if marked is not None:
            return turns(marked, line, log)
        return [Message("user", asked), Message("assistant", answered)]

    return base


def asked_turns(cells: Sequence[Any], line: int, log: ProblemLog) -> list[Message]:
    """The messages before an answer: turns as they are, or one question of all texts, blank lines between."""
    if len(cells) == 1:
        cell = cells[0]
        if isinstance(cell, str) and cell[:1] not in "[{":
            return [Message("user", cell)]
        return turns(cell, line, log) if is_turns(cell) else [Message("user", content_text(cell))]
    found = next((cell for cell in cells if not isinstance(cell, str) and is_turns(cell)), None)
    texts = [content_text(cell) for cell in cells if cell is not found and not is_nothing(cell)]
    question = [Message("user", "\n\n".join(texts))] if texts else []
    return [*question, *turns(found, line, log)] if found is not None else question


def answer_turns(cell: Any, line: int, log: ProblemLog) -> list[Message]:
    """An answer: turns as they are, else one text."""
    if not isinstance(cell, str) or cell[:1] in ("[", "{"):
        if is_turns(cell) and not _is_text_object(cell):
            return turns(cell, line, log)
        return [Message("assistant", answer_text(cell, line, log))]
    return [Message("assistant", cell)]


def _is_text_object(cell: Any) -> bool:
    found = decoded(cell)
    return isinstance(found, Mapping) and not any(key in found for key in ("role", "from", "messages"))


def answer_text(cell: Any, line: int, log: ProblemLog) -> str:
    """One text of an answer that may be one of several: a list of texts, or SQuAD's object of lists."""
    found = decoded(cell) if isinstance(cell, str) and "answer_start" in cell else cell
    if isinstance(found, Mapping):
        texts = found.get("text")
        if isinstance(texts, (list, tuple)):
            return _first(texts, line, log)
        if isinstance(found.get("value"), str) and "aliases" in found:
            return str(found["value"])
    if isinstance(found, (list, tuple)):
        if all(isinstance(entry, Mapping) and "answer_start" in entry for entry in found):
            found = [entry.get("text") for entry in found]
        if all(isinstance(text, str) for text in found):
            return _first(found, line, log)
    return cell_text(cell)


def _first(texts: Sequence[Any], line: int, log: ProblemLog) -> str:
    if len({cell_text(text).strip() for text in texts}) > 1:
        log.warn("first-answer", "Of several answers to a question the first is learned.", line)
    return cell_text(texts[0]) if texts else ""


def history_of(value: Any) -> list[Message]:
    """The turns before the question: a list of (question, answer) pairs or of turns."""
    found = decoded(value)
    if is_nothing(found):
        return []
    if is_turns(found):
        return turns(found, 0, ProblemLog())
    if not isinstance(found, (list, tuple)):
        raise Unusable("bad-history", "A history is not a list of (question, answer) pairs.")
    messages: list[Message] = []
    for entry in found:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise Unusable("bad-history", "A history is not a list of (question, answer) pairs.")
        messages += [Message("user", content_text(entry[0])), Message("assistant", content_text(entry[1]))]
    return messages


def steps(table: Table) -> Plan | None:
    """A solution in steps, each marked right or wrong (TRL's stepwise supervision)."""
    question, answers, marks = (table.find("question"), *map(table.names.get, ("completions", "labels")))
    if question is None or answers is None or marks is None:
        return None
    if not table.holds(answers, _is_list) or not table.holds(marks, _is_list):
        return None

    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        parts, good = decoded(record[answers]), decoded(record[marks])
        if not isinstance(parts, list) or not isinstance(good, list) or not all(good):
            raise Unusable("wrong-step", "A solution with a wrong step is not learned.")
        text = "\n".join(cell_text(part) for part in parts)
        return [*asked_turns([record[question]], line, log), Message("assistant", text)]

    parts = [("question", question), ("answer", answers), ("steps", marks)]
    return make_plan(table, "steps with marks", parts, base)


def _is_list(cell: Any) -> bool:
    return isinstance(decoded(cell), list)
