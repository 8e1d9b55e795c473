"""Help in plain lines, from the same files as the screens."""

from __future__ import annotations

import textwrap

from ollama_tune.tui.help_texts import help_text

WIDTH = 78
ALWAYS = "Enter takes what stands in brackets. b goes back. q quits and keeps your answers."


def explain(topic: tuple[str, str] | None) -> list[str]:
    """The help of a topic as lines, and at its end what can be typed at every question."""
    return lines_of(f"{help_text(*topic) if topic is not None else ''}\n\n{ALWAYS}")


def lines_of(text: str) -> list[str]:
    """Paragraphs of Markdown as lines of plain words."""
    blocks = text.replace("**", "").replace("`", "").split("\n\n")
    wrapped = (textwrap.wrap(" ".join(block.split()), WIDTH, break_long_words=False) for block in blocks)
    return [line for lines in wrapped for line in lines]
