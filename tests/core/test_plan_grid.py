"""Plans over a grid of cards, models and data: each fits or nothing would, and more memory is never worse."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import Any

import pytest

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.draft import Draft
from ollama_tune.core.plan.fit import SPARE
from ollama_tune.core.plan.recommend import make_plan, solve
from ollama_tune.core.plan.values import Plan
from tests.cases import LLAMA_1B, LLAMA_8B, LLAMA_70B, QWEN3_4B, SHORT, lengths, machine, spec

TINY_CHAT = spec(768, 2048, 12, 12, 4, 64, 32_000, True)
QWEN_32B = spec(5120, 27648, 64, 40, 8, 128, 152_064, False, model_type="qwen2")
MODELS: dict[str, ModelSpec] = {
    "0.1B": TINY_CHAT,
    "1B": LLAMA_1B,
    "4B": QWEN3_4B,
    "8B": LLAMA_8B,
    "32B": QWEN_32B,
    "70B": LLAMA_70B,
}
DATA: dict[str, Lengths] = {
    "short": SHORT,
    "2k": lengths(5000, 900, 400, 2040, 800),
    "32k": lengths(2000, 9000, 900, 32_000, 2000),
}
MEMORIES = (8, 12, 16, 24, 48, 80, 141, 192)
METHODS: tuple[dict[str, Any], ...] = ({}, {"training.method": "full"}, {"training.method": "prompt"})
CASES = [
    *product(MODELS, DATA, (1, 4), METHODS[:1]),
    *product(("1B", "8B"), ("short", "2k"), (1,), METHODS[1:]),
]


@cache
def box(memory: int, count: int) -> Machine:
    """Cards that differ in memory alone."""
    one = machine(ram=512, cores=32, disk=4000, gpu=memory)
    gpus = tuple(replace(one.gpu.gpus[0], index=at, uuid=f"GPU-{at}") for at in range(count))
    return replace(one, gpu=replace(one.gpu, gpus=gpus))


def drafted(model: str, data: str, memory: int, count: int, changed: dict[str, Any]) -> tuple[Draft, Plan]:
    draft = Draft(box(memory, count), MODELS[model], DATA[data], changed)
    return draft, solve(draft)


def order(plan: Plan, draft: Draft) -> tuple[float, ...]:
    """What a plan gives up, the gravest first; larger is better."""
    training = plan.settings.training
    return (
        training.sequence_length,
        training.rank,
        training.gradient_checkpointing != "offload",
        training.quantization == "none",
        not plan.memory.sharded,
        training.optimizer == "adamw",
    )


def least(draft: Draft) -> bool:
    """Whether the smallest settings that a search could take would fit."""
    training = draft.settings.training
    length = min(rules.sequence_lengths(draft.spec, draft.lengths, packing=training.packing))
    full = training.method == "full"
    small = {"batch_size": 1, "sequence_length": length, "optimizer": "adamw_8bit"}
    small |= {} if full else {"rank": min(training.rank, 8)}
    kinds = [("none", "ddp"), *(() if full else [("nf4", "ddp")])]
    kinds += [("none", "fsdp")] if training.method == "lora" else []
    for (weights, sharding), recompute in product(kinds, ("mlp", "layers", "offload")):
        update = {**small, "quantization": weights, "sharding": sharding, "gradient_checkpointing": recompute}
        settings = draft.settings.model_copy(update={"training": training.model_copy(update=update)})
        if draft.memory(settings).fits:
            return True
    return False


@pytest.mark.parametrize(("model", "data", "count", "changed"), CASES)
def test_a_plan_fits_unless_nothing_does_and_more_memory_is_never_worse(
    model: str, data: str, count: int, changed: dict[str, Any]
) -> None:
    found = [drafted(model, data, memory, count, changed) for memory in MEMORIES]
    for draft, plan in found:
        assert plan.memory.fits or not least(draft)
        training = plan.settings.training
        assert training.sequence_length >= min(
            rules.sequence_lengths(draft.spec, draft.lengths, packing=training.packing)
        )
        seconds, tokens = plan.work.seconds, plan.work.tokens
        assert 0 < seconds < 1e9 and tokens > 0
        assert tokens / seconds < 4e6 * count, "no card computes so many tokens a second"
    fitting = [(draft, plan) for draft, plan in found if plan.memory.fits]
    assert [plan.memory.fits for _, plan in found] == sorted(plan.memory.fits for _, plan in found)
    for (draft, smaller), (other, larger) in pairwise(fitting):
        before, after = order(smaller, draft), order(larger, other)
        spare = smaller.memory.needed <= smaller.memory.free * (1 - SPARE)
        assert after >= before, (smaller.settings.training, larger.settings.training)
        steps = [plan.settings.training for plan in (smaller, larger)]
        if after == before and spare:
            assert larger.work.seconds <= smaller.work.seconds * 1.001
        if count == 1:
            rows = [step.batch_size * step.gradient_accumulation_steps for step in steps]
            assert rows[0] == rows[1] or steps[0].sequence_length != steps[1].sequence_length
        if not (after[3] > before[3] or after[4] > before[4]):
            assert (steps[0].path, smaller.choices["training.path"].value) == (
                steps[1].path,
                larger.choices["training.path"].value,
            )


NUMBER = re.compile(r"\d[\d,.]*")


@pytest.mark.parametrize(("memory", "model"), [(8, "8B"), (12, "1B"), (24, "8B"), (80, "70B"), (192, "32B")])
def test_reasons_name_the_figures_of_the_plan(memory: int, model: str) -> None:
    plan = make_plan(box(memory, 1), MODELS[model], DATA["2k"], {})
    training, reasons = plan.settings.training, {path: choice.reason for path, choice in plan.choices.items()}
    for path, choice in plan.choices.items():
        assert choice.value == plan.settings.get(path), path
        assert choice.reason and len(choice.reason) <= 80
    accumulated = reasons["training.gradient_accumulation_steps"]
    assert accumulated.startswith(f"{training.batch_size} x {training.gradient_accumulation_steps} ")
    for name in ("quantization", "gradient_checkpointing", "batch_size", "rank", "sequence_length", "warmup"):
        assert NUMBER.search(reasons[f"training.{name}"]), reasons[f"training.{name}"]
    every = int(NUMBER.findall(reasons["training.evaluation_interval"])[0].replace(",", ""))
    assert every == plan.work.steps // training.evaluation_interval


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("data", DATA)
def test_lengths_that_save_memory_are_shorter(data: str, packing: bool) -> None:
    found = rules.sequence_lengths(LLAMA_8B, DATA[data], packing=packing)
    assert found == sorted(found, reverse=True)


def test_averages_in_8_bit_are_the_last_resort_however_little_they_save() -> None:
    card = box(8, 1)
    tight = [replace(card.gpu.gpus[0], free=int(free * (1 << 30) / 100)) for free in range(700, 800, 2)]
    plans = [
        solve(Draft(replace(card, gpu=replace(card.gpu, gpus=(gpu,))), LLAMA_8B, DATA["2k"], {}))
        for gpu in tight
    ]
    fits = [plan.memory.fits for plan in plans]
    assert fits == sorted(fits)
    first = plans[fits.index(True)]
    assert first.settings.training.optimizer == "adamw_8bit" and not all(fits) and fits.index(True) > 0
