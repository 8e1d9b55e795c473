"""A row as the model sees it, with the trained tokens marked by more than colour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.content import Content

from ollama_tune.core.text import visible

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Example

TRAINED = "bold underline $text-success"
CONTEXT = ""
LONGEST = 20_000


def legend() -> Content:
    """What the marks mean."""
    return Content.assemble(("trained: learned by the model", TRAINED), "   context: only read")


def marked(example: Example) -> Content:
    """The exact rendered text; trained tokens bold and underlined. A very long text is cut and says so."""
    parts: list[Content | str] = [
        Content.styled(visible(example.text[start:end], keep_newlines=True), TRAINED if trained else CONTEXT)
        for start, end, trained in spans(example)
        if start < LONGEST
    ]
    hidden = len(example.text) - LONGEST
    if hidden > 0:
        parts.append(f"\n… {hidden:,} more characters")
    return Content.assemble(*parts)


def spans(example: Example) -> Iterator[tuple[int, int, bool]]:
    """The text cut into pieces (start, end, trained) that cover all of it, in order, by character."""
    position = 0
    for (start, end), trained in zip(example.offsets, example.trained, strict=True):
        if trained and end > position:
            if start > position:
                yield position, start, False
            yield max(start, position), min(end, LONGEST), True
            position = end
    if position < len(example.text):
        yield position, min(len(example.text), LONGEST), False
