"""The command `doctor`: what works here, what limits, what is broken, and what to do about it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ollama_tune.tui.shell import out

if TYPE_CHECKING:
    from ollama_tune.core.machine.doctor import Check

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
NAME, WIDTH = 13, 80
PLAIN = str.maketrans({"✓": "+", "✗": "x", "→": ">", "…": "~"})


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--quick", is_flag=True, help="Without the libraries at work and without asking the hub.")
def doctor(as_json: bool, quick: bool) -> None:
    """Try what a run needs, and say what to do about what does not work.

    Every line is ✓ (works), ! (works, with a limit that one should know) or ✗ (does not work). Everything is
    really tried: files are written and locked, numbers multiplied on every device, a tiny model is trained
    and loaded. What hangs or crashes is a line, not the end.

    \b
    --json prints {"checks": [...], "ok": true or false}; each check has
    group   Versions, GPU, "This box", Folders, Runs, Terminal, Ollama, Hub, Computing
    name    what was tried
    state   ok, warn or fail
    found   a sentence
    fix     what to do, empty where nothing is

    The exit status is 0, or 1 where a line is ✗.

    \b
    Examples:
      ollama-tune doctor
      ollama-tune doctor --quick --json
    """
    checks: list[Check] = []
    if as_json:
        checks = list(all_checks(quick))
        rows = [
            {name: getattr(c, name) for name in ("group", "name", "state", "found", "fix")} for c in checks
        ]
        out(json.dumps({"checks": rows, "ok": _well(checks)}, indent=2))
    else:
        waiting = Waiting()
        for line in lines(_kept(all_checks(quick, waiting.tell), checks)):
            waiting.clear()
            out(_writable(line))
    sys.exit(0 if _well(checks) else 1)


def doctor_lines(
    quick: bool = False, width: int = WIDTH, tell: Callable[[str], None] = lambda trial: None
) -> Iterator[str]:
    """The doctor's lines as they come, for a screen: a heading a group, two or more lines a check.

    Call it in a thread: the whole takes some seconds. `tell` gets the name of what is waited for.
    """
    yield from lines(all_checks(quick, tell), width)


def all_checks(quick: bool, tell: Callable[[str], None] = lambda trial: None) -> Iterator[Check]:
    """Every check of the box in order; the terminal's, which belong to this process, among them."""
    from ollama_tune.core.doctor import examine
    from ollama_tune.tui.doctor_terminal import terminal

    shown = False
    for check in examine(quick, tell):
        if not shown and check.group in ("Ollama", "Hub", "Computing"):
            shown = True
            yield from (replace(each, group="Terminal") for each in terminal())
        yield check


def lines(checks: Iterable[Check], width: int = WIDTH) -> Iterator[str]:
    """Checks as lines of at most `width` characters, and a last one that sums up."""
    group, count = "", {"ok": 0, "warn": 0, "fail": 0}
    for check in checks:
        if check.group != group:
            group = check.group
            yield f"{'' if sum(count.values()) == 0 else chr(10)}{group}"
        count[check.state] += 1
        yield from _check_lines(check, width)
    yield f"\n{_summary(count)}"


def _check_lines(check: Check, width: int) -> list[str]:
    home = str(Path.home()).rstrip("/")
    texts = (
        [(check.found, ""), (check.fix, "→ ")] if check.fix and check.state != "ok" else [(check.found, "")]
    )
    indent = " " * (NAME + 5)
    first = f"  {MARKS[check.state]} {check.name:<{NAME}} "
    made: list[str] = []
    for text, sign in texts:
        shown = text.replace(f"{home}/", "~/") if home else text
        begin = first if not made else indent + sign
        rest = indent + " " * len(sign)
        made += textwrap.wrap(
            shown, width, initial_indent=begin, subsequent_indent=rest, break_on_hyphens=False
        ) or [begin.rstrip()]
    return made


def _summary(count: dict[str, int]) -> str:
    if count["fail"]:
        known = f", {count['warn']} to know (!)" if count["warn"] else ""
        return f"{count['fail']} to mend (✗){known}."
    return f"Everything works; {count['warn']} to know (!)." if count["warn"] else "Everything works."


def _kept(checks: Iterator[Check], into: list[Check]) -> Iterator[Check]:
    for check in checks:
        into.append(check)
        yield check


def _well(checks: list[Check]) -> bool:
    return all(check.state != "fail" for check in checks)


def _writable(line: str) -> str:
    """The line in signs that this output can write."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return line.translate(PLAIN).encode(encoding, "replace").decode(encoding)
    return line


class Waiting:
    """Says on a terminal what is being tried, in a line that the next one replaces."""

    def __init__(self) -> None:
        self._on = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._shown = False

    def tell(self, trial: str) -> None:
        """Show the name of a trial."""
        if self._on and trial:
            self.clear()
            click.echo(_writable(f"  … {trial}"), nl=False)
            self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._shown = False
            with contextlib.suppress(OSError):
                click.echo("\r\x1b[2K", nl=False)
