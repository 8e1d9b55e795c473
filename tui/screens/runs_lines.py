"""The list of runs as text: its columns for a window of any width, and what is told of the chosen run."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from textual.content import Content

from ollama_tune.core.runs.folder import State
from ollama_tune.core.text import human_bytes, one_line, visible
from ollama_tune.tui.run_summary import ListedRun
from ollama_tune.tui.text import tilde

SIGNS = {
    State.NEW: "·",
    State.RUNNING: "▶",
    State.PAUSED: "‖",
    State.SILENT: "!",
    State.FINISHED: "✓",
    State.STOPPED: "■",
    State.FAILED: "✗",
    State.CRASHED: "✗",
}
MARK = "●"
YEAR = re.compile(r"\d{4}-\d\d-")
GAP = 1
NAME = 20, 48
"""The fewest and the most characters for a name."""


@dataclass(frozen=True)
class Column:
    """A column of the list: heading, width, how it is aligned, its text, and the width of the window from
    which on it is shown."""

    title: str
    width: int
    align: str
    text: Callable[[ListedRun], str]
    least: int = 0


def _state(run: ListedRun) -> str:
    if run.alive and run.summary.stage == "export":
        return "▶ exporting"
    word = "silent" if run.state is State.SILENT else run.state.value
    return f"{SIGNS[run.state]} {word}"


def _step(run: ListedRun) -> str:
    summary = run.summary
    return f"{summary.step:,}/{summary.total_steps:,}" if summary.total_steps else "–"


def _loss(run: ListedRun) -> str:
    loss = run.summary.shown_loss
    return "–" if loss is None else f"{loss:.4f}" if loss < 100 else f"{loss:.3g}"


def _size(run: ListedRun) -> str:
    return "…" if run.size is None else human_bytes(run.size)


def _when(run: ListedRun) -> str:
    """The time of today, else the day; without a year only in this one."""
    moment = run.summary.updated
    if not moment:
        return "–"
    then, now = (datetime.datetime.fromtimestamp(t) for t in (moment, time.time()))
    if then.date() == now.date():
        return f"{then:%H:%M}"
    return f"{then:%d %b}" if then.year == now.year else f"{then:%b %y}"


def middle_cut(name: str, width: int) -> str:
    """A name on so many characters: the year goes first, then what is in the middle, for names that differ
    often do so at their end."""
    line = one_line(name, len(name) + 99)
    if len(line) > width and YEAR.match(line):
        line = f"…{line[5:]}"
    end = width // 3
    return line if len(line) <= width else f"{line[: width - 1 - end]}…{line[-end:]}"


def together(runs: Iterable[ListedRun]) -> list[ListedRun]:
    """The runs of each sweep one below the other, where the first of them stands."""
    listed = list(runs)
    first: dict[str, int] = {}
    for number, run in enumerate(listed):
        first.setdefault(_group(run), number)
    return sorted(listed, key=lambda run: first[_group(run)])


def _group(run: ListedRun) -> str:
    return run.trial.sweep if run.trial else run.name


def _name(run: ListedRun, width: int) -> str:
    """The name on so many characters; of a trial what it tries, by which it differs from the others."""
    if run.trial is None:
        return middle_cut(run.name, width)
    tried = run.trial.words if len(run.trial.words) + 2 <= width else run.trial.few_words
    return middle_cut(f"└ {tried}", width)


STATE = Column("state", 13, "<", _state)
COLUMNS = (
    Column("step", 11, ">", _step, 76),
    Column("loss", 7, ">", _loss),
    Column("size", 9, ">", _size, 66),
    Column("when", 6, "<", _when),
    Column("model", 30, "<", lambda run: one_line(run.summary.model, 30), 108),
)


class Table:
    """The columns that a window of so many cells has room for."""

    def __init__(self, width: int) -> None:
        self.columns = [column for column in COLUMNS if width >= column.least]
        taken = sum(column.width + GAP for column in self.columns) + STATE.width + 2 + 2 * GAP
        self.name = min(max(width - taken, NAME[0]), NAME[1])

    def heading(self, order: str) -> Content:
        """The titles; that of the column the list is ordered by has a mark."""
        titles = {column.title: f"{column.title}▾" if column.title == order else column.title
                  for column in (STATE, *self.columns)}  # fmt: skip
        name = "run▾" if order == "name" else "run"
        return Content.styled(self._line("", titles["state"], name, lambda c: titles[c.title]), "dim")

    def line(self, run: ListedRun, marked: bool) -> Content:
        """A run."""
        name = _name(run, self.name)
        return Content(self._line(MARK if marked else "", _state(run), name, lambda c: c.text(run)))

    def _line(self, mark: str, state: str, name: str, text: Callable[[Column], str]) -> str:
        cells = [f"{mark:<1} {state:<{STATE.width}}", f"{name:<{self.name}}"]
        cells += [f"{text(column):{column.align}{column.width}}" for column in self.columns]
        return (" " * GAP).join(cells)


def about(run: ListedRun, model: str, trained: str) -> Content:
    """What the list has no room for: what the curves mean, what was learned, and how to do it again."""
    summary = run.summary
    pairs = [("model", one_line(model, 200) or "–")]
    if summary.problem and not run.alive:
        pairs.insert(0, ("problem", one_line(summary.problem, 200)))
    if summary.before is not None and summary.after is not None:
        pairs.append(("learned", f"{summary.before:.1%} exact answers before, {summary.after:.1%} after"))
    if trained:
        pairs.append(("trained", trained))
    if summary.exported:
        name = summary.name
        pairs.append(("exported", f"in Ollama as {one_line(name, 80)}" if name else "as a file"))
    pairs.append(("folder", tilde(run.folder.path)))
    pairs.append(("again", "n, or: ollama-tune run FOLDER/run.yaml --set FIELD=VALUE"))
    lines = [Content.styled(visible(run.name), "bold"), *_coach(run)]
    if run.trial:
        tried = one_line(run.trial.words, 200)
        lines.insert(1, _pair("sweep", f"{run.trial.sweep}, trial {run.trial.number}: {tried}"))
    return Content("\n").join([*lines, *(_pair(*pair) for pair in pairs)])


def _coach(run: ListedRun) -> list[Content]:
    """What the curves mean and what to do; a run that is well but ended early goes on by a key. A trial that
    its sweep has ended is none to advise on."""
    advice = run.summary.advice
    if advice is None or (run.trial and not (run.alive or run.summary.trained)):
        return []
    resting = not (run.alive or run.summary.trained) and advice.sign in "✓·"
    what = "It has not come to its end: r goes on with it." if resting else advice.advice
    return [
        Content.assemble((f"{advice.sign} ", "bold"), advice.sentence),
        Content.styled(f"  {what}", "dim"),
    ]


def _pair(name: str, value: str) -> Content:
    return Content.assemble((f"{name:<9}", "dim"), value)
