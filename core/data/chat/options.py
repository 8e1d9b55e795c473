"""Chooses how a template's options for thinking are set, so that the prompt of use begins the rows' text."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_tune.core.data.chat.answers import find_answers
from ollama_tune.core.data.chat.pins import VARIANTS, pinned
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Row
from ollama_tune.core.errors import TuneError

LOOKED_AT = 24
"""Rows, evenly from the first to the last."""
_UNLIKE = frozenset({"prompt-longer", "prompt-differs", "drops-thinking:last"})


def fit_options(chat: ChatFormat, rows: Sequence[Row]) -> ChatFormat:
    """The chat format with its options pinned as most of the rows need them; itself where that is so already.

    Some templates prompt for thoughts unless told otherwise, and rows without any then have another text than
    the prompt of use begins. What is pinned holds in training, in evaluation and in the exported model.
    """
    names = {name for variant in VARIANTS for name in variant if pinned(chat.template, name)}
    chosen = (
        [rows[i * len(rows) // LOOKED_AT] for i in range(LOOKED_AT)] if len(rows) > LOOKED_AT else list(rows)
    )
    if not names or not chosen or chat.options:
        return chat
    best, most = chat, _alike(chat, chosen)
    for variant in VARIANTS:
        if most < len(chosen) and variant.keys() <= names and variant:
            other = chat.with_options(variant)
            found = _alike(other, chosen)
            if found > most:
                best, most = other, found
    return best


def _alike(chat: ChatFormat, rows: Sequence[Row]) -> int:
    """How many rows have a last answer that follows the prompt of use to the letter."""
    return sum(_follows(chat, row) for row in rows)


def _follows(chat: ChatFormat, row: Row) -> bool:
    try:
        return not find_answers(chat, row.messages, row.tools).notes & _UNLIKE
    except TuneError:
        return False
