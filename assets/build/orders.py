"""Café orders: drawn at random, spoken as a guest would, read back, and written as a kitchen ticket."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from ollama_tune.assets.build.grammar import chosen, joined, say
from ollama_tune.assets.build.words import MENU, NUMBERS, Item

_OPENERS = (
    "",
    "",
    "",
    "Hi,",
    "Hello,",
    "Hey,",
    "Hi there,",
    "Good morning,",
    "Good afternoon,",
    "Excuse me,",
)
_ASKS = (
    "(could|can|may) (I|we) (get|have|order) {order}(, please|)?",
    "(I'd|we'd|I would|we would) (like|love) {order}(, please|).",
    "(I'll|we'll|I will|we will) (have|take) {order}(, please|, thanks|).",
    "{order}(, please|, thanks|, thank you).",
    "(could|can) you (make|bring) (me|us) {order}(, please|)?",
    "please (make|bring) (me|us) {order}.",
    "(I|we) (want|need) {order}(, please|).",
    "(give|get) (me|us) {order}, please.",
    "(my|our) order is {order}.",
    "(for me|for us) {order}, please.",
    "(let me|let us) (have|get) {order}(, please|).",
)
_AT_TABLE = (
    "(We're|We are|I'm|I am|It's|That's) (at|for) table {n}.",
    "(That goes|It goes) to table {n}.",
    "Table {n}.",
)
_TABLE_FIRST = ("table {n} here:", "this is table {n},", "for table {n}:", "at table {n}:")
_TO_GO = (
    "(It's|That's|All) to take away.",
    "To go, please.",
    "Takeaway, please.",
    "We'll take (it|that) with us.",
)
_TO_GO_FIRST = ("to take away:", "takeaway, please:", "to go:")


@dataclass(frozen=True)
class Line:
    """One kind of item of an order: how many, which size, what on it and what left off."""

    count: int
    item: Item
    size: str = ""
    plus: tuple[str, ...] = ()
    minus: str = ""


@dataclass(frozen=True)
class Order:
    """A guest's order; `place` is a table number, `away` for a takeaway, or empty."""

    lines: tuple[Line, ...]
    place: str = ""


def draw_line(rng: random.Random, item: Item) -> Line:
    """A random line of this item, most often plain."""
    count = rng.choice((1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9))
    size = rng.choice(("", "", "large", "small")) if item.drink else ""
    plus = tuple(rng.sample(item.extras, rng.choice((0, 0, 0, 1, 1, 1, 2))))
    left = [extra for extra in item.extras if extra not in plus]
    return Line(count, item, size, plus, rng.choice(left) if rng.random() < 0.2 else "")


def draw_order(rng: random.Random, most: int = 3) -> Order:
    """A random order of 1 to `most` different items."""
    items = rng.sample(MENU, rng.choice(range(1, most + 1)))
    place = rng.choice(("", "away", str(rng.randrange(1, 21)), str(rng.randrange(1, 21))))
    return Order(tuple(draw_line(rng, item) for item in items), place)


def spoken_line(rng: random.Random, line: Line) -> str:
    """A line in a guest's words, such as `two large teas with milk and no sugar`."""
    count = NUMBERS[line.count] if rng.random() < 0.85 else str(line.count)
    name = f"{line.size} {line.item.counted(line.count)}".strip()
    if line.count == 1 and rng.random() < 0.85:
        count = "an" if name[0] in "aeiou" else "a"
    return f"{count} {name}{_extras(rng, line)}"


def _extras(rng: random.Random, line: Line) -> str:
    plus = f" with {joined(list(line.plus))}" if line.plus else ""
    if not line.minus:
        return plus
    return (
        plus
        + (
            rng.choice((" but no ", " and no ", " but without "))
            if plus
            else rng.choice((" without ", " with no "))
        )
        + line.minus
    )


def spoken_list(rng: random.Random, order: Order) -> str:
    """The lines of an order as a spoken list."""
    return joined(
        [spoken_line(rng, line) for line in order.lines], rng.choice((" and ", " and ", ", and ", " plus "))
    )


def spoken(rng: random.Random, order: Order) -> str:
    """An order as a guest says it."""
    ask = chosen(rng, _ASKS, order=spoken_list(rng, order))
    before, after = _place(rng, order.place)
    opener = rng.choice(_OPENERS)
    if (opener or before) and not ask.startswith("I"):
        ask = ask[0].lower() + ask[1:]
    return say(rng, "{opener} {before} {ask} {after}", opener=opener, before=before, ask=ask, after=after)


def _place(rng: random.Random, place: str) -> tuple[str, str]:
    """What is said about the place before and after the order; one of the two is empty."""
    if not place:
        return "", ""
    number = NUMBERS[int(place)] if place != "away" and rng.random() < 0.4 else place
    if rng.random() < 0.3:
        return chosen(rng, _TO_GO_FIRST if place == "away" else _TABLE_FIRST, n=number).lower(), ""
    return "", chosen(rng, _TO_GO if place == "away" else _AT_TABLE, n=number)


def read_back(order: Order) -> str:
    """An order in the café's own fixed words, such as `two teas with milk and one bagel`."""
    return joined([_repeated(line, NUMBERS[line.count]) for line in order.lines])


def listed(order: Order, mark: str, capitals: bool) -> str:
    """An order as a list with figures, such as `2 teas with milk; 1 bagel; table 4`."""
    text = mark.join([_repeated(line, str(line.count)) for line in order.lines] + _place_entry(order))
    return text.upper() if capitals else text


@dataclass(frozen=True)
class Marks:
    """The signs in short notes: between entries; before what goes on or is left off, size and place."""

    between: str = ";"
    plus: str = "&"
    minus: str = "!"
    size: str = ":"
    place: str = "#"


def noted(order: Order, marks: Marks, capitals: bool) -> str:
    """An order as short notes, never in the plural, such as `2 tea:l &milk !sugar ; #4`."""
    place = [marks.place + order.place] if order.place else []
    text = f" {marks.between} ".join([_note(line, marks) for line in order.lines] + place)
    return text.upper() if capitals else text


def _note(line: Line, marks: Marks) -> str:
    size = f"{marks.size}{line.size[0]}" if line.size else ""
    signs = [marks.plus + extra for extra in line.plus] + ([marks.minus + line.minus] if line.minus else [])
    return " ".join([f"{line.count} {line.item.name}{size}", *signs])


def _place_entry(order: Order) -> list[str]:
    if not order.place:
        return []
    return ["away" if order.place == "away" else f"table {order.place}"]


def _repeated(line: Line, count: str) -> str:
    words = [count, line.size, line.item.counted(line.count)]
    words += ["with " + joined(list(line.plus))] if line.plus else []
    words += [f"without {line.minus}"] if line.minus else []
    return " ".join(word for word in words if word)


def place_words(order: Order) -> str:
    """Where the order goes, in words, with a space in front; empty if the guest did not say."""
    if not order.place:
        return ""
    return " to take away" if order.place == "away" else f" for table {order.place}"


def ticket(order: Order) -> str:
    """An order in the kitchen's notation, such as `2 TEA/L +MILK -SUGAR | 1 BAGEL | T4`.

    Count and item in capitals; `/L` or `/S` is the size, `+` what goes on it, `-` what is left off;
    then `T` and the table, or `GO` for a takeaway.
    """
    text = noted(replace(order, place=""), Marks("|", "+", "-", "/"), capitals=True)
    if not order.place:
        return text
    return f"{text} | GO" if order.place == "away" else f"{text} | T{order.place}"
