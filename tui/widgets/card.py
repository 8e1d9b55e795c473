"""The verification card: what was compared after an export, with figures and a verdict in words."""

from __future__ import annotations

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
    "fail": "Not proved: do not use this file. The lines marked with ✗ say why; press a to try another type.",
    "skipped": "Not checked: nothing could be compared on this machine.",
}
IN_OLLAMA = "The file is proved, but the model in Ollama is not: it got no name. See the lines marked with ✗."
ROOM = 36
"""Cells in which the beginning of a sentence still says something."""
ORDER = {"fail": 0, "warn": 1, "pass": 2, "skipped": 3}


def card_content(verification: Verification, width: int) -> Content:
    """The card as text for a width in cells: verdict, checks (trouble first), what to type, the file."""
    verdict = verification.verdict
    meaning = IN_OLLAMA if fails_in_ollama_only(verification) else VERDICTS[verdict]
    words = "\n  ".join(textwrap.wrap(meaning, max(width - 2, 10)))
    lines = [_signed(verdict, words, "bold"), Content("")]
    names = max((len(check.name) for check in verification.checks), default=0)
    figures = max((len(check.figure) for check in verification.checks), default=0)
    checks = sorted(verification.checks, key=lambda check: ORDER[check.verdict])
    lines += [_check(check, min(names, 26), min(figures, 36), width) for check in checks]
    if verdict != "fail":
        lines += _next(verification, width)
    file = f"{one_line(verification.file, 60)}, {human_bytes(verification.bytes)}, {verification.type}"
    lines += [Content(""), Content.styled(one_line(file, width), "dim")]
    lines.append(Content.styled(f"sha256 {verification.sha256[:32]}…", "dim"))
    return Content("\n").join(lines)


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
    below = "".join(f"\n    {line}" for line in textwrap.wrap(text, max(width - 4, 10)))
    return Content.assemble(head, (below, "dim"))


class VerificationCard(Widget):
    """Shows a `Verification`; empty before there is one."""

    DEFAULT_CSS = """
    VerificationCard { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._verification: Verification | None = None

    def show(self, verification: Verification | None) -> None:
        """Replace what is shown."""
        if verification != self._verification:
            self._verification = verification
            self.refresh(layout=True)

    def render(self) -> RenderResult:
        """The card for the present width."""
        return card_content(self._verification, max(self.size.width, 20)) if self._verification else ""
