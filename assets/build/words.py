"""The words of the café, read from `phrases.yaml`: its menu, its guests, its usual answers, words to copy."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CAFE = "the Copper Spoon"
HELPER = "Pip"

_TEXTS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Item:
    """Something on the menu: its name, price in pounds, what may be asked on it, and what it is."""

    name: str
    plural: str
    price: str
    extras: tuple[str, ...]
    about: str
    drink: bool

    @property
    def article(self) -> str:
        """The name with `a` or `an`."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    def counted(self, count: int) -> str:
        """The name as it follows a number."""
        return self.name if count == 1 else self.plural


def _invented(rng: random.Random) -> str:
    syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randrange(2, 5)))
    return ("".join(syllables) + rng.choice(("", "", "n", "r", "s"))).capitalize()


def _items(kind: str) -> tuple[Item, ...]:
    return tuple(
        Item(name, plural, price, tuple(_TEXTS["extras"][extras]), about, drink=kind == "drinks")
        for name, plural, price, extras, about in _TEXTS[kind]
    )


MENU = _items("drinks") + _items("food")
EXTRAS = tuple(dict.fromkeys(extra for item in MENU for extra in item.extras))
NUMBERS: list[str] = _TEXTS["numbers"].split()
DAYS: list[str] = _TEXTS["days"].split()
MONTHS: list[str] = _TEXTS["months"].split()
NAMES: list[str] = _TEXTS["names"].split()
INVENTED = [_invented(random.Random(number)) for number in range(2000)]
PLAIN: list[str] = _TEXTS["plain"].split()
ABSENT: list[str] = _TEXTS["absent"].split()
REFUSED: list[str] = _TEXTS["refused"]
FACTS: list[str] = _TEXTS["facts"]
OPPOSITES: list[list[str]] = _TEXTS["opposites"]
SAME_MEANING: list[list[str]] = _TEXTS["same_meaning"]
ANSWERS: list[tuple[str, str]] = [(entry["ask"], entry["answer"]) for entry in _TEXTS["answers"]]
