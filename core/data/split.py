"""Divides rows into training and validation so that no question stands on both sides."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from ollama_tune.core.data.values import Row

_NOT_LETTERS = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """Letters and digits in lower case; a text without any stays as it is."""
    return _NOT_LETTERS.sub("", text).lower() or text


def question_key(row: Row) -> str:
    """Rows with the same first question are the same to the split."""
    first = next((message.content for message in row.messages if message.role == "user"), "")
    return normalised(first)


def conversation_key(row: Row) -> str:
    """Rows with the same conversation are the same to the split."""
    return "\n".join(f"{message.role}:{normalised(message.content)}" for message in row.messages)


def split_rows(rows: Sequence[Row], validation_split: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(training, validation), both in file order; validation has about that share of the rows.

    Rows of one question stay on one side. Where that would leave more than half of the rows in one
    lump (chats that all begin with the same greeting), rows of one whole conversation do. The side
    depends on seed and question alone, so that added rows move few others.
    """
    wanted = round(len(rows) * validation_split)
    if validation_split <= 0 or len(rows) < 2:
        return list(rows), []
    groups = _groups(rows, question_key)
    if max(map(len, groups.values())) > len(rows) / 2:
        groups = _groups(rows, conversation_key)
    chosen = _choose(groups, max(wanted, 1), seed)
    training = [row for i, row in enumerate(rows) if i not in chosen]
    return training, [row for i, row in enumerate(rows) if i in chosen]


def _groups(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[key(row)].append(index)
    return groups


def _choose(groups: dict[str, list[int]], wanted: int, seed: int) -> set[int]:
    """Take groups in the order of a hash while they fit; if none fits, the smallest, but never all."""

    def rank(key: str) -> bytes:
        return hashlib.blake2b(f"{seed}\n{key}".encode("utf-8", "replace"), digest_size=16).digest()

    chosen: set[int] = set()
    for key in sorted(groups, key=rank):
        if len(chosen) + len(groups[key]) <= wanted:
            chosen.update(groups[key])
    if not chosen and len(groups) > 1:
        chosen.update(sorted(groups.values(), key=len)[0])
    return chosen
