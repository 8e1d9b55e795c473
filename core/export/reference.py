"""What the tuned model answers before the export, stored by the training as `reference.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Position:
    """Most likely next tokens after the prompt and `index` tokens of the answer: id -> natural log-prob."""

    index: int
    logprobs: Mapping[int, float]


@dataclass(frozen=True)
class ReferenceAnswer:
    """The greedy answer to one prompt, without its end mark, and whether the model ended it by itself."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    text: str
    ended: bool
    positions: tuple[Position, ...]


def read_reference(path: Path, max_new_tokens: int) -> tuple[ReferenceAnswer, ...]:
    """The stored answers; none where the file is missing or not what it should be.

    `max_new_tokens` is the limit they were made with: a shorter answer ended by itself.
    """
    try:
        return tuple(_answer(entry, max_new_tokens) for entry in json.loads(path.read_text())["prompts"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _answer(entry: Mapping[str, Any], max_new_tokens: int) -> ReferenceAnswer:
    answer = tuple(int(i) for i in entry["answer_ids"])
    return ReferenceAnswer(
        prompt_ids=tuple(int(i) for i in entry["prompt_ids"]),
        answer_ids=answer,
        text=str(entry["text"]),
        ended=len(answer) < max_new_tokens,
        positions=tuple(
            Position(
                int(p["index"]), {int(i): float(x) for i, x in zip(p["ids"], p["logprobs"], strict=True)}
            )
            for p in entry["positions"]
        ),
    )


def divergence(reference: Mapping[int, float], found: Mapping[int, float]) -> float:
    """KL(reference || found) in nats over the tokens both list, with all others as one more outcome."""
    shared = [i for i in reference if i in found]
    total = sum(math.exp(reference[i]) * (reference[i] - found[i]) for i in shared)
    rest, rest_found = (
        max(1.0 - sum(math.exp(side[i]) for i in shared), 1e-9) for side in (reference, found)
    )
    return max(total + rest * math.log(rest / rest_found), 0.0)
