"""Recommendations: whether rows are packed, and how long the sequences are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ollama_tune.core.plan import rules
from ollama_tune.core.plan.padding import packed_rows, random_padding
from tests.cases import LLAMA_1B, LLAMA_8B, SHORT, lengths
from tests.core.plan_parts import BOXES, plan

HISTOGRAM = tuple(round(60_000 * 0.8**step) for step in range(30))
"""Row counts by length with a long tail, as real data has."""
MANY = lengths(sum(HISTOGRAM), 290, 150, 30 * 64, percentile_95=800, percentile_99=1200, histogram=HISTOGRAM)


def test_many_rows_are_packed_on_a_gpu_so_that_batches_are_full() -> None:
    made = plan(BOXES["80 GiB GPU"], LLAMA_8B, MANY)
    choice = made.choices["training.packing"]
    assert choice.value is True
    training = made.settings.training
    held, full = packed_rows(MANY, training.sequence_length)
    assert full > 0.99
    assert f"batches of equal size, {100 * (1 - full):.1f} % short of full" == choice.reason
    assert "packed sequences" in made.choices["training.gradient_accumulation_steps"].reason
    rows = MANY.rows - round(0.05 * MANY.rows)
    a_step = training.batch_size * training.gradient_accumulation_steps
    assert made.work.steps == pytest.approx(rows / held / a_step, rel=0.01)


def test_few_rows_are_not_packed_for_without_padding_nothing_is_saved() -> None:
    few = lengths(1500, 300, 160, 2040, percentile_95=900)
    choice = plan(BOXES["80 GiB GPU"], LLAMA_8B, few).choices["training.packing"]
    saved = random_padding(few, 2048, 8)
    assert choice.value is False
    assert choice.reason == f"rows lie end to end, so nothing is padded (it would be {100 * saved:.0f} %)"


def test_rows_that_are_padded_are_put_together_by_length() -> None:
    spec = replace(LLAMA_8B, architecture="NewForCausalLM", model_type="new")
    few = lengths(1500, 300, 160, 2040, percentile_95=900)
    choice = plan(BOXES["80 GiB GPU"], spec, few).choices["training.packing"]
    assert choice.value is False
    assert "1,350 rows, like lengths together" in choice.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "GPTNeoXForCausalLM", "model_type": "gpt_neox"}, "not for this model"),
        ({"architecture": "Gemma2ForCausalLM", "model_type": "gemma2"}, "not for this model"),
    ],
)
def test_a_family_that_would_gain_nothing_or_mix_rows_is_not_packed(
    changes: dict[str, str], words: str
) -> None:
    choice = plan(BOXES["80 GiB GPU"], replace(LLAMA_8B, **changes), MANY).choices["training.packing"]
    assert choice.value is False
    assert words in choice.reason


def test_rows_so_short_that_a_sequence_would_hold_a_whole_step_are_not_packed() -> None:
    data = lengths(50_000, 40, 20, 4000, percentile_95=90, percentile_99=200)
    choice = plan(BOXES["80 GiB GPU"], LLAMA_8B, data).choices["training.packing"]
    assert choice.value is False
    assert "too many for a step" in choice.reason


def test_sequences_are_long_enough_to_be_filled() -> None:
    data = lengths(50_000, 290, 150, 380, percentile_95=350, percentile_99=370)
    assert packed_rows(data, 384)[1] < 0.95
    training = plan(BOXES["80 GiB GPU"], LLAMA_8B, data).settings.training
    assert training.packing and packed_rows(data, training.sequence_length)[1] >= rules.FULL


def test_the_person_decides_about_packing() -> None:
    for packing in (True, False):
        made = plan(BOXES["80 GiB GPU"], LLAMA_8B, MANY, {"training.packing": packing})
        assert made.settings.training.packing is packing
        assert "training.packing" not in made.choices
        what = "packed sequences" if packing else "rows"
        assert f" {what} a step" in made.choices["training.gradient_accumulation_steps"].reason


def test_memory_of_packed_rows_is_that_of_full_sequences() -> None:
    short = lengths(50_000, 100, 50, 200)
    packed, rows = (
        plan(
            BOXES["80 GiB GPU"],
            LLAMA_1B,
            short,
            {"training.packing": packing, "training.batch_size": 2, "training.sequence_length": 2048},
        )
        for packing in (True, False)
    )
    assert packed.memory.needed > rows.memory.needed


def test_an_estimate_is_told_as_one() -> None:
    choice = plan(data=replace(SHORT, exact=False)).choices["training.sequence_length"]
    assert "about 75 tokens" in choice.reason
