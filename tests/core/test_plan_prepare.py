"""From a model and a data file to a plan, also for cards, models and tokenizers that are not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.tokens.lengths import estimate_lengths
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.catalogue import find_listed
from ollama_tune.core.plan.cards import gpu_of
from ollama_tune.core.plan.prepare import Prepared, prepare, prepare_for
from tests.cases import GIB, LLAMA_8B

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}


@pytest.fixture
def lone_config(tmp_path: Path) -> Path:
    """A folder with nothing but the config.json of an 8B."""
    folder = tmp_path / "llama-8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def for_card(model: str, card: str = "RTX 4090", **changed: Any) -> Prepared:
    values = {f"training.{name}": value for name, value in changed.items()}
    return prepare_for(model, "bundled", values, gpu_of(card))


def test_a_lone_config_is_enough_for_a_plan_and_says_what_was_estimated(lone_config: Path) -> None:
    made = for_card(str(lone_config))
    assert made.spec.parameters == LLAMA_8B.parameters
    assert made.spec.weight_bytes == 2 * LLAMA_8B.parameters
    assert made.plan.settings.training.device == "cuda"
    assert made.plan.memory.fits
    told = " ".join(made.plan.warnings)
    for words in ("weights are not here", "estimated from the rows' bytes", "Planned for RTX 4090"):
        assert words in told


def test_a_card_decides_what_fits(lone_config: Path) -> None:
    held = {card: for_card(str(lone_config), card).plan for card in ("8GiB", "RTX 4090", "A100 80GB")}
    assert [plan.settings.training.quantization for plan in held.values()] == ["nf4", "none", "none"]
    assert held["A100 80GB"].memory.total == 80 * GIB
    seconds = [plan.work.seconds for plan in held.values()]
    assert seconds == sorted(seconds, reverse=True)
    assert held["RTX 4090"].work.energy_kwh is not None


def test_the_box_of_another_card_is_not_this_one(lone_config: Path) -> None:
    made = for_card(str(lone_config), "8GiB", rank=512, batch_size=64)
    assert not made.plan.memory.fits
    assert made.plan.offers
    assert not any("training.device" in offer.changes for offer in made.plan.offers)
    assert not any("disk of" in warning for warning in made.plan.warnings)


def test_a_listed_model_needs_neither_hub_nor_files() -> None:
    made = for_card("Qwen/Qwen3-8B")
    listed = find_listed("Qwen/Qwen3-8B")
    assert listed is not None
    assert made.spec.parameters == listed.parameters
    assert made.plan.work.download_bytes == 2 * listed.parameters
    assert any("from the shipped list" in warning for warning in made.plan.warnings)


def test_a_model_that_is_neither_here_nor_listed_is_refused() -> None:
    with pytest.raises(TuneError, match="nobody/nothing"):
        for_card("nobody/nothing")


def test_weights_in_a_format_that_is_refused_are_refused_here_too(lone_config: Path) -> None:
    (lone_config / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TuneError):
        for_card(str(lone_config))


def test_a_config_that_cannot_be_trained_is_refused(lone_config: Path) -> None:
    (lone_config / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["BertModel"]}))
    with pytest.raises(TuneError, match="BertModel"):
        for_card(str(lone_config))


def test_an_architecture_without_export_is_planned_and_told(lone_config: Path) -> None:
    other = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"}
    (lone_config / "config.json").write_text(json.dumps(CONFIG | other))
    made = for_card(str(lone_config))
    assert made.plan.settings.export.name is None
    assert any("cannot be exported" in warning for warning in made.plan.warnings)


def test_the_bundled_case_is_counted_and_not_estimated() -> None:
    plan = prepare("bundled", "bundled", {})
    assert plan.memory.fits
    assert not any("estimated" in warning for warning in plan.warnings)


def test_estimated_lengths_are_of_the_right_size() -> None:
    rows = load_dataset("bundled").rows
    found = estimate_lengths(rows)
    size = sum(len(message.content.encode()) for row in rows for message in row.messages)
    assert found.rows == len(rows) == sum(found.histogram)
    assert size / 4.5 < found.tokens < size / 2
    assert found.trained_tokens < found.tokens
    assert found.median <= found.percentile_95 <= found.percentile_99 <= found.longest
