"""The parts a data set comes in, by their names: what is trained on and what is kept to measure on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line

_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "heldout": "validation",
    "test": "test",
    "testing": "test",
}
_WORDS = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Picked:
    """The names of the splits that are used, and what becomes of them; empty `held_out`: none is kept."""

    training: str
    held_out: str = ""

    def of(self, name: str) -> bool | None:
        """Whether rows of a split are held out; None where they are not used."""
        return False if name == self.training else (True if name == self.held_out else None)


def is_split(name: str) -> bool:
    """True for the usual name of a split."""
    return name.strip().lower() in _NAMES


def split_in(name: str) -> str:
    """The split a file's or folder's name speaks of, such as `train-00000-of-00002`; empty for none."""
    return next((_NAMES[word] for word in map(str.lower, _WORDS.findall(name)) if word in _NAMES), "")


def pick(names: Sequence[str], split: str, validation: str, log: ProblemLog) -> Picked:
    """Which splits to use: those asked for, else the one for training and one to measure on.

    What is not used is named in the log. Raises `TuneError` when a split that was asked for is not there.
    """
    for wanted in (split, validation):
        if wanted and wanted not in names:
            listed = one_line(", ".join(names), 200) or "none"
            text = f"The data set has no split or file {one_line(wanted, 80)}"
            raise TuneError(f"{text}; it has {listed}.", "Choose one of them.")
    training = split or _first(names, ("train",), validation) or names[0]
    held_out = validation or _first(names, ("validation", "test"), training)
    picked = Picked(training, "" if held_out == training else held_out)
    others = [name for name in names if picked.of(name) is None]
    if others:
        listed = one_line(", ".join(others), 200)
        text = f"Of several parts {one_line(picked.training, 80)!r} is trained on; not used: {listed}."
        log.warn("splits", text)
    return picked


def _first(names: Sequence[str], kinds: Sequence[str], taken: str) -> str:
    for kind in kinds:
        for name in names:
            if name != taken and (_NAMES.get(name.strip().lower()) or split_in(name)) == kind:
                return name
    return ""
