"""Recommendations: the rules, and what the person set."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.errors import UsageError
from ollama_tune.core.machine.values import GpuReport, OllamaStatus
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.padding import packed_rows
from ollama_tune.core.plan.settings import field_paths
from tests.cases import CHAT, LLAMA_1B, LLAMA_8B, LLAMA_70B, QWEN3_4B, SHORT, TINY, lengths
from tests.core.plan_parts import BOXES, CPU, GPU, plan

MODELS = {"tiny": TINY, "1B": LLAMA_1B, "4B": QWEN3_4B, "8B": LLAMA_8B, "70B": LLAMA_70B}
DATA = {"short": SHORT, "chat": CHAT, "few": lengths(12), "many": lengths(100_000, 400, 200, 4000, 900)}


# properties of every plan


@pytest.mark.parametrize(("box", "model", "data"), list(itertools.product(BOXES, MODELS, DATA)))
def test_every_plan_is_whole_and_says_why(box: str, model: str, data: str) -> None:
    made = plan(BOXES[box], MODELS[model], DATA[data])
    assert set(made.choices) == set(field_paths())
    for path, choice in made.choices.items():
        assert choice.value == made.settings.get(path)
        assert 3 <= len(choice.reason) <= 80
        assert "…" not in choice.reason
        assert choice.source
    training = made.settings.training
    rows = round(DATA[data].rows * (1 - made.settings.data.validation_split))
    a_step = training.batch_size * training.gradient_accumulation_steps
    if training.packing:
        held = packed_rows(DATA[data], training.sequence_length)[0]
        wanted = rules.effective_batch(rows, rules.usual_epochs(rows))
        assert a_step == 1 or wanted / 2 < a_step * held < 2 * wanted
        assert held <= rules.MOST_ROWS
    else:
        assert a_step == rules.effective_batch(rows, rules.usual_epochs(rows))
    assert training.sequence_length <= MODELS[model].context_length
    assert made.memory.fits or any("are free; " in warning for warning in made.warnings)


# the bundled case


def test_the_bundled_model_gets_large_steps_small_batches_and_no_loss_of_precision() -> None:
    made = plan(changed={"data.path": "bundled"})
    training = made.settings.training
    assert (training.device, training.compute_dtype, training.quantization) == ("cpu", "float32", "none")
    assert training.learning_rate == pytest.approx(2.5e-3, rel=0.02)
    assert (training.batch_size, training.gradient_accumulation_steps) == (8, 1)
    assert (training.rank, training.alpha, training.gradient_checkpointing) == (16, 32, "none")
    assert made.settings.data.validation_split == 0.1
    assert made.settings.evaluation.rows == 40
    assert made.settings.export.type == "f16"
    assert made.settings.export.name == "tickets-3m-tickets"
    assert made.work.steps >= 100
    assert made.warnings == ()


# the rules


@pytest.mark.parametrize(
    ("model", "rate", "source"),
    [
        (TINY, 2.5e-3, rules.TINKER),
        (LLAMA_1B, 2e-4, rules.QLORA),
        (LLAMA_8B, 2e-4, rules.QLORA),
        (LLAMA_70B, 1e-4, rules.QLORA),
        (replace(LLAMA_8B, parameters=20_000_000_000), 1.5e-4, rules.QLORA),
        (replace(TINY, model_type="qwen3", hidden_size=896), 5.3e-4, rules.TINKER),
        (replace(TINY, hidden_size=8), 1e-2, rules.TINKER),
    ],
)
def test_the_learning_rate_follows_formula_and_anchor(model: ModelSpec, rate: float, source: str) -> None:
    choice = plan(GPU, model).choices["training.learning_rate"]
    assert choice.value == pytest.approx(rate, rel=0.02)
    assert choice.source == source


def test_a_run_of_few_steps_gets_larger_ones_where_no_usual_rate_is_known() -> None:
    short = plan(GPU, TINY, lengths(4))
    assert short.work.steps < 100
    assert short.settings.training.learning_rate == pytest.approx(3.7e-3, rel=0.02)
    assert f"{short.work.steps} steps" in short.choices["training.learning_rate"].reason
    assert plan(GPU, LLAMA_8B, lengths(4)).settings.training.learning_rate == 2e-4


def test_a_wide_adapter_gets_a_lower_rate() -> None:
    assert plan(GPU, LLAMA_8B, changed={"training.rank": 128}).settings.training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("trained", "rank"), [(1_500_000, 16), (41_900_000, 16), (60_000_000, 32), (10**9, 128)]
)
def test_the_rank_holds_the_trained_tokens(trained: int, rank: int) -> None:
    data = replace(CHAT, trained_tokens=trained)
    made = plan(BOXES["80 GiB GPU"], LLAMA_8B, data)
    assert (made.settings.training.rank, made.settings.training.alpha) == (rank, 32)


@pytest.mark.parametrize(
    ("rows", "epochs", "batch"),
    [(1, 3, 4), (266, 3, 4), (267, 3, 8), (450, 3, 8), (450, 0.5, 4), (534, 3, 16), (10**6, 1, 16)],
)
def test_the_effective_batch_leaves_a_hundred_steps(rows: int, epochs: float, batch: int) -> None:
    assert rules.effective_batch(rows, epochs) == batch


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(360, 3.0), (999, 3.0), (1000, 2.0), (20_000, 2.0), (20_001, 1.0), (50, 8.0), (4, 20.0)],
)
def test_few_rows_are_seen_more_often(rows: int, epochs: float) -> None:
    assert rules.epochs(rows, 4).value == epochs


@pytest.mark.parametrize(
    ("rows", "share"), [(3, 0.0), (20, 0.2), (100, 0.2), (150, 0.13), (200, 0.1), (3999, 0.1), (4000, 0.05)]
)
def test_enough_rows_are_held_out(rows: int, share: float) -> None:
    assert rules.validation_split(rows).value == share


def test_the_sequence_length_takes_the_longest_row() -> None:
    choice = plan(data=lengths(longest=200)).choices["training.sequence_length"]
    assert choice.value == 256
    assert "200" in choice.reason


def test_rows_beyond_the_models_context_are_counted() -> None:
    data = lengths(400, 300, 100, 900, percentile_95=500, percentile_99=600)
    made = plan(model=replace(TINY, context_length=512), data=data)
    assert made.settings.training.sequence_length == 512
    assert "at most 20 of 400 rows" in made.choices["training.sequence_length"].reason
    assert any("left out: at most 20 of 400 rows" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (900, ""),
        (600, "at most 4 of"),
        (500, "at most 20 of"),
        (300, "at most 200 of"),
        (200, "more than half"),
    ],
)
def test_rows_left_out_are_told_as_exactly_as_known(length: int, words: str) -> None:
    data = lengths(400, 300, 100, 900, percentile_95=500, percentile_99=600)
    left_out = rules.rows_left_out(data, length)
    assert words in left_out
    assert bool(left_out) == bool(words)


def test_rows_left_out_are_counted_exactly_where_a_histogram_was_made() -> None:
    data = lengths(100, 300, 100, 200, histogram=(90, 7, 2, 1))
    assert [rules.rows_longer(data, n) for n in (64, 128, 192, 200, 100)] == [
        (10, True),
        (3, True),
        (1, True),
        (0, True),
        (10, False),
    ]
    assert rules.rows_left_out(data, 128) == "3 of 100 rows"


def test_answers_get_room_for_the_longest_of_the_data() -> None:
    assert plan(data=lengths(longest_answer=20)).settings.evaluation.max_new_tokens == 32
    assert plan(data=lengths(longest_answer=100)).settings.evaluation.max_new_tokens == 128
    unknown = plan(data=lengths()).choices["evaluation.max_new_tokens"]
    assert (unknown.value, "half" in unknown.reason) == (64, True)


def test_about_eight_measurements_are_made() -> None:
    made = plan()
    assert made.work.steps // made.settings.training.evaluation_interval == 8


# what the person set


CHANGES: list[dict[str, Any]] = [
    {"training.batch_size": 2},
    {"training.batch_size": 3},
    {"training.gradient_accumulation_steps": 2},
    {"training.batch_size": 5, "training.gradient_accumulation_steps": 7},
    {"training.rank": 64, "training.alpha": 7},
    {"training.sequence_length": 4096},
    {"training.gradient_checkpointing": "layers"},
    {"training.compute_dtype": "bfloat16", "training.quantization": "nf4"},
    {"training.device": "cpu"},
    {"training.epochs": 0.5, "data.validation_split": 0.3},
    {"training.targets": ["q_proj", "v_proj"]},
    {"export.name": None, "export.type": "bf16", "export.push": False},
    {"model.source": "other/model", "model.revision": "main", "data.path": "/x.jsonl"},
    {"training.learning_rate": 1.0, "evaluation.rows": 3, "training.evaluation_interval": 0},
]


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("box", ["cpu", "8 GiB GPU"])
def test_what_the_person_set_is_never_touched(changed: dict[str, Any], box: str) -> None:
    made = plan(BOXES[box], LLAMA_1B, CHAT, changed)
    assert {path: made.settings.get(path) for path in changed} == changed
    assert set(made.choices) == set(field_paths()) - set(changed)
    assert made.changed == frozenset(changed)


def test_the_rest_is_solved_around_a_changed_batch() -> None:
    for batch, accumulation in ((1, 8), (2, 4), (4, 2), (8, 1), (16, 1)):
        made = plan(changed={"training.batch_size": batch})
        assert made.settings.training.gradient_accumulation_steps == accumulation
    made = plan(changed={"training.gradient_accumulation_steps": 2})
    assert made.settings.training.batch_size == 4


def test_more_epochs_mean_rarer_measurements() -> None:
    few, many = (plan(changed={"training.epochs": n}).settings.training for n in (1.0, 10.0))
    assert many.evaluation_interval > 2 * few.evaluation_interval


def test_text_of_a_form_is_taken() -> None:
    assert plan(changed={"training.rank": "64"}).settings.training.rank == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"training.rank": "many"},
        {"training.nothing": 1},
        {"training.device": "cpu", "training.compute_dtype": "float16"},
    ],
)
def test_a_value_that_is_not_allowed_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan(GPU, changed=changed)


def test_float16_alone_is_allowed_where_the_machine_has_a_gpu() -> None:
    assert plan(GPU, changed={"training.compute_dtype": "float16"}).settings.training.device == "cuda"


def test_a_gpu_asked_for_where_none_is_says_so() -> None:
    made = plan(changed={"training.device": "cuda"})
    assert any("set training.device to cpu" in warning for warning in made.warnings)
    assert not made.memory.fits


# warnings and results


def test_a_model_that_cannot_be_exported_gets_no_name_and_a_warning() -> None:
    made = plan(model=replace(TINY, export_reason="The architecture X is not known."))
    assert made.settings.export.name is None
    assert "architecture X" in made.choices["export.name"].reason
    assert any("architecture X" in warning for warning in made.warnings)


def test_a_hostile_export_reason_fits_its_line() -> None:
    made = plan(model=replace(TINY, export_reason="evil\x1b[2J\n" * 50))
    assert len(made.choices["export.name"].reason) <= 80
    assert all("\x1b" not in text for text in (*made.warnings, made.choices["export.name"].reason))


def test_whether_ollama_answers_is_the_reason_to_push() -> None:
    assert "as soon as" in plan().choices["export.push"].reason
    box = replace(CPU, ollama=OllamaStatus("http://127.0.0.1:11434", "0.34.4", "", local=True))
    assert plan(box).choices["export.push"].reason == "Ollama 0.34.4 answers"


def test_no_gpu_report_at_all_is_the_cpu() -> None:
    assert plan(replace(CPU, gpu=GpuReport((), None, ""))).settings.training.device == "cpu"


def test_data_without_a_row_is_no_crash() -> None:
    made = plan(data=Lengths(0, 0, 0, 0, 0, 0, 0))
    assert made.settings.evaluation.rows == 0
    assert any("0 rows are very few" in warning for warning in made.warnings)
