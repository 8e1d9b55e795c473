"""Writes the bundled data set: orders as guests speak them, answered with the kitchen's ticket."""

from __future__ import annotations

import json
import random
from pathlib import Path

from ollama_tune.assets.build.orders import Order, draw_order, spoken, ticket

SEED = 11
ROWS = 500
MOST_ITEMS = 2
MOST_MARKS = 2
MOST_ALIKE = 0.6

Shingles = frozenset[tuple[str, ...]]


def contents(order: Order) -> frozenset[tuple[object, ...]]:
    """What was ordered, whatever the sequence and the place."""
    return frozenset(
        (line.count, line.item.name, line.size, frozenset(line.plus), line.minus) for line in order.lines
    )


def shingles(text: str) -> Shingles:
    """Every three neighbouring words of a text."""
    words = text.lower().split()
    return frozenset(tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2)))


def alike(first: Shingles, second: Shingles) -> float:
    """The share of three-word pieces that two texts have in common (Jaccard index)."""
    return len(first & second) / len(first | second)


def draw_tickets(count: int = ROWS, seed: int = SEED) -> list[tuple[str, str]]:
    """Pairs of spoken order and ticket. No two rows order the same things or are worded nearly alike.

    So however the rows are split, no held-out order was seen in training.
    """
    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    seen: set[frozenset[tuple[object, ...]]] = set()
    worded: list[Shingles] = []
    while len(rows) < count:
        order = draw_order(rng, MOST_ITEMS)
        if any(len(line.plus) + bool(line.minus) > MOST_MARKS for line in order.lines):
            continue
        text = spoken(rng, order)
        pieces = shingles(text)
        if contents(order) in seen or any(alike(pieces, other) > MOST_ALIKE for other in worded):
            continue
        seen.add(contents(order))
        worded.append(pieces)
        rows.append((text, ticket(order)))
    return rows


def file_bytes(rows: list[tuple[str, str]]) -> bytes:
    """The rows as JSON Lines in OpenAI's `messages` form."""
    lines = []
    for text, answer in rows:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def main() -> None:
    """Write `assets/data/tickets.jsonl`."""
    path = Path(__file__).parents[1] / "data" / "tickets.jsonl"
    path.write_bytes(file_bytes(draw_tickets()))


if __name__ == "__main__":
    main()
