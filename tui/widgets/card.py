"""The verification card: what was compared after an export, in plain words; the figures on request."""

from __future__ import annotations

import re
import textwrap

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.export.values import Check, Verification
from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.exporting import fails_in_ollama_only, use_and_share

SIGNS = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "–"}
STYLES = {"pass": "$text-success", "warn": "$text-warning", "fail": "$text-error", "skipped": "$text-muted"}
VERDICTS = {
    "pass": "Proved: the file answers as the tuned model does.",
    "warn": "Proved with remarks: you can use it; the lines marked with ! say what to watch.",
    "fail": "Do not use this file. The lines marked with ✗ say why; press a to try another type.",
    "skipped": "Not checked: nothing could be compared on this machine.",
}
IN_OLLAMA = (
    "The file is proved; the model that Ollama made of it is not, and got no name. The lines marked with ✗ "
    "say why; update Ollama and press a to export again."
)
WORDS = {
    "tokenizer": ("Pieces of words", "texts are cut as in training"),
    "structure": ("Kind of model", "a tiny one, built the same way, answers right"),
    "metadata": ("Description", "entries are those of the tuned model"),
    "tensors": ("Weights", "are the trained ones, within the type's rounding"),
    "adapter": ("What was learned", "is in the file, once and whole"),
    "tokens": ("Texts", "are read as in training"),
    "chat": ("Conversations", "have the form of the training"),
    "template": ("Form in Ollama", "is written as the model needs it"),
    "BOS": ("Prompts", "begin as in training"),
    "probabilities": ("Next word", "is as likely as in the tuned model"),
    "4-bit base": ("4-bit weights", "differ from those of the training by no more than expected"),
    "answers": ("Answers", "are those of the tuned model"),
    "ending": ("Ends", "answers stop by themselves"),
    "window": ("Length", "how much the model reads at once"),
    "ollama": ("Ollama", ""),
}
"""For a check by its short name: what it is about, and what a pass means, in plain words."""
TITLE = 16
COUNT = re.compile(r"\d[\d,]* of \d+(,\d{3})*")
ROOM = 36
"""Cells in which the beginning of a sentence still says something."""
ORDER = {"fail": 0, "warn": 1, "pass": 2, "skipped": 3}
MORE, LESS = "F2 shows the figures behind these lines.", "F2 shows plain words again."


def card_content(verification: Verification, width: int, figures: bool = False) -> Content:
    """The card as text for a width in cells: verdict, checks (trouble first), what to type, the file.

    With `figures` each check stands with its short name and what was measured.
    """
    verdict = verification.verdict
    meaning = IN_OLLAMA if fails_in_ollama_only(verification) else VERDICTS[verdict]
    words = "\n  ".join(textwrap.wrap(meaning, max(width - 2, 10)))
    lines = [_signed(verdict, words, "bold"), Content("")]
    lines += _measured(verification, width) if figures else _told(verification, width)
    if verdict != "fail":
        lines += _next(verification, width)
    file = f"{one_line(verification.file, 60)}, {human_bytes(verification.bytes)}, {verification.type}"
    lines += [Content(""), Content.styled(one_line(file, width), "dim")]
    lines.append(Content.styled(f"sha256 {verification.sha256[:32]}…", "dim"))
    lines.append(Content.styled(LESS if figures else MORE, "dim"))
    return Content("\n").join(lines)


def _sorted(verification: Verification) -> list[Check]:
    return sorted(verification.checks, key=lambda check: ORDER[check.verdict])


def _told(verification: Verification, width: int) -> list[Content]:
    """A line a check that passed, in plain words; the sentence of one that did not stands below it."""
    return [_told_one(check, width) for check in _sorted(verification)]


def _told_one(check: Check, width: int) -> Content:
    title, passed = WORDS.get(check.name, (one_line(check.name, TITLE), ""))
    head = _signed(check.verdict, f"{title:<{TITLE}}", "")
    if check.verdict != "pass":
        return head.rstrip() + Content.styled(_below(check, width), "dim")
    count = COUNT.match(check.figure)
    words = f"{count.group()} " if count and passed else ""
    words += passed or one_line(check.text, 400)
    room = max(width - TITLE - 3, 10)
    rest = f"\n{' ' * (TITLE + 3)}".join(textwrap.wrap(words, room))
    return Content.assemble(head, " ", (rest, "dim"))


def _measured(verification: Verification, width: int) -> list[Content]:
    names = max((len(check.name) for check in verification.checks), default=0)
    figures = max((len(check.figure) for check in verification.checks), default=0)
    return [_check(check, min(names, 26), min(figures, 36), width) for check in _sorted(verification)]


def _next(verification: Verification, width: int) -> list[Content]:
    """What to type now; for a model that is in Ollama also how to give it to others."""
    use, share = use_and_share(verification.commands)
    lines = [Content.styled(one_line(command, width), "bold") for command in use]
    if share:
        words = textwrap.wrap(one_line(f"To share it: {'; '.join(share)}", 1000), width)
        lines += [Content.styled(line, "dim") for line in words]
    return [Content(""), *lines] if lines else []


def _signed(verdict: str, text: str, style: str) -> Content:
    return Content.assemble((f"{SIGNS[verdict]} ", f"bold {STYLES[verdict]}"), (text, style))


def _below(check: Check, width: int) -> str:
    """The sentence of a check, wrapped below its line."""
    text = one_line(check.text, 400)
    return "".join(f"\n    {line}" for line in textwrap.wrap(text, max(width - 4, 10)))


def _check(check: Check, names: int, figures: int, width: int) -> Content:
    """One line where everything fits in columns. Else the sentence stands below; that of a pass is cut."""
    name, text = one_line(check.name, names), one_line(check.text, 400)
    figure = one_line(check.figure, max(width - names - 4, 10))
    head = Content.assemble(_signed(check.verdict, f"{name:<{names}}", ""), "  ", (figure, "bold"))
    left = names + 4 + figures + 2
    if len(head.plain) < left and left + len(text) <= width:
        return Content.assemble(head, " " * (left - len(head.plain)), (text, "dim"))
    if check.verdict == "pass":
        room = width - left
        words = one_line(text, room) if room >= ROOM and len(head.plain) < left else ""
        return Content.assemble(head, " " * (left - len(head.plain)), (words, "dim")) if words else head
    return Content.assemble(head, (_below(check, width), "dim"))


class VerificationCard(Widget):
    """Shows a `Verification`; empty before there is one."""

    DEFAULT_CSS = """
    VerificationCard { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._verification: Verification | None = None
        self._figures = False

    def show(self, verification: Verification | None) -> None:
        """Replace what is shown."""
        if verification != self._verification:
            self._verification = verification
            self.refresh(layout=True)

    def toggle_more(self) -> None:
        """Show the figures, or plain words again."""
        self._figures = not self._figures
        self.refresh(layout=True)

    def render(self) -> RenderResult:
        """The card for the present width."""
        width = max(self.size.width, 20)
        return card_content(self._verification, width, self._figures) if self._verification else ""
