"""A folder as one data set: its data files, sorted, and the split each belongs to."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.data.files import compression
from ollama_tune.core.data.files.card import LARGEST as LARGEST_CARD
from ollama_tune.core.data.files.card import subsets_of
from ollama_tune.core.data.files.source import shown, unreadable
from ollama_tune.core.data.files.splits import split_in
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.errors import TuneError

MOST_FILES = 20_000
"""Files of a data set; more of them is a folder of something else."""
DEEPEST = 8
"""Folders within folders that are looked into."""

SUFFIXES = (
    *(".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".psv"),
    *(".parquet", ".pq", ".arrow", ".feather", ".ipc", ".txt", ".text"),
)
_TEXTS = (".txt", ".text")
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "package.json")
_NO_TEXT = ("readme", "license", "licence", "notice", "requirements", "changelog", "copying")
CARD = "README.md"
MAP = "ollama-tune-splits.json"
"""Written by the hub's downloads: the files of every split."""


@dataclass(frozen=True)
class Part:
    """A data file of a folder; `name` is its place in it, `split` empty where no name speaks of one."""

    path: Path
    name: str
    split: str


def parts_of(folder: Path, log: ProblemLog) -> list[Part]:
    """The data files by name. What is not read is named in the log; `TuneError` when nothing is left."""
    files, others = _files(folder)
    found = _described(folder, files, log) or [
        Part(folder / name, name, split_of(name)) for name in files if _is_data(name, files)
    ]
    if not found:
        raise TuneError(
            f"{shown(folder)} is a folder without a file of examples.", f"Read are: {', '.join(SUFFIXES)}."
        )
    if len(found) > MOST_FILES:
        raise TuneError(
            f"{shown(folder)} holds more than {MOST_FILES:,} files.", "Choose the folder of one data set."
        )
    if others and not (folder / MAP).is_file():
        text = "Files of the folder that are hidden, no data, or no files at all were left out."
        log.warn("other-files", text, None, others)
    return found


def _files(folder: Path) -> tuple[list[str], int]:
    """The names of the files below a folder, sorted, and how many entries were passed over.

    Links are followed, but no folder is entered twice, so that a loop of links ends.
    """
    found: list[str] = []
    others = 0
    seen = {_identity(folder)}
    waiting = [(folder, "", 0)]
    while waiting and len(found) <= MOST_FILES:
        here, prefix, depth = waiting.pop()
        for entry in _entries(here, required=depth == 0):
            status = _status(entry)
            name = prefix + entry.name
            if entry.name.startswith(".") or status is None:
                others += 1
            elif stat.S_ISREG(status.st_mode):
                suffix = suffix_of(entry.name)
                found.extend([name] if suffix in SUFFIXES else [])
                others += suffix not in SUFFIXES
            elif stat.S_ISDIR(status.st_mode) and depth < DEEPEST:
                identity = (status.st_dev, status.st_ino)
                if identity not in seen:
                    seen.add(identity)
                    waiting.append((here / entry.name, f"{name}/", depth + 1))
            else:
                others += 1
    return sorted(found), others


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def _entries(folder: Path, *, required: bool) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if required:
            raise unreadable(folder, error) from error


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None


def suffix_of(name: str) -> str:
    """The extension in lower case, without that of a packing."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in compression.SUFFIXES else path.suffix


def _is_data(name: str, files: list[str]) -> bool:
    """False for files beside the data: descriptions, and a text where there are tables or JSON."""
    return not is_description(name) and (
        suffix_of(name) not in _TEXTS or all(suffix_of(other) in _TEXTS for other in files)
    )


def is_description(name: str) -> bool:
    """True for files that stand beside data and speak of it, and for the caches of `datasets`."""
    base = name.rpartition("/")[2].lower()
    if base in _NO_DATA or base == MAP:
        return True
    if base.endswith(_TEXTS) and base.split(".")[0] in _NO_TEXT:
        return True
    return base.startswith("cache-") and base.endswith(".arrow")


def split_of(name: str) -> str:
    """The split that a place in a folder speaks of: by the file's name, else by the innermost folder's."""
    return next((split for part in reversed(name.split("/")) if (split := split_in(part))), "")


def _described(folder: Path, files: list[str], log: ProblemLog) -> list[Part]:
    """The files that a description in the folder names: of a download of ours, or a data set's card."""
    splits: dict[str, list[str]] = {}
    if mapping := _read(folder / MAP):
        try:
            described: Any = json.loads(mapping)
            splits = {
                str(split): [str(name) for name in names] for split, names in described["splits"].items()
            }
            for note in described.get("notes", ()):
                log.warn("subset", str(note), None)
        except (ValueError, AttributeError, TypeError, KeyError):
            splits = {}
    elif (folder / CARD).is_file():
        subsets = subsets_of(_read(folder / CARD))
        usual = next((subset for subset in subsets if subset.default), next(iter(subsets), None))
        splits = usual.files(files) if usual else {}
    inside = folder.resolve()
    return [
        Part(folder / name, name, split)
        for split, names in splits.items()
        for name in names
        if (folder / name).resolve().is_relative_to(inside)
    ]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_CARD).decode("utf-8", "replace")
    except OSError:
        return ""
