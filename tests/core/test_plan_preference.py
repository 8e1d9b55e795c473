"""What a plan recommends for pairs of answers, and what it says where there are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.confirm import _largest
from ollama_tune.core.plan.import_config import import_config
from ollama_tune.core.plan.memory import predict_parts, predicted
from ollama_tune.core.plan.predict import by_formula
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.request import parse_request
from ollama_tune.core.plan.settings import Settings, field_paths
from ollama_tune.core.plan.shape import config_of
from ollama_tune.core.plan.values import Plan
from tests.cases import LLAMA_8B, TINY, lengths, machine

BOX, GPU = machine(), machine(gpu=24)
SIDES = lengths(4000, 60, 20, 150)
PAIRED = lengths(2000, 60, 20, 90, pairs=replace(lengths(2000, 120, 40, 240), sides=SIDES))
"""2,000 pairs, whose worse answers are the longer ones."""


def plan(data: Lengths, box: Any = BOX, model: Any = TINY, **training: Any) -> Plan:
    return make_plan(box, model, data, {f"training.{name}": value for name, value in training.items()})


def test_pairs_are_learned_as_preferences_with_smaller_steps_and_one_round() -> None:
    made, answers = plan(PAIRED), plan(PAIRED, objective="sft")
    training, usual = made.settings.training, answers.settings.training
    assert (training.objective, training.beta, training.epochs) == ("dpo", 0.1, 1.0)
    assert training.learning_rate == pytest.approx(usual.learning_rate / 10, rel=0.1)
    assert "2,000 of 2,000 rows" in made.choices["training.objective"].reason
    assert "a tenth of" in made.choices["training.learning_rate"].reason
    assert set(made.choices) == set(field_paths())
    assert all(3 <= len(choice.reason) <= 80 for choice in made.choices.values())
    assert usual.epochs == 2.0 and "training.objective" in answers.changed
    assert training.sequence_length == 192 and usual.sequence_length == 128
    assert made.work.steps == answers.work.steps / 2


def test_few_pairs_among_answers_do_not_decide() -> None:
    few = replace(PAIRED, rows=5000)
    made = plan(few)
    assert made.settings.training.objective == "sft"
    assert "2,000 of 5,000" in made.choices["training.objective"].reason
    assert plan(few, objective="dpo").work.steps == plan(PAIRED).work.steps


def test_preferences_without_pairs_are_refused_in_a_sentence() -> None:
    assert plan(SIDES).settings.training.objective == "sft"
    with pytest.raises(UsageError, match="learns from rows with a better and a worse answer") as refused:
        plan(SIDES, objective="dpo")
    assert "training.objective to sft" in refused.value.fix


@pytest.mark.parametrize("other", [{"method": "full"}, {"method": "prompt"}, {"packing": True}])
def test_what_leaves_no_reference_is_refused(other: dict[str, Any]) -> None:
    values = {f"training.{name}": value for name, value in other.items()}
    with pytest.raises(UsageError, match="objective dpo"):
        Settings().with_values({"training.objective": "dpo", **values})


def test_a_pair_takes_the_memory_and_time_of_two_rows_and_a_pass_for_the_reference() -> None:
    pairs = {"objective": "dpo", "batch_size": 4, "device": "cuda", "compute_dtype": "bfloat16"}
    one = Settings().with_values({f"training.{name}": value for name, value in pairs.items()})
    two = one.with_values({"training.objective": "sft", "training.batch_size": 8})
    assert predict_parts(one.training, LLAMA_8B, 150) == predict_parts(two.training, LLAMA_8B, 150)
    longest, tokens = _largest(PAIRED, one.training)
    assert longest == 150 and 4 * 200 < tokens <= 4 * 240 < _largest(SIDES, two.training)[1]
    whole = predicted(two, LLAMA_8B, GPU, SIDES).needed
    assert 0.95 * whole < predicted(one, LLAMA_8B, GPU, PAIRED).needed < whole
    seconds = {
        objective: plan(PAIRED, GPU, LLAMA_8B, objective=objective, epochs=1.0).work.seconds
        for objective in ("sft", "dpo")
    }
    assert 2 < seconds["dpo"] / seconds["sft"] < 5


def test_a_prediction_of_preferences_counts_pairs() -> None:
    asked = {"rank": 16, "sequence_length": 256, "path": "fast"}
    pairs = parse_request(asked | {"objective": "dpo", "batch_size": 2})
    rows = parse_request(asked | {"batch_size": 4})
    assert pairs.rows == 4 and pairs.row_lengths == rows.row_lengths == (256,) * 4
    config = config_of(LLAMA_8B)
    assert by_formula(config, pairs).parts == by_formula(config, rows).parts


CONFIGS = {
    "llamafactory": "model_name_or_path: a/b\ntemplate: x\nstage: dpo\npref_beta: 0.2\npref_loss: sigmoid\n",
    "axolotl": "base_model: a/b\nsequence_len: 128\nrl: dpo\nrl_beta: 0.2\nadapter: lora\n",
    "trl": "model_name_or_path: a/b\nmax_length: 128\nuse_peft: true\nbeta: 0.2\nloss_type: sigmoid\n",
}


@pytest.mark.parametrize("tool", CONFIGS)
def test_configs_of_peers_for_preferences_mean_the_same_here(tool: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIGS[tool])
    found = import_config(path)
    assert found.format == tool
    assert {"objective": "dpo", "beta": 0.2}.items() <= found.tree["training"].items()
    assert not [
        field for field in found.fields if field.outcome == "missing" and "data.path" not in field.name
    ]
    assert tool != "trl" or found.tree["training"]["learning_rate"] == 1e-6


def test_preferences_over_all_weights_become_an_adapter_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIGS["llamafactory"] + "finetuning_type: full\npacking: true\n")
    found = import_config(path)
    assert (found.tree["training"]["method"], found.tree["training"]["packing"]) == ("lora", False)
    told = {field.name: field for field in found.fields if field.outcome == "approximated"}
    assert "ten times" in told["finetuning_type"].why and "packed" in told["packing"].why


def test_other_losses_of_preferences_are_said_to_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIGS["llamafactory"].replace("sigmoid", "orpo") + "pref_ftx: 0.5\n")
    missing = {field.name for field in import_config(path).fields if field.outcome == "missing"}
    assert {"pref_loss", "pref_ftx"} <= missing


def test_columns_of_pairs_in_a_table_of_data_sets_are_taken(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    columns = {"prompt": "instruction", "chosen": "good", "rejected": "bad"}
    about = {"rows": {"file_name": "rows.json", "ranking": True, "columns": columns}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(about))
    path = tmp_path / "config.yaml"
    path.write_text(CONFIGS["llamafactory"] + "dataset: rows\n")
    found = import_config(path)
    assert found.tree["data"]["columns"] == {"chosen": "good", "rejected": "bad"}
    assert not [field for field in found.fields if field.outcome == "missing"]
