"""Step 3 in plain lines: which examples are learned, what was found in them, and how the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import human_count, one_line, visible
from ollama_tune.tui import tasks
from ollama_tune.tui.help_texts import help_text
from ollama_tune.tui.plain.columns import ask_reading
from ollama_tune.tui.plain.help import lines_of
from ollama_tune.tui.shell import Interrupted
from ollama_tune.tui.state import BUNDLED
from ollama_tune.tui.text import tilde, where_text

if TYPE_CHECKING:
    from ollama_tune.core.data.values import DatasetProfile, Example, Problem
    from ollama_tune.tui.plain.rooms import Counted
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "data")
SAMPLES = 3
PROBLEMS = 9
LABELS = 12
PIECE = 300
"""Characters of one piece of a row that are read out."""
ROLES = {"system": "System prompt", "user": "Question", "assistant": "Answer", "tool": "Result of a tool"}


def ask_data(wizard: Wizard) -> None:
    """A path, then what was found; asked until there are rows that can be learned."""
    talk, rooms = wizard.talk, wizard.rooms
    while True:
        data = rooms.answers.data
        talk.hint("Type the path of a file or folder of examples, or the name of a data set on the hub.")
        answer = talk.ask("Data", BUNDLED if data == BUNDLED else tilde(data), TOPIC)
        before = rooms.answers
        if answer:
            rooms.choose_data(tasks.whole_path(answer))
        if not _readable(wizard):
            rooms.answers = before
            continue
        wizard.keep()
        if _look(wizard):
            return


def _readable(wizard: Wizard) -> bool:
    """Read it; where nobody knows its columns they are asked. False where it cannot be used."""
    talk, rooms = wizard.talk, wizard.rooms
    try:
        rooms.profile()
    except TuneError as error:
        talk.error(error)
        columns = () if isinstance(error, Interrupted) else rooms.columns()
        if not columns or not ask_reading(wizard, columns):
            return False
        return _readable(wizard)
    return True


def _look(wizard: Wizard) -> bool:
    """What was found and three rows; then what the person wants to know or change. False: other data."""
    talk, rooms = wizard.talk, wizard.rooms
    asked: set[str] = set()
    _ask_open(wizard, asked)
    _tell(wizard)
    while True:
        profile = rooms.profile()
        talk.hint(_ways(profile, (*profile.problems, *rooms.counted().problems)))
        answer = talk.ask("Data is good", "go on", TOPIC).lower().replace(",", "")
        if not answer:
            return True
        if answer == "p":
            return False
        if answer.isdecimal() and 1 <= int(answer) <= profile.usable:
            talk.say(*row_lines(rooms.counted(), profile, int(answer)))
        elif answer == "c":
            if ask_reading(wizard, profile.columns):
                _again(wizard)
        elif not _about_problem(wizard, answer[:1], answer[1:].strip()):
            talk.say(f"✗ Press Enter, or type a letter named above, or a number up to {profile.usable:,}.")


def _ways(profile: DatasetProfile, problems: Sequence[Problem]) -> str:
    """What can be typed here."""
    more = "? and a number says more about that problem, " if problems else ""
    if any(problem.switchable for problem in problems):
        more += "x and a number uses its rows or leaves them out, "
    return (
        f"Enter goes on, a number from 1 to {profile.usable:,} shows a row exactly as the model sees it, "
        f"{more}c says how the data is read, p takes other data."
    )


def _again(wizard: Wizard) -> None:
    """Read with the new answers; where that fails the old ones stay."""
    rooms = wizard.rooms
    try:
        rooms.profile()
    except TuneError as error:
        wizard.talk.error(error)
        rooms.answers = wizard.saved
    wizard.keep()
    _tell(wizard)


def _ask_open(wizard: Wizard, asked: set[str]) -> None:
    """Ask what the file leaves open, once each; the likeliest answer is the default."""
    talk, rooms = wizard.talk, wizard.rooms
    for question in rooms.profile().questions:
        if question.kind in asked:
            continue
        asked.add(question.kind)
        talk.say(visible(question.text))
        options, columns = [visible(option.label) for option in question.options], rooms.profile().columns
        own = ["None of these: you say what each column is."] if columns else []
        place = talk.choose("Answer", [*options, *own], 0, TOPIC)
        if place == len(options):
            ask_reading(wizard, columns)
            return
        if place:
            rooms.read_as(rooms.answers.reading_values() | question.options[place].reading.settings())
            _ask_open(wizard, asked)
            return


def _tell(wizard: Wizard) -> None:
    talk, rooms = wizard.talk, wizard.rooms
    profile, counted = rooms.profile(), rooms.counted()
    talk.say(*found_lines(profile, counted))
    talk.say("The first rows. The model reads all of a row, and learns to write the parts that are marked.")
    for number in range(1, min(SAMPLES, profile.usable) + 1):
        talk.say(*sample_lines(counted, profile, number))


def found_lines(profile: DatasetProfile, counted: Counted) -> list[str]:
    """How many rows, what they are, how long, and every problem with what becomes of its rows."""
    rows, lengths = f"{profile.usable:,} row{'s' * (profile.usable != 1)}", counted.lengths
    rows += f" of {profile.total:,}" if profile.total > profile.usable else ""
    share = lengths.trained_tokens / max(lengths.tokens, 1)
    lines = [
        f"✓ {rows}: {visible(profile.format)}, {visible(profile.schema)}.",
        f"{human_count(lengths.tokens)} tokens, {share:.0%} of them are learned, the others are only read. "
        f"Half of the rows have up to {lengths.median:,} tokens, the longest has {lengths.longest:,}.",
    ]
    if profile.labels:
        names = ", ".join(one_line(label, 24) for label in profile.labels[:LABELS])
        more = f" and {len(profile.labels) - LABELS} more" if len(profile.labels) > LABELS else ""
        lines.append(f"{len(profile.labels)} labels: {names}{more}.")
    problems = (*profile.problems, *counted.problems)
    numbered = enumerate(problems[:PROBLEMS], 1)
    return lines + [f"Problem {number}: {_problem(problem)}" for number, problem in numbered]


def _problem(problem: Problem) -> str:
    """What it is, how many rows, where, and what becomes of them."""
    text, where = visible(problem.text.rstrip(".")), where_text(problem)
    if not where:
        return f"{text}."
    rows = f"{problem.count:,} row{'s' * (problem.count != 1)}"
    fate = "left out" if problem.severity == "error" else "used all the same"
    return f"{text}: {rows}, {where}; {fate}."


def _about_problem(wizard: Wizard, letter: str, number: str) -> bool:
    """`?` or `x` with the number of a problem; False where it is none of these."""
    problems = (*wizard.rooms.profile().problems, *wizard.rooms.counted().problems)
    if letter not in ("?", "x") or not number.isdecimal() or not 1 <= int(number) <= len(problems):
        return False
    problem = problems[int(number) - 1]
    if letter == "?":
        wizard.talk.say(*_more_lines(wizard.rooms.profile(), problem))
    elif problem.switchable:
        _switch(wizard, problem)
        _again(wizard)
    else:
        wizard.talk.say("✗ There is no choice about this problem.")
    return True


def _more_lines(profile: DatasetProfile, problem: Problem) -> list[str]:
    """What a problem means, what to do about it, and the first rows that have it."""
    from ollama_tune.core.data.load import profile_rows

    rows = profile_rows(profile, problem.kind)[:SAMPLES]
    found = [f"Line {row.line:,}: {_cut(row.messages[-1].content)}" for row in rows]
    return [*lines_of(help_text("problems", problem.kind)), *found] or ["There is no more to say about it."]


def _switch(wizard: Wizard, problem: Problem) -> None:
    """Use the rows of a problem, or leave them out, other than now."""
    rooms = wizard.rooms
    values = rooms.answers.reading_values()
    include, exclude = (set(values.get(f"data.{name}", ())) for name in ("include", "exclude"))
    if problem.kind in include | exclude:
        include, exclude = include - {problem.kind}, exclude - {problem.kind}
    else:
        (include if problem.severity == "error" else exclude).add(problem.kind)
    rooms.read_as(values | {"data.include": sorted(include), "data.exclude": sorted(exclude)})


def sample_lines(counted: Counted, profile: DatasetProfile, number: int) -> list[str]:
    """A row turn by turn, in words, with what is learned of it."""
    from ollama_tune.tui.data_report import seen_by

    row = profile.rows[number - 1]
    try:
        examples, _ = seen_by(counted.chat, row)
    except TuneError as error:
        return [f"Row {number:,} is left out: {visible(error.what)}"]
    learned = "".join(text for example in examples for text, trained in pieces(example) if trained)
    lines = [f"Row {number:,}, line {row.line:,}:"]
    for message in row.messages:
        text = message.content.strip() or ", ".join(f"calls {call.name}" for call in message.tool_calls)
        mark = ", learned" if text and text[:PIECE] in learned else ""
        lines.append(f"  {ROLES.get(message.role, message.role)}{mark}: {_cut(text) or '(nothing)'}")
    worse = (turn for turn in row.rejected[row.shared :] if turn.role == "assistant")
    return lines + [f"  the worse answer: {_cut(turn.content) or '(nothing)'}" for turn in worse]


def row_lines(counted: Counted, profile: DatasetProfile, number: int) -> list[str]:
    """A row as the model sees it: pieces that are read and pieces that are learned, in their order."""
    from ollama_tune.tui.data_report import seen_by, worse_of

    row = profile.rows[number - 1]
    place = f"line {row.line:,}" + (f" of {one_line(row.file, 60)}" if row.file else "")
    try:
        examples, notes = seen_by(counted.chat, row)
    except TuneError as error:
        return [f"Row {number:,}, {place}, is left out: {visible(error.what)}"]
    lines = [f"Row {number:,}, {place}:"]
    for example in examples:
        lines += [f"  {'learned' if trained else 'read'}: {_cut(text)}" for text, trained in pieces(example)]
    if (rejected := worse_of(counted.chat, row)) is not None:
        lines += ["  And with the worse answer:"]
        lines += [f"  {'less likely' if told else 'read'}: {_cut(text)}" for text, told in pieces(rejected)]
    return lines + [f"! {visible(note)}" for note in notes]


def pieces(example: Example) -> list[tuple[str, bool]]:
    """The text in stretches that are all learned or all only read."""
    found: list[tuple[str, bool]] = []
    at, inside = 0, False
    for (start, _), trained in zip(example.offsets, example.trained, strict=True):
        if trained != inside:
            found.append((example.text[at:start], inside))
            at, inside = start, trained
    found.append((example.text[at:], inside))
    return [(text, trained) for text, trained in found if text.strip()]


def _cut(text: str) -> str:
    """A piece on one line, its line breaks as blanks."""
    more = f" and {len(text) - PIECE:,} more characters" if len(text) > PIECE else ""
    return one_line(text[:PIECE], PIECE) + more
