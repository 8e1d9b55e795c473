"""What every reader hands on: the records of a file with their places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Item:
    """One record as it stands in the file, and its line (tables: its number), counted from 1.

    `file` names the file inside a folder; `held_out` marks a record of a validation split.
    """

    line: int
    value: Any
    file: str = ""
    held_out: bool = False


@dataclass(frozen=True)
class Items:
    """A data set's records; the iterator can be used once and fills the log as it goes.

    `splits` are the names of the parts that the data set is divided into, empty where it has but one.
    """

    format: str
    encoding: str
    stream: Iterator[Item]
    splits: tuple[str, ...] = ()
