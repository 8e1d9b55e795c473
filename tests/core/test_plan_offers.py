"""Ways out of a plan that does not fit: every offer fits, costs what it says, and leaves the rest alone."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.catalogue import find_listed, spec_of
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.offers import _shown
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.values import Offer, Plan
from tests.cases import CHAT, LLAMA_1B, LLAMA_8B, LLAMA_70B, QWEN3_4B, SHORT, lengths, machine

BOXES = {
    "cpu": machine(ram=16),
    "little ram": machine(ram=2),
    "8": machine(gpu=8, name="NVIDIA GeForce RTX 4060"),
    "12": machine(gpu=12),
    "24": machine(gpu=24),
    "T4": machine(gpu=16, name="Tesla T4", compute_capability=(7, 5)),
}
MODELS = {"1B": LLAMA_1B, "4B": QWEN3_4B, "8B": LLAMA_8B, "70B": LLAMA_70B}
LONG = lengths(
    5000,
    300,
    160,
    4040,
    800,
    percentile_95=900,
    percentile_99=1500,
    histogram=(*[0] * 4, 4000, *[0] * 9, 850, *[0] * 15, 100, *[0] * 14, 30, *[0] * 17, 20),
)
DATA = {"short": SHORT, "chat": CHAT, "long": LONG}
ROWS: dict[str, Any] = {"training.packing": False}
"""Batches of rows, so that their number in a step can be compared at any length."""
CHANGES: list[dict[str, Any]] = [
    {},
    {"training.batch_size": 64},
    {"training.batch_size": 12, "training.gradient_accumulation_steps": 2},
    {"training.gradient_accumulation_steps": 1},
    {"training.sequence_length": 4096, "training.rank": 64},
    {"training.quantization": "none"},
    {"training.gradient_checkpointing": "none"},
    {"training.rank": 512},
    {"training.compute_dtype": "float32", "training.dropout": 0.1},
    {"training.batch_size": 16, "training.gradient_checkpointing": "none", "training.quantization": "none"},
]


def plan(box: Machine, model: ModelSpec, data: Lengths = LONG, **changed: Any) -> Plan:
    return make_plan(box, model, data, ROWS | {f"training.{name}": value for name, value in changed.items()})


def taken(
    offer: Offer, box: Machine, model: ModelSpec, data: Lengths, changed: dict[str, Any]
) -> tuple[Plan, dict[str, Any]]:
    """The plan with an offer's values set as if by hand."""
    listed = find_listed(str(offer.changes.get("model.source", "")))
    values = changed | dict(offer.changes)
    return make_plan(box, spec_of(listed) if listed else model, data, values), values


def a_step(made: Plan) -> int:
    training = made.settings.training
    return training.batch_size * training.gradient_accumulation_steps


def told_in_full(offer: Offer, before: Plan, then: Plan) -> None:
    """The same result is promised only where it is kept, and what else changes it is told; so is the time."""
    if not {"model.source", "training.device"}.isdisjoint(offer.changes):
        return
    for name in ("epochs", "sequence_length", "packing", "quantization", "optimizer", "rank", "dora"):
        old, new = (getattr(plan.settings.training, name) for plan in (before, then))
        known = f"training.{name}" in offer.changes
        assert old == new or known or f"{name} {_shown(old)} → {_shown(new)}" in offer.text
        assert old == new or "the same result" not in offer.text
    times = then.work.seconds / before.work.seconds
    told = re.search(r"(\d+) % (more|less) time$|([\d.]+) times as long$", offer.text)
    if told is None:
        assert times == pytest.approx(1, abs=0.006)
    elif told[3]:
        assert float(told[3]) == pytest.approx(times, abs=0.06)
    else:
        assert 1 + int(told[1]) * (1 if told[2] == "more" else -1) / 100 == pytest.approx(times, abs=0.006)


@pytest.mark.parametrize(
    "changed", CHANGES, ids=lambda changed: "+".join(n[9:] for n in changed) or "nothing"
)
@pytest.mark.parametrize(("box", "model"), list(itertools.product(BOXES, MODELS)))
def test_every_offer_really_fits_and_touches_nothing_else(
    box: str, model: str, changed: dict[str, Any]
) -> None:
    changed = ROWS | changed
    made = make_plan(BOXES[box], MODELS[model], LONG, changed)
    assert not (made.offers and made.memory.fits), "a plan that fits needs no way out"
    for offer in made.offers:
        then, values = taken(offer, BOXES[box], MODELS[model], LONG, changed)
        assert then.memory.fits
        assert then.memory == offer.memory
        assert {path: then.settings.get(path) for path in values} == values
        assert a_step(then) == a_step(made)
        assert len(offer.text) <= 200
        told_in_full(offer, made, then)


@pytest.mark.parametrize(("box", "model"), list(itertools.product(BOXES, MODELS)))
@pytest.mark.parametrize("data", DATA)
def test_a_plan_that_does_not_fit_has_an_offer_or_says_what_it_lacks(box: str, model: str, data: str) -> None:
    made = make_plan(BOXES[box], MODELS[model], DATA[data], {})
    if not made.memory.fits:
        (warning,) = [text for text in made.warnings if "are free; " in text]
        assert ("see what is offered" in warning) == bool(made.offers)


