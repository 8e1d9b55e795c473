"""What the page Review says of data with pairs, and of the ways to train."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.plan.settings import Settings
from ollama_tune.tui.review_words import _data, trained_words

ROWS = Lengths(240, 9000, 3000, 37, 60, 61, 61)
PAIRS = replace(ROWS, rows=124)


@pytest.mark.parametrize(
    ("objective", "pairs", "words"),
    [
        ("sft", PAIRS, "240 rows; 24 of them are held out"),
        ("dpo", PAIRS, "124 pairs of 240 rows; the others are left out; 12 of them are held out"),
        ("dpo", ROWS, "240 pairs; 24 of them are held out"),
    ],
)
def test_preferences_count_the_pairs_and_say_that_other_rows_are_left_out(
    objective: str, pairs: Lengths, words: str
) -> None:
    settings = Settings().with_values({"training.objective": objective, "data.validation_split": 0.1})
    assert words in _data(settings, replace(ROWS, pairs=pairs))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "LoRA, rank 16, alpha 32, learning rate 0.0002; base weights in full precision"),
        ({"method": "prompt"}, "a soft prompt, learning rate 0.0002; base weights in full precision"),
        ({"dora": True, "freeze_layers": 2}, "rank 16, alpha 32, DoRA, first 2 layers as they are, learning"),
        ({"rslora": True, "neftune": 5.0}, "rsLoRA, embedding noise 5, learning rate"),
        ({"quantization": "nf4", "path": "general"}, "base weights in 4 bit"),
    ],
)
def test_what_is_trained_is_named_with_all_that_differs_from_plain_lora(
    values: dict[str, object], words: str
) -> None:
    settings = Settings().with_values({f"training.{name}": value for name, value in values.items()})
    assert words in trained_words(settings.training)
