"""The verification card: what was compared after an export, with figures and a verdict in words."""

from __future__ import annotations

import textwrap

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.export.values import Check, Verification
from ollama_tune.core.text import human_bytes, one_line

SIGNS = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "–"}
STYLES = {"pass": "$text-success", "warn": "$text-warning", "fail": "$text-error", "skipped": "$text-muted"}
VERDICTS = {
    "pass": "Proved: the file answers as the tuned model does.",
    "warn": "Proved with remarks: the file works, but see the lines marked with !.",
    "fail": "Not proved: do not rely on this file; see the lines marked with ✗.",
    "skipped": "Not checked: nothing could be compared on this machine.",
}


def card_content(verification: Verification, width: int) -> Content:
    """The card as text for a width in cells: the verdict, the checks, the file."""
    verdict = verification.verdict
    words = "\n  ".join(textwrap.wrap(VERDICTS[verdict], max(width - 2, 10)))
    lines = [_signed(verdict, words, "bold"), Content("")]
    names = max((len(check.name) for check in verification.checks), default=0)
    figures = max((len(check.figure) for check in verification.checks), default=0)
    lines += [_check(check, min(names, 26), figures, width) for check in verification.checks]
    file = f"{one_line(verification.file, 60)}, {human_bytes(verification.bytes)}, {verification.type}"
    lines += [Content(""), Content.styled(one_line(file, width), "dim")]
    lines.append(Content.styled(f"sha256 {verification.sha256[:32]}…", "dim"))
    return Content("\n").join(lines)


def _signed(verdict: str, text: str, style: str) -> Content:
    return Content.assemble((f"{SIGNS[verdict]} ", f"bold {STYLES[verdict]}"), (text, style))


def _check(check: Check, names: int, figures: int, width: int) -> Content:
    """One line where everything fits in columns, else the sentence on a line of its own."""
    name, text = one_line(check.name, names), one_line(check.text, 300)
    figure = one_line(check.figure, max(width - names - 4, 10))
    head = Content.assemble(_signed(check.verdict, f"{name:<{names}}", ""), "  ", (figure, "bold"))
    left = names + 4 + figures + 2
    if left + len(text) <= width:
        return Content.assemble(head, " " * (left - len(head.plain)), (text, "dim"))
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