def test_shorter_rows_are_the_longest_that_fit_and_their_cost_is_counted() -> None:
    made = plan(BOXES["12"], LLAMA_8B, batch_size=8, gradient_accumulation_steps=2, sequence_length=4096)
    offer = next(offer for offer in made.offers if list(offer.changes) == ["training.sequence_length"])
    length = offer.changes["training.sequence_length"]
    longer = dict(made.changed and {"batch_size": 8, "gradient_accumulation_steps": 2})
    assert not plan(BOXES["12"], LLAMA_8B, **longer, sequence_length=length + 64).memory.fits
    lost = sum(LONG.histogram[length // 64 :])
    assert f"sequence_length 4,096 → {length:,}" in offer.text
    assert f"{lost:,} of 5,000 rows ({lost / 50:.1f} %) are left out" in offer.text


def test_a_smaller_batch_keeps_the_rows_of_a_step() -> None:
    made = plan(BOXES["12"], LLAMA_8B, batch_size=32)
    assert a_step(made) == 32
    (offer, *_) = made.offers
    size = offer.changes["training.batch_size"]
    assert offer.changes["training.gradient_accumulation_steps"] == 32 // size
    assert "rank 8 → 16" in offer.text and "same result" not in offer.text, "the usual rank fits now"
    kept = plan(BOXES["12"], LLAMA_8B, batch_size=32, rank=16, sequence_length=1536, optimizer="adamw")
    assert "gradient_accumulation_steps 1 → 4: the same result, " in kept.offers[0].text
    assert not plan(
        BOXES["12"], LLAMA_8B, batch_size=2 * size, gradient_accumulation_steps=16 // size
    ).memory.fits


@pytest.mark.parametrize("data", DATA)
def test_half_the_batch_keeps_the_epochs(data: str) -> None:
    made = plan(BOXES["8"], LLAMA_8B, DATA[data], batch_size=64)
    offer = next(offer for offer in made.offers if "training.batch_size" in offer.changes)
    then, _ = taken(offer, BOXES["8"], LLAMA_8B, DATA[data], ROWS | {"training.batch_size": 64})
    assert then.settings.training.epochs == made.settings.training.epochs
    assert then.work.steps == made.work.steps
    assert then.work.seconds < 1.5 * made.work.seconds, "it was 4.8 times with short rows: 17 epochs, not 3"


def test_the_ways_that_cost_only_time_come_first() -> None:
    made = plan(BOXES["8"], LLAMA_8B, CHAT, gradient_checkpointing="none")
    assert dict(made.offers[0].changes) == {"training.gradient_checkpointing": "layers"}
    assert "the same result" in made.offers[0].text


def test_a_rank_that_is_too_high_falls_to_the_highest_that_fits() -> None:
    made = plan(BOXES["8"], QWEN3_4B, CHAT, rank=512)
    offer = next(offer for offer in made.offers if "training.rank" in offer.changes)
    rank = offer.changes["training.rank"]
    assert rank >= 8 and rank & (rank - 1) == 0
    assert not plan(BOXES["8"], QWEN3_4B, CHAT, rank=2 * rank).memory.fits
    assert "parameters for" in offer.text


def test_several_values_are_given_up_together_where_none_alone_suffices() -> None:
    changed = {"batch_size": 16, "gradient_accumulation_steps": 1, "gradient_checkpointing": "none"}
    made = plan(BOXES["8"], LLAMA_8B, **changed)
    offer = next(offer for offer in made.offers if "recommended values" in offer.text)
    assert {path.partition(".")[2] for path in offer.changes} == set(changed)
    assert offer.memory.fits


def test_experts_are_not_offered_in_4_bit() -> None:
    experts = replace(LLAMA_8B, architecture="Qwen3MoeForCausalLM", model_type="qwen3_moe")
    made = plan(BOXES["12"], experts, CHAT, quantization="none")
    assert not any("training.quantization" in offer.changes for offer in made.offers)


def test_the_smaller_model_is_a_listed_one_with_its_download() -> None:
    made = plan(BOXES["24"], LLAMA_70B, CHAT)
    offer = next(offer for offer in made.offers if "model.source" in offer.changes)
    listed = find_listed(offer.changes["model.source"])
    assert listed is not None and listed.parameters < LLAMA_70B.parameters and not listed.gated
    assert "to download" in offer.text
    pinned = {"model.revision": "main", "model.chat_template": "chatml"}
    other = make_plan(BOXES["24"], LLAMA_70B, CHAT, pinned).offers[-1]
    assert dict(other.changes) == {"model.source": listed.id, **dict.fromkeys(pinned)}


def test_a_model_is_offered_only_where_the_disk_can_take_it() -> None:
    full = machine(gpu=24, ram=64, disk=2)
    offers = [dict(offer.changes) for offer in make_plan(full, LLAMA_70B, CHAT, {}).offers]
    listed = [find_listed(changes["model.source"]) for changes in offers if "model.source" in changes]
    assert all(model is not None and 2 * model.parameters < 2 << 30 for model in listed)
    assert listed


def test_the_other_device_is_offered_where_it_has_the_memory_and_a_day_is_enough() -> None:
    small_card = machine(gpu=1, ram=64, cores=16)
    made = plan(small_card, LLAMA_1B, SHORT)
    offer = next(offer for offer in made.offers if offer.changes.get("training.device") == "cpu")
    assert "train on the CPU: about" in offer.text
    slow = machine(gpu=1, ram=64, cores=1)
    assert not any("training.device" in offer.changes for offer in plan(slow, LLAMA_1B, LONG).offers)
    wished = plan(machine(ram=64), LLAMA_1B, SHORT, device="cuda")
    assert dict(wished.offers[0].changes) == {"training.device": "cpu"}
