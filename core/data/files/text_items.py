"""Reads plain text: a row for every paragraph, or for every conversation where speakers are marked."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.source import Source, text_lines
from ollama_tune.core.data.problems import ProblemLog

LONGEST = 4000
"""Characters of a row; a longer paragraph is cut at the end of a line or sentence."""
_LONGEST_BLOCK = 2**24
USUAL = 2000
"""Characters that lines are gathered to where no blank line parts them."""

COLUMN = "text"
"""The column that the rows have."""

_MARKER = re.compile(
    r"<\|im_start\|>\w+|<\|begin_of_text\|>|<\|start_header_id\|>\w+|<start_of_turn>\w+|<bos>|<s>|\[INST\]|"
    r"<\|(?:system|user|start)\|>|Below is an instruction|"
    r"#{1,3} ?(?:Instruction|Human|User|Question|System)\b|"
    r"(?:Human|User|Question|Q|Customer|System|Frage|Pregunta|Вопрос|用户|问|问题|質問|질문) ?[:：]",
    re.IGNORECASE,
)
_DIVIDER = re.compile(r"(?:-{3,}|={3,}|\*{3,}|#{5,}|<\|endoftext\|>|<\|end_of_text\|>)\s*\Z")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|(?<=[。！？])|\n")


def text_items(source: Source, log: ProblemLog) -> Iterator[Item]:
    """One item for every block of text, with the line it begins in."""
    head = source.text
    first = next((line for line in re.split(r"[\r\n]+", head) if line.strip()), "")
    marker = _MARKER.match(first.lstrip())
    if marker:
        dividers = any(_DIVIDER.match(line) for line in re.split(r"[\r\n]+", head))
        blocks = _conversations(text_lines(source, log), "" if dividers else marker.group().lower())
    else:
        blocks = _paragraphs(text_lines(source, log), bool(re.search(r"\S[^\S\n]*\r?\n\s*?\r?\n\s*\S", head)))
    for number, block in blocks:
        for line, text in _pieces(number, block, cut=not marker):
            if text.strip():
                yield Item(line, {COLUMN: text})


def _conversations(lines: Iterator[str], marker: str) -> Iterator[tuple[int, str]]:
    """Blocks between lines of dashes and the like, else from one first marker to the next."""
    start, held, size = 1, [""], 0
    for number, line in enumerate(lines, 1):
        divider = not marker and _DIVIDER.match(line)
        if divider or (marker and line.lstrip().lower().startswith(marker)) or size > _LONGEST_BLOCK:
            yield start, "".join(held)
            start, held, size = number + bool(divider), [""], 0
        if not divider:
            held.append(line)
            size += len(line)
    yield start, "".join(held)


def _paragraphs(lines: Iterator[str], parted: bool) -> Iterator[tuple[int, str]]:
    start, held, size = 1, [""], 0
    for number, line in enumerate(lines, 1):
        if (parted and not line.strip()) or size > (16 * LONGEST if parted else USUAL):
            yield start, "".join(held)
            start, held, size = number, [""], 0
        held.append(line)
        size += len(line)
    yield start, "".join(held)


def _pieces(line: int, block: str, *, cut: bool) -> Iterator[tuple[int, str]]:
    """A block without the blank lines around it, in parts where it is too long."""
    at, end = len(block) - len(block.lstrip("\r\n")), len(block.rstrip("\r\n"))
    line += block.count("\n", 0, at)
    while cut and end - at > LONGEST:
        ends = [found.end() for found in _SENTENCE_END.finditer(block, at + LONGEST // 2, at + LONGEST)]
        following = ends[-1] if ends else at + LONGEST
        yield line, block[at:following].rstrip()
        line += block.count("\n", at, following)
        at = following
    yield line, block[at:end]
