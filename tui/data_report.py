"""What `ollama-tune data` says about a data set: as lines for a person, as one object for a program."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.text import where_text

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import DatasetProfile, Example, Lengths, Message, Option, Problem, Row

LABEL = 10
LONGEST = 2_000
OPENED, CLOSED = "⟦", "⟧"


@dataclass(frozen=True)
class RowView:
    """One row, and how a model sees it."""

    number: int
    row: Row
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    rejected: Example | None = None


@dataclass(frozen=True)
class Report:
    """A data set as it was read; `lengths`, `problems` and `view` need a model."""

    profile: DatasetProfile
    lengths: Lengths | None = None
    problems: tuple[Problem, ...] = ()
    view: RowView | None = None

    @property
    def found(self) -> tuple[Problem, ...]:
        """The problems of reading, then those of rendering."""
        return (*self.profile.problems, *self.problems)

    def warnings(self) -> list[str]:
        """A sentence for everything that was left out, repaired or taken for granted."""
        said = [problem_sentence(problem) for problem in self.found]
        return said + [f"{asked.text} Taken: {asked.options[0].label}." for asked in self.profile.questions]


def label_counts(profile: DatasetProfile) -> dict[str, int]:
    """The labels of a classification with the number of their rows; 0 where they were not counted."""
    counts = dict.fromkeys(profile.labels, 0)
    store = getattr(profile.rows, "store", None)
    if store is not None and profile.labels:
        names = store.header["row_labels"]
        for place, count in Counter(store.column("label")).items():
            if place and names[place - 1] in counts:
                counts[names[place - 1]] = count
    return counts


def problem_sentence(problem: Problem) -> str:
    """What it is, how many rows, what becomes of them, and where; the plain text where no line is known."""
    where = where_text(problem)
    state = "left out" if problem.severity == "error" else "kept"
    rows = f"{problem.count:,} row" + ("" if problem.count == 1 else "s")
    place = f" ({where})" if where else ""
    return f"{problem.text.rstrip('.')}: {rows} {state}{place}." if where else problem.text


def seen_by(chat: ChatFormat, row: Row, limit: int = 0) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """The row as the model sees it, in one example or several, and what is odd about that, in sentences.

    One of these says what becomes of a row of more than `limit` tokens; 0 is no limit. Raises `TuneError`
    where the chat template refuses the row or its answers cannot be told exactly.
    """
    from ollama_tune.core.data.chat.mask import make
    from ollama_tune.core.data.chat.notes import NOTES, in_order

    made = make(chat, row)
    notes = tuple(NOTES[kind] for kind in in_order(made.notes))
    too_long = limit and any(len(example.ids) > limit for example in made.examples)
    return made.examples, (_fate(chat, row, limit), *notes) if too_long else notes


def worse_of(chat: ChatFormat, row: Row) -> Example | None:
    """The row with the worse answer of a pair as the model sees it, marked from where it differs from the
    better one. None for a row that is no pair, and where the chat template refuses one of the two."""
    if not row.rejected:
        return None
    from ollama_tune.core.data.chat.mask import make_examples
    from ollama_tune.core.data.rows.store import worse
    from ollama_tune.core.data.tokens.sides import Pair

    try:
        better, other = (make_examples(chat, side)[-1] for side in (row, worse(row)))
    except TuneError:
        return None
    return Pair.of(better, other, 0).rejected


def _fate(chat: ChatFormat, row: Row, limit: int) -> str:
    """What becomes of a row that is too long."""
    from ollama_tune.core.data.chat.answers import is_text
    from ollama_tune.core.data.tokens.shorten import shorten

    head = f"This row is longer than {limit:,} tokens"
    if is_text(row.messages):
        return f"{head}: it is learned in parts."
    shorter = shorten(chat, row, limit)
    if shorter is None:
        return f"{head}, and so is its last question with the answer: it is left out."
    left_out = f"{shorter.start + 1} to {shorter.end} of {len(row.messages)}"
    return f"{head}: its messages {left_out} are left out, and {len(shorter.example.ids):,} tokens stay."


# For programs


def as_json(report: Report) -> dict[str, Any]:
    """The object that `--json` prints; every text in it is valid Unicode."""
    profile = report.profile
    found: dict[str, Any] = {
        "outcome": "ok",
        "source": profile.source,
        "format": profile.format,
        "schema": profile.schema,
        "encoding": profile.encoding,
        "rows": profile.total,
        "usable": profile.usable,
        "first": [{"role": m.role, "content": m.content} for m in profile.rows[0].messages],
        "warnings": report.warnings(),
        "problems": [asdict(problem) for problem in report.found],
        "questions": [
            {
                "kind": question.kind,
                "text": question.text,
                "options": [option.label for option in question.options],
                "taken": question.options[0].label,
                "settings": [option.reading.settings() for option in question.options],
            }
            for question in profile.questions
        ],
        "columns": [asdict(column) for column in profile.columns],
        "labels": label_counts(profile),
        "scripts": dict(profile.scripts),
    }
    found |= {"lengths": asdict(report.lengths)} if report.lengths else {}
    found |= {"row": _row_json(report.view)} if report.view else {}
    made = valid(found)
    assert isinstance(made, dict)
    return made


def _row_json(view: RowView) -> dict[str, Any]:
    return {
        "number": view.number,
        "line": view.row.line,
        "file": view.row.file,
        "messages": [message.as_dict() for message in view.row.messages],
        "examples": [
            {"text": example.text, "ids": list(example.ids), "trained": list(example.trained)}
            for example in view.examples
        ],
        "notes": list(view.notes),
    } | ({"rejected": [turn.as_dict() for turn in view.row.rejected]} if view.row.rejected else {})


def valid(value: Any) -> Any:
    """The same value with every lone half of a surrogate pair replaced; no program could decode it."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {valid(key): valid(item) for key, item in value.items()}
    return [valid(item) for item in value] if isinstance(value, (list, tuple)) else value


