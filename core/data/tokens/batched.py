"""Turns many rendered rows into tokens at once, and finds the trained ones by counting bytes.

A tokenizer is several times as fast where it need not tell where each token stands. Those that work on bytes
need not: the tokens of a text are its bytes in order, so adding up their lengths gives the places. Where that
does not come out even, or a token reaches over the edge of an answer, the row is done one by one as usual.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.chat.answers import Answers, Span
from ollama_tune.core.data.chat.mask import example_of
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Example, Row
from ollama_tune.core.errors import TuneError

if TYPE_CHECKING:
    import numpy as np

Part = tuple[Row, Answers]

LONGEST_LEAD = 64
"""Tokens from the last control token to an answer; longer ones are seldom the same in two rows."""
MOST_LEADS = 1000


class Batched:
    """A chat format's tokenizer, for many rows at once; gives the ids and marks of `example_of`."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._leads: dict[str, tuple[int, ...]] = {}

    def examples(self, parts: Sequence[Part]) -> list[Example | TuneError]:
        """One example for each part, most without text and offsets, or why there is none."""
        if self._lengths is None:
            return one_by_one(self._chat, parts)
        texts = [answers.text for _, answers in parts]
        encoded = self._chat.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._example(*part, found.ids) for part, found in zip(parts, encoded, strict=True)]

    def _example(self, row: Row, answers: Answers, found: list[int]) -> Example | TuneError:
        trained = self._trained(answers, found)
        if trained is None:
            return _tried(self._chat, row, answers)
        return Example("", tuple(found), tuple(trained), (), row.line)

    def _trained(self, answers: Answers, found: list[int]) -> list[bool] | None:
        """Which tokens are trained; None where bytes do not tell, or nothing is."""
        import numpy as np

        text = answers.text
        ids = np.asarray(found, dtype=np.int64)
        ends = np.cumsum(self._lengths[ids])  # type: ignore[index]
        size = len(text.encode("utf-8", "replace"))
        if not len(ids) or ends[-1] != size or not unicodedata.is_normalized("NFC", text):
            return None
        plain = size == len(text)
        trained = np.zeros(len(ids), dtype=bool)
        for span in answers.spans:
            edges = span if plain else tuple(len(text[:edge].encode()) for edge in span)
            first, last = (int(np.searchsorted(ends, edge, side="right")) for edge in edges)
            if not all(_meets(ends, number, edge) for number, edge in zip((first, last), edges, strict=True)):
                return None
            if not self._clean(text, ids, ends, first, span, plain):
                return None
            trained[first:last] = True
        return trained.tolist() if trained.any() else None

    def _clean(self, text: str, ids: Any, ends: Any, first: int, span: Span, plain: bool) -> bool:
        """Whether the tokens before an answer, back to the last control token, are those of the prompt."""
        if not first:
            return True
        beginning = max(first - LONGEST_LEAD, 0)
        special = self._special[ids[beginning:first]].nonzero()[0]
        if not len(special):
            return False
        back = beginning + int(special[-1])
        start = int(ends[back - 1]) if back else 0
        lead = text[start : span[0]] if plain else text.encode()[start : int(ends[first - 1])].decode()
        if lead not in self._leads:
            if len(self._leads) >= MOST_LEADS:
                self._leads.clear()
            self._leads[lead] = self._chat.encode(lead)[0]
        return self._leads[lead] == tuple(ids[back:first].tolist())

    @cached_property
    def _special(self) -> np.ndarray[Any, Any]:
        import numpy as np

        marks = np.zeros(self._chat.vocabulary_size, dtype=bool)
        marks[list(self._chat.special_tokens)] = True
        return marks

    @cached_property
    def _lengths(self) -> np.ndarray[Any, Any] | None:
        """Bytes of each token by id; None where the tokenizer does not work on bytes.

        Such a tokenizer writes each byte as one character of its own alphabet.
        """
        import numpy as np
        from tokenizers import decoders, normalizers

        tokenizer = self._chat.tokenizer
        kept = tokenizer.normalizer is None or isinstance(tokenizer.normalizer, normalizers.NFC)
        if not kept or not isinstance(tokenizer.decoder, decoders.ByteLevel):
            return None
        lengths = np.zeros(self._chat.vocabulary_size, dtype=np.int64)
        for token, number in tokenizer.get_vocab(with_added_tokens=False).items():
            lengths[number] = len(token)
        for number, added in self._chat.added_tokens.items():
            lengths[number] = len(added.content.encode())
        return lengths


def one_by_one(chat: ChatFormat, parts: Sequence[Part]) -> list[Example | TuneError]:
    """One whole example for each part, or why there is none."""
    return [_tried(chat, row, answers) for row, answers in parts]


def _tried(chat: ChatFormat, row: Row, answers: Answers) -> Example | TuneError:
    try:
        return example_of(chat, row, answers)
    except TuneError as error:
        return error


def _meets(ends: Any, number: int, edge: int) -> bool:
    """Whether a token begins (or the text ends) at that byte: the one with this number."""
    return (int(ends[number - 1]) if number else 0) == edge
