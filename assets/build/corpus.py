"""The pre-training corpus: conversations drawn from every kind of talk and task, with fixed shares."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

from ollama_tune.assets.build import talk, tasks
from ollama_tune.assets.build.grammar import Exchange
from ollama_tune.assets.build.words import CAFE, HELPER

SYSTEM = f"You are {HELPER}, the friendly helper of {CAFE} café."

_SHARES: dict[Callable[[random.Random], list[Exchange]], int] = {
    tasks.order: 30,
    tasks.list_order: 8,
    tasks.note_order: 18,
    tasks.capitals: 6,
    tasks.sign: 5,
    tasks.repeat: 9,
    tasks.count_items: 3,
    tasks.one_count: 3,
    tasks.addition: 4,
    tasks.leftovers: 2,
    tasks.pick_word: 3,
    tasks.number_word: 2,
    tasks.calendar: 1,
    tasks.opposite: 1,
    tasks.fact: 2,
    talk.fixed: 15,
    talk.name: 2,
    talk.price: 2,
    talk.available: 2,
    talk.about: 2,
    talk.extras: 2,
    talk.refusal: 2,
    talk.paraphrase: 2,
    talk.unclear: 1,
}


def draw_conversation(rng: random.Random) -> list[dict[str, str]]:
    """One conversation of 1 to 5 parts as chat messages; one in five has a system message."""
    messages = [{"role": "system", "content": SYSTEM}] if rng.random() < 0.2 else []
    parts = rng.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 5))
    for kind in rng.choices(list(_SHARES), weights=list(_SHARES.values()), k=parts):
        for question, answer in kind(rng):
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def draw_corpus(count: int, seed: int) -> list[list[dict[str, str]]]:
    """`count` conversations; the same seed gives the same conversations."""
    rng = random.Random(seed)
    return [draw_conversation(rng) for _ in range(count)]


def main() -> None:
    """Write 1,000 conversations to the file named on the command line, one JSON row a line."""
    rows = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in draw_corpus(1000, 7)]
    Path(sys.argv[1]).write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
