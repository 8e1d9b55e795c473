"""What the tuned model answers before the export, stored by the training as `reference.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = 8
"""Questions whose answers are compared."""
POSITIONS = 6
TOKENS = 64
"""Most likely next tokens kept at a place."""


def places(count: int) -> list[int]:
    """Up to `POSITIONS` places spread over an answer of so many tokens; its beginning where it has none."""
    return sorted({i * max(count, 1) // POSITIONS for i in range(POSITIONS)})


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


def read_reference(
    path: Path, max_new_tokens: int, adapter_digest: str | None = None
) -> tuple[ReferenceAnswer, ...]:
    """The stored answers; none where the file is missing, not what it should be, or of another adapter.

    `max_new_tokens` is the limit they were made with: a shorter answer ended by itself. `adapter_digest` is
    the SHA-256 of the adapter they must belong to; older files do not say whose they are.
    """
    try:
        tree = json.loads(path.read_text())
        if adapter_digest is not None and tree.get("adapter_sha256", adapter_digest) != adapter_digest:
            return ()
        return tuple(_answer(entry, max_new_tokens) for entry in tree["prompts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def _answer(entry: Mapping[str, Any], max_new_tokens: int) -> ReferenceAnswer:
    answer = tuple(int(i) for i in entry["answer_ids"])
    return ReferenceAnswer(
        prompt_ids=tuple(int(i) for i in entry["prompt_ids"]),
        answer_ids=answer,
        text=str(entry["text"]),
        ended=bool(entry.get("ended", len(answer) < max_new_tokens)),
        positions=tuple(
            Position(
                int(p["index"]), {int(i): float(x) for i, x in zip(p["ids"], p["logprobs"], strict=True)}
            )
            for p in entry["positions"]
        ),
    )


def divergence(reference: Mapping[int, float], found: Mapping[int, float]) -> float:
    """KL(reference || found) in nats over the reference's tokens, with all others as one more outcome.

    A token that `found` does not list has at most the probability of the least one listed there, and all
    of them together what is left; they get the most that this allows, so the result is a lower bound.
    """
    known = {i: math.exp(found[i]) for i in reference if i in found}
    missing = {i: math.exp(p) for i, p in reference.items() if i not in found}
    left = max(1.0 - sum(map(math.exp, found.values())), 0.0)
    least = math.exp(min(found.values())) if found else 1.0
    share = left / max(sum(missing.values()), 1e-9)
    known |= {i: max(min(least, share * p), 1e-9) for i, p in missing.items()}
    total = sum(math.exp(p) * (p - math.log(max(known[i], 1e-30))) for i, p in reference.items())
    rest = max(1.0 - sum(map(math.exp, reference.values())), 1e-9)
    return max(total + rest * math.log(rest / max(1.0 - sum(known.values()), 1e-9)), 0.0)
