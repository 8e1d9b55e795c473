"""Pairs of answers for tests, and the DPO loss written out with full logits."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ollama_tune.core.data.tokens.encoded import Held
from ollama_tune.core.data.tokens.sides import Pair, Pairs
from ollama_tune.core.data.values import Example


def pairs(count: int, *, seed: int = 0, first: int = 0, longest: int = 14, words: int = 160) -> Pairs:
    """Pairs whose question is shared by both rows; the better answer is made of one token, the worse of
    others, so that the difference can be learned."""
    sides: tuple[list[Example], list[Example]] = ([], [])
    for number in range(seed, seed + count):
        chance = random.Random(number)
        asked = tuple(chance.randrange(1, words) for _ in range(chance.randrange(4, longest)))
        better = (7,) * chance.randrange(2, 8)
        worse = tuple(chance.randrange(9, words) for _ in range(chance.randrange(2, 12)))
        for side, answer in zip(sides, (better, worse), strict=True):
            trained = (False,) * len(asked) + (True,) * len(answer)
            side.append(Example("", asked + answer, trained, ()))
    return Pairs(Held(sides[0]), Held(sides[1]), [(at, at) for at in range(count)], first)


def likelihood(model: Any, row: Example, dtype: torch.dtype) -> torch.Tensor:
    """The log of the probability of a row's trained tokens by a model of transformers, with all logits."""
    ids = torch.tensor([row.ids])
    shares = torch.log_softmax(model(input_ids=ids).logits[0, :-1].to(dtype), -1)
    found = shares.gather(1, ids[0, 1:, None])[:, 0]
    return found[torch.tensor(row.trained[1:])].sum()


def written_out(
    model: Any, chosen: Sequence[Pair], beta: float, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Equation 7 of the paper for a PEFT model, one row at a time: the sum over the pairs."""
    total = torch.zeros((), dtype=dtype)
    for pair in chosen:
        better, worse = (likelihood(model, row, dtype) for row in (pair.chosen, pair.rejected))
        with torch.no_grad(), model.disable_adapter():
            known = [likelihood(model, row, dtype) for row in (pair.chosen, pair.rejected)]
        margin = beta * ((better - known[0]) - (worse - known[1]))
        total = total - torch.log(torch.sigmoid(margin))
    return total


def write_pairs(path: Path, count: int) -> Path:
    """Questions with a better and a worse answer; a pair that is too long, and one without its other side."""
    chance = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = " ".join(chance.choice(["sky", "old", "birds"]) for _ in range(chance.randrange(1, 8)))
            record = {"prompt": f"What is {number} {words}?", "chosen": "It is blue.", "rejected": "No, old."}
            file.write(json.dumps(record) + "\n")
        for extra in ({"chosen": "yes " * 200}, {"rejected": ""}):
            file.write(json.dumps(record | {"prompt": f"Why {extra}?"[:20]} | extra) + "\n")
    return path