# For people


def lines(report: Report) -> Iterator[str]:
    """The same for a person, control characters visible."""
    profile = report.profile
    rows = f"{profile.usable:,} usable of {profile.total:,}"
    yield from _labelled("data", visible(profile.source))
    yield from _labelled("format", f"{visible(profile.format)}, {visible(profile.encoding)}")
    yield from _labelled("schema", visible(profile.schema))
    yield from _labelled("rows", rows)
    yield from _labelled("columns", _columns_words(profile))
    counts = label_counts(profile).items()
    yield from _labelled("labels", ", ".join(f"{one_line(label, 40)} ({count:,})" for label, count in counts))
    shares = (f"{script} {share:.1%}" for script, share in profile.scripts)
    yield from _labelled("scripts", ", ".join(shares))
    yield from _labelled("tokens", _token_words(report.lengths))
    for problem in report.found:
        yield f"{'✗' if problem.severity == 'error' else '!'} {visible(problem_sentence(problem))}"
    for question in profile.questions:
        yield f"? {visible(question.text)}"
        for option in question.options:
            yield f"    {'▶' if option is question.options[0] else ' '} {visible(option.label)}"
            yield f"        with plan and run: {visible(_flags(option))}"
    yield ""
    if report.view is None:
        yield from _message_lines(profile.rows[0])
    else:
        yield from _view_lines(report.view)


def _flags(option: Option) -> str:
    """The answer as `plan`, `run` and `sweep` take it."""
    return " ".join(f"--set {shlex.quote(text)}" for text in option.assignments) or "what the content tells"


def _labelled(label: str, words: str) -> Iterator[str]:
    if words:
        yield f"{label:<{LABEL}}{words}"


def _columns_words(profile: DatasetProfile) -> str:
    used = [f"{column.part} = {one_line(column.name, 40)}" for column in profile.columns if column.part]
    unused = [one_line(column.name, 40) for column in profile.columns if not column.part]
    return "; ".join(filter(None, (", ".join(used), f"not used: {', '.join(unused)}" if unused else "")))


def _token_words(lengths: Lengths | None) -> str:
    if lengths is None:
        return ""
    about = "" if lengths.exact else "about "
    share = lengths.trained_tokens / max(lengths.tokens, 1)
    return (
        f"{about}{lengths.tokens:,}, {share:.0%} of them trained; a row has {lengths.median:,} (median), "
        f"{lengths.percentile_95:,} (95 % have no more), {lengths.longest:,} (longest)"
    )


def _message_lines(row: Row) -> Iterator[str]:
    yield f"first row, {_place(row)}"
    for message in row.messages:
        yield from _indented(message.role, _content(message))
    for message in row.rejected[row.shared :]:
        yield from _indented("rejected" if message.role == "assistant" else message.role, _content(message))


def _place(row: Row) -> str:
    return f"line {row.line:,}" + (f" of {visible(row.file)}" if row.file else "")


def _content(message: Message) -> str:
    calls = [f"[calls {call.name} {call.arguments}]" for call in message.tool_calls]
    thought = [f"[thinks: {message.reasoning}]"] if message.reasoning else []
    return "\n".join([*thought, *([message.content] if message.content else []), *calls])


def _indented(role: str, text: str) -> Iterator[str]:
    cut = text if len(text) <= LONGEST else text[:LONGEST] + f"\n… {len(text) - LONGEST:,} more characters"
    for number, line in enumerate(visible(cut, keep_newlines=True).split("\n")):
        yield f"  {role if number == 0 else '':<{LABEL}} {line}".rstrip()


def _view_lines(view: RowView) -> Iterator[str]:
    yield f"row {view.number:,}, {_place(view.row)}"
    yield from (f"! {visible(note)}" for note in view.notes)
    for example in view.examples:
        trained = sum(example.trained)
        yield ""
        yield f"{len(example.ids):,} tokens, {trained:,} of them trained, between {OPENED} and {CLOSED}"
        yield ""
        yield from visible(bracketed(example), keep_newlines=True).split("\n")
    if view.rejected is not None:
        words = "tokens with the worse answer; what is to become less likely, between"
        yield from ("", f"{len(view.rejected.ids):,} {words} {OPENED} and {CLOSED}", "")
        yield from visible(bracketed(view.rejected), keep_newlines=True).split("\n")


def bracketed(example: Example) -> str:
    """The exact text with brackets around what is trained."""
    parts, inside, at = [], False, 0
    for (start, end), trained in zip(example.offsets, example.trained, strict=True):
        if trained != inside and start >= at:
            parts += [example.text[at:start], OPENED if trained else CLOSED]
            inside, at = trained, start
        if end > at:
            parts.append(example.text[at:end])
            at = end
    return "".join([*parts, CLOSED if inside else "", example.text[at:]])
