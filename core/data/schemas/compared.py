"""Answers that somebody compared: two columns and a verdict, or a list with scores or ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable, cell_text, content_text, decoded, is_nothing
from ollama_tune.core.data.schemas.columns import normal
from ollama_tune.core.data.schemas.pairs import following_input
from ollama_tune.core.data.schemas.preferences import LEFT_OUT, both_sides, side
from ollama_tune.core.data.schemas.table import Convert, Plan, Record, Table, make_plan
from ollama_tune.core.data.schemas.turns import Conversation

_WORDS = {
    "sides": "response answer output completion generation candidate reply summary human_ref conversation",
    "verdicts": """winner better best preference preferred preferred_response preferred_answer choice chosen
        human_preference verdict judgment judgement better_response_id better_response better_answer label
        labels""",
    "lists": """responses completions generations answers candidates outputs replies model_responses
        all_generated_responses""",
    "marks": """overall_score score rating reward pm_score preference_score ratings scores rewards
        all_reward_scores response_scores""",
}
SIDES, VERDICTS, LISTS, MARKS = (tuple(words.split()) for words in _WORDS.values())
"""What two columns of answers are called before the sign that tells them apart, columns that say which is
better, lists of answers, and the figures of their entries, higher for a better one."""
RANKS = ("rank", "ranks", "ranking", "rankings")
"""As marks, but the smallest is the best."""
TEXTS = ("response", "answer", "completion", "generation", "text", "content", "output", "reply", "value")
"""Where an entry of a list holds its answer."""
SIGNS = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"))
THIRD = {"b": "c", "2": "3", "1": "2"}
"""A column with this sign as well makes them choices, or answers of which nobody says which two to take."""
ONLY_OF_TWO = ("label", "labels", "choice")
"""Verdicts that are something else where the columns are answers, which may be those of a test."""
STRENGTHS = ("preference_strength", "overall_preference")
"""Verdicts that are a signed figure: below zero the first answer is better, above it the second."""
FLAGS = ("winner_model", "winner", "won", "is_better")
"""Columns that say of each of two answers whether it won."""
SCORES = ("score", "rating", "reward", "points", "upvotes", "overall_score")
"""Figures of their own for each of two columns."""
TIES = ("tie", "tied", "draw", "equal", "same", "both", "neither", "both_good", "bothgood", "tie_bothgood")
NEITHER_GOOD = ("both_bad", "bothbad", "tie_bothbad", "neither", "none")

TIE = "Two compared answers are told to be equally good, so there is nothing to prefer."
BOTH_BAD = "Two compared answers are both told to be bad, so neither is learned."
NO_VERDICT = "It is not told which of two answers is better, so neither is learned."
ASKED = ("question", "conversation", "context", "history")
"""What was answered, the likeliest first: a column of one of these parts. Whole conversations have none."""
BEST, WORST = "\0best", "\0worst"
"""Columns of an entry of a list that a record gets while it is read."""


class Compared(NamedTuple):
    """A record with the names of the columns of its better and its worse answer; `tie` where neither is."""

    record: Record
    better: str
    worse: str
    tie: bool = False


Judge = Callable[[Record], Compared]
"""Finds out which answer is better. Raises `Unusable` where the record does not tell, or neither is good."""


def compared(table: Table) -> Plan | None:
    """Two columns of answers and one that says which is better, or a figure for each."""
    found = _two(table)
    if found is None:
        return None
    first, second, signs = found
    for judge, beside in _judges(table, first, second, signs):
        return _plan(table, (first, second), beside, judge, f"{first!r} and {second!r}, compared")
    return None


def ranked(table: Table) -> Plan | None:
    """A list of answers with a score or a rank each: the best one and the worst one are a pair."""
    for name in LISTS:
        column = table.names.get(name)
        if column is None:
            continue
        what = f"the best and the worst of {column!r}"
        beside = next((table.names[mark] for mark in (*MARKS, *RANKS) if mark in table.names), None)
        if table.holds(column, lambda cell: _entries({0: cell}, 0, None) is not None):
            return _plan(table, (column,), (), _of_list(column, None), what)
        if beside and any(_entries(row, column, beside) for row in table.rows(column, beside)[:20]):
            judge = _of_list(column, beside)
            return _plan(table, (column,), (beside,), judge, what)
    return None


def _plan(table: Table, answers: tuple[str, ...], beside: Sequence[str], judge: Judge, what: str) -> Plan:
    used = {*answers, *beside}
    whole = any("conversation" in normal(name) for name in answers)
    question = None if whole else next(filter(None, (table.find(part, *used) for part in ASKED)), None)
    extra = following_input(table, question, {*used, question}) if question else None
    parts = [("question", question), ("input", extra)]
    parts += [*(("compared", name) for name in answers), *(("verdict", name) for name in beside)]
    asked = [name for name in (question, extra) if name]
    names = answers if len(answers) == 2 else (BEST, WORST)
    plans = {
        pair: make_plan(table, "compared answers", parts, side(asked, None, *pair))
        for pair in (names, names[::-1])
    }
    note = (
        "preference-pairs",
        f"Each row has answers that were compared ({what}): training.objective dpo teaches to prefer the "
        f"better one, sft to give it.",
    )
    plan = plans[names]
    converts = {pair: made.convert for pair, made in plans.items()}
    lists = _as_talk(question, answers) if question and len(answers) == 2 else _as_it_is
    return replace(plan, convert=_judged(judge, lists, converts), notes=(*plan.notes, note))


def _as_it_is(record: Record) -> Record:
    return record


def _as_talk(question: str, answers: tuple[str, ...]) -> Callable[[Record], Record]:
    """Where questions and answers are lists of as many texts, each list of answers as a conversation."""

    def whole(record: Record) -> Record:
        asked, *told = (decoded(record[name]) for name in (question, *answers))
        if not all(_texts(cell) and len(cell) == len(asked) for cell in (asked, *told)):
            return record
        return {**record, **{name: _turns(asked, cell) for name, cell in zip(answers, told, strict=True)}}

    return whole


def _texts(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and all(isinstance(text, (str, type(None))) for text in cell)


def _turns(asked: Sequence[str | None], told: Sequence[str | None]) -> list[dict[str, str]]:
    texts = [text or "" for both in zip(asked, told, strict=True) for text in both]
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def _judged(
    judge: Judge, whole: Callable[[Record], Record], converts: dict[tuple[str, str], Convert]
) -> Convert:
    def convert(record: Record, line: int, log: ProblemLog) -> Conversation:
        found = judge(whole(record))
        pair = found.better, found.worse
        if not found.tie:
            return both_sides(converts[pair], converts[pair[::-1]])(found.record, line, log)
        log.warn("tie", f"{TIE} The first is learned as an answer. {LEFT_OUT}", line)
        return converts[pair](found.record, line, log)

    return convert


# Two columns


def _two(table: Table) -> tuple[str, str, tuple[str, str]] | None:
    """The two columns of answers, and by what their names differ."""
    for start in SIDES:
        for one, other in SIGNS:
            for stem in (f"{start}_", start):
                pair = table.names.get(f"{stem}{one}"), table.names.get(f"{stem}{other}")
                if pair[0] and pair[1]:
                    third = THIRD.get(other)
                    return None if third and f"{stem}{third}" in table.names else (*pair, (one, other))  # type: ignore[return-value]
    return None


def _judges(
    table: Table, first: str, second: str, signs: tuple[str, str]
) -> list[tuple[Judge, tuple[str, ...]]]:
    """The ways in which these columns may be told apart, the surest first, with the columns that tell it."""
    found = [
        _figures(table, first, second, signs, FLAGS),
        _strength(table, first, second),
        _verdict(table, first, second, signs),
        _figures(table, first, second, signs, SCORES),
    ]
    return [judge for judge in found if judge is not None]


def _named(table: Table, stems: Sequence[str], signs: tuple[str, str]) -> tuple[str, str] | None:
    """Two columns whose names end with the signs."""
    for stem, between in ((stem, between) for stem in stems for between in ("_", "")):
        pair = [table.names.get(f"{stem}{between}{sign}") for sign in signs]
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return None


def _figures(
    table: Table, first: str, second: str, signs: tuple[str, str], stems: Sequence[str]
) -> tuple[Judge, tuple[str, ...]] | None:
    """A column for each answer with a figure, or with whether it won, as of `winner_model_a`."""
    names = _named(table, stems, signs)
    if names is None:
        return None

    def judge(record: Record) -> Compared:
        one, other = (_number(record[name]) for name in names)
        if one is None or other is None:
            raise Unusable("no-verdict", NO_VERDICT)
        return _higher(record, first, second, (one, other))

    return judge, names


def _strength(table: Table, first: str, second: str) -> tuple[Judge, tuple[str, ...]] | None:
    """A signed figure, as of `preference_strength`."""
    name = next((table.names[name] for name in STRENGTHS if name in table.names), None)
    if name is None or not table.holds(name, lambda cell: _number(cell) is not None):
        return None

    def judge(record: Record) -> Compared:
        strength = _number(record[name])
        if strength is None:
            raise Unusable("no-verdict", NO_VERDICT)
        return _higher(record, first, second, (-strength, strength))

    return judge, (name,)


def _higher(record: Record, first: str, second: str, figures: tuple[float, float]) -> Compared:
    if figures[0] == figures[1]:
        return Compared(record, first, second, tie=True)
    return Compared(record, *((first, second) if figures[0] > figures[1] else (second, first)))


def _verdict(
    table: Table, first: str, second: str, signs: tuple[str, str]
) -> tuple[Judge, tuple[str, ...]] | None:
    """A column that names the better answer, by its sign, its column or the model that gave it."""
    answers = normal(first).startswith("answer")
    names = [table.names[name] for name in VERDICTS if name in table.names]
    names = [name for name in names if not (answers and normal(name) in ONLY_OF_TWO)]
    by_word = _words(first, second, signs)
    for name in names:
        words = by_word | _numbers(table, name, signs)
        if table.holds(name, partial(_says, words)):
            return _by_words(name, first, second, words), (name,)
    return None


def _says(words: dict[str, int], cell: Any) -> bool:
    return _word(cell) in words


def _by_words(name: str, first: str, second: str, words: dict[str, int]) -> Judge:
    def judge(record: Record) -> Compared:
        verdict = words.get(_word(record[name]))
        if verdict is None:
            raise Unusable("no-verdict", NO_VERDICT)
        if verdict == _BAD:
            raise Unusable("both-bad", BOTH_BAD)
        pair = (second, first) if verdict == 1 else (first, second)
        return Compared(record, *pair, tie=verdict == _TIE)

    return judge


_TIE, _BAD = 2, 3


def _words(first: str, second: str, signs: tuple[str, str]) -> dict[str, int]:
    """What a verdict may say, with what it means: 0 and 1 the first and second answer."""
    found = dict.fromkeys(TIES, _TIE) | dict.fromkeys(NEITHER_GOOD, _BAD)
    for at, (name, sign) in enumerate(zip((first, second), signs, strict=True)):
        stems = ("model", "response", "answer", "assistant", "output", "completion", "candidate")
        said = [normal(name), *(f"{stem}{between}{sign}" for stem in stems for between in ("_", ""))]
        found |= dict.fromkeys((*said, *(() if sign.isdigit() else (sign,))), at)
    return found | {"first": 0, "second": 1, "left": 0, "right": 1}


def _numbers(table: Table, name: str, signs: tuple[str, str]) -> dict[str, int]:
    """What figures in a column of verdicts mean: the signs themselves, or 1 and 2; 0 and 1 beside letters
    only where they are known to say whether the first one is better (SHP's `labels`)."""
    said = {_word(cell) for cell in table.cells(name)}
    if signs[0].isdigit():
        return {signs[0]: 0, signs[1]: 1}
    if normal(name) == "labels" and said <= {"0", "1"}:
        return {"1": 0, "0": 1}
    return {"1": 0, "2": 1} if "0" not in said else {}


def _word(cell: Any) -> str:
    """A verdict as the words are compared: `tie (bothbad)` -> `tie_bothbad`, 1.0 -> `1`."""
    number = None if isinstance(cell, (bool, str)) else _number(cell)
    if number is not None:
        return f"{number:g}"
    return normal(cell_text(cell).strip().strip("[]()").replace("(", "").replace(")", ""))


def _number(cell: Any) -> float | None:
    """A figure, also written as text; None for anything else."""
    if isinstance(cell, str):
        try:
            cell = float(cell)
        except ValueError:
            return None
    return float(cell) if isinstance(cell, (bool, int, float)) and abs(cell) < 1e300 else None


# A list


def _of_list(column: str, beside: str | None) -> Judge:
    def judge(record: Record) -> Compared:
        entries = _entries(record, column, beside)
        if not entries:
            raise Unusable("no-verdict", NO_VERDICT)
        worst, best = min(entries, key=lambda entry: entry[0]), max(entries, key=lambda entry: entry[0])
        expanded = {**record, BEST: best[1], WORST: worst[1]}
        return Compared(expanded, BEST, WORST, tie=best[0] == worst[0])

    return judge


def _entries(record: Any, column: Any, beside: str | None) -> list[tuple[float, Any]] | None:
    """The answers of a list, each with a figure that is higher for a better one; None where it is no such."""
    listed = decoded(record[column])
    if not isinstance(listed, list):
        return None
    if beside is None:
        found = [_scored(entry) for entry in listed]
    else:
        marks = decoded(record[beside])
        if not isinstance(marks, list) or len(marks) != len(listed):
            return None
        sign = -1 if normal(beside) in RANKS else 1
        found = [_pair(_number(mark), sign, entry) for mark, entry in zip(marks, listed, strict=True)]
    return [entry for entry in found if entry is not None] or None


def _scored(entry: Any) -> tuple[float, Any] | None:
    if not isinstance(entry, dict):
        return None
    text = next((entry[name] for name in TEXTS if not is_nothing(entry.get(name))), None)
    keys = chain(((name, 1) for name in MARKS), ((name, -1) for name in RANKS))
    mark = next(((entry[name], sign) for name, sign in keys if _number(entry.get(name)) is not None), None)
    return _pair(_number(mark[0]), mark[1], text) if mark else None


def _pair(mark: float | None, sign: int, answer: Any) -> tuple[float, Any] | None:
    usable = mark is not None and not is_nothing(answer)
    return (sign * mark, answer if isinstance(answer, list) else content_text(answer)) if usable else None  # type: ignore[operator]
