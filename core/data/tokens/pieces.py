"""The tokens of a text from those of its pieces, which are words mostly, and the same ones again and again.

A byte-level tokenizer cuts a text by a pattern and turns each piece into tokens for itself. In plain ASCII
Python finds the same pieces, so that each kind of piece has to be turned into tokens only once, which halves
the time. Whatever is not known to be cut like that goes to the tokenizer as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What cuts a text for a byte-level tokenizer that has no pattern of its own."""
MOST = 200_000
"""Kinds of pieces that are remembered."""
TRIED = 64
"""So many texts are turned into tokens both ways; where they differ once, none is by pieces any more."""

_CLASSES = {"L": "A-Za-z", "N": "0-9", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": ""}
"""The ASCII characters of Unicode's categories."""
_BLANKS = r" \t\n\x0b\f\r"
_ITEM = re.compile(r"\\p\{(\w+)\}|\\.|\(\?\W|\(\?i:|\[\^?|.", re.DOTALL)
"""What a pattern is made of: categories, escapes, heads of groups and of sets, and single characters."""
_KNOWN = re.compile(r"\\[rnt\W]|\(\?[:!]|\(\?i:|\[\^?|[^\\]", re.DOTALL)
"""Those that mean the same to Python, for ASCII text."""
_LETTERS = {number: 256 + place for place, number in enumerate([*range(33), 127])}
"""What stands for blanks and control characters in the vocabulary; all others stand for themselves."""


class Pieces:
    """Turns texts into ids by their pieces; `of` tells whether that can be done with a tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, pattern: re.Pattern[str], added: Sequence[Mapping[str, int]]
    ) -> None:
        """`added` are the tokens that are cut out of a text before all else: first these, then those."""
        self._tokenizer, self._model, self._pattern = tokenizer, tokenizer.model, pattern
        self._cuts = [(_any_of(tokens), tokens) for tokens in added]
        self._added = {text: (number,) for tokens in added for text, number in tokens.items()}
        self._known: dict[str, Sequence[int]] = dict(self._added)
        self._trials = TRIED
        self._works = True

    @classmethod
    def of(cls, tokenizer: Tokenizer, added: Mapping[int, AddedToken]) -> Pieces | None:
        """None where the tokenizer is of another kind, or cuts in a way that is not known here."""
        pattern = _pattern(tokenizer)
        plain = {number: token for number, token in added.items() if token.content.isascii()}
        if pattern is None or any(t.single_word or t.lstrip or t.rstrip for t in plain.values()):
            return None
        turns = (
            {token.content: number for number, token in plain.items() if token.normalized == late}
            for late in (False, True)
        )
        return cls(tokenizer, pattern, [tokens for tokens in turns if tokens])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without any token added: those that the tokenizer gives."""
        cut = [self._pieces(text) for text in texts]
        self._learn(set(chain.from_iterable(filter(None, cut))))
        token = self._known.__getitem__
        return [
            self._whole(text)
            if pieces is None
            else self._tried(text, list(chain.from_iterable(map(token, pieces))))
            for text, pieces in zip(texts, cut, strict=True)
        ]

    def _pieces(self, text: str) -> list[str] | None:
        """The pieces of a text; None where it has to be taken as a whole."""
        if not self._works or not text.isascii():
            return None
        pieces = self._cut(text, 0)
        return pieces if sum(map(len, pieces)) == len(text) else None

    def _cut(self, text: str, turn: int) -> list[str]:
        """What is found in a text; `turn` counts the kinds of added tokens that were cut out already."""
        if turn == len(self._cuts):
            return self._pattern.findall(text)
        added, tokens = self._cuts[turn]
        pieces: list[str] = []
        for part in added.split(text):
            if part in tokens:
                pieces.append(part)
            elif part:
                pieces += self._cut(part, turn + 1)
        return pieces

    def _learn(self, pieces: set[str]) -> None:
        if len(self._known) > MOST:
            self._known = dict(self._added)
        for piece in pieces - self._known.keys():
            found = self._model.tokenize(piece.translate(_LETTERS))
            self._known[piece] = tuple([token.id for token in found])

    def _tried(self, text: str, found: list[int]) -> list[int]:
        """The ids by pieces, which are compared as long as there are trials left."""
        if self._works and not self._trials:
            return found
        right = self._whole(text)
        self._works = self._works and found == right
        self._trials -= 1
        return right

    def _whole(self, text: str) -> list[int]:
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _any_of(texts: Mapping[str, Any]) -> re.Pattern[str]:
    """Matches the longest of the texts that stands at a place; keeps what it matches when it splits."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(texts, key=len, reverse=True)))})")


def _pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """What cuts ASCII text into pieces; None where that is not done by a single pattern that is known."""
    from tokenizers.models import BPE

    if not isinstance(tokenizer.model, BPE) or tokenizer.model.dropout or tokenizer.pre_tokenizer is None:
        return None
    state = json.loads(tokenizer.pre_tokenizer.__getstate__())
    *before, last = state.get("pretokenizers", [state])
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    regexes = [_regex(step) for step in before] + ([GPT2] if last.get("use_regex", True) else [])
    return for_ascii(regexes[0]) if len(regexes) == 1 and regexes[0] else None


def _regex(step: Mapping[str, Any]) -> str | None:
    usual = (step.get("type"), step.get("behavior"), step.get("invert")) == ("Split", "Isolated", False)
    return step["pattern"].get("Regex") if usual else None


def for_ascii(regex: str) -> re.Pattern[str] | None:
    """A tokenizer's pattern as one of Python's that cuts ASCII text alike; None where that is not certain."""
    made, inside = [], False
    for item in _ITEM.finditer(regex):
        part = _item(item[0], item[1], inside)
        if part is None:
            return None
        made.append(part)
        inside = item[0].startswith("[") or (inside and item[0] != "]")
    try:
        pattern = re.compile("".join(made))
    except re.error:
        return None
    return None if pattern.groups else pattern


def _item(text: str, category: str | None, inside: bool) -> str | None:
    """One part of a pattern as Python writes it; `inside` tells that it stands in a set of characters."""
    if category is not None or text == r"\s":
        characters = _BLANKS if category is None else _CLASSES.get(category)
        if inside or not characters:
            return characters if inside else None
        return f"[{characters}]"
    if text == r"\S":
        return None if inside else f"[^{_BLANKS}]"
    return text if _KNOWN.fullmatch(text) else None
