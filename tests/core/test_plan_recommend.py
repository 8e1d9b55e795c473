"""Recommendations: the rules, the search for what fits, and what the person set."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.errors import UsageError
from ollama_tune.core.machine.values import GpuReport, Machine, OllamaStatus
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.padding import packed_rows, random_padding
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.settings import field_paths
from ollama_tune.core.plan.values import Plan
from tests.cases import CHAT, GIB, LLAMA_1B, LLAMA_8B, LLAMA_70B, QWEN3_4B, SHORT, TINY, lengths, machine

CPU = machine()
GPU = machine(gpu=24)
BOXES = {
    "cpu": CPU,
    "little ram": machine(ram=2),
    "8 GiB GPU": machine(gpu=8, name="NVIDIA GeForce RTX 4060"),
    "24 GiB GPU": GPU,
    "80 GiB GPU": machine(gpu=80, name="NVIDIA H100 80GB HBM3", compute_capability=(9, 0)),
    "old GPU": machine(gpu=16, name="Tesla T4", compute_capability=(7, 5)),
}
MODELS = {"tiny": TINY, "1B": LLAMA_1B, "4B": QWEN3_4B, "8B": LLAMA_8B, "70B": LLAMA_70B}
DATA = {"short": SHORT, "chat": CHAT, "few": lengths(12), "many": lengths(100_000, 400, 200, 4000, 900)}


FITTED = (
    "compute_dtype",
    "quantization",
    "sequence_length",
    "batch_size",
    "gradient_accumulation_steps",
    "optimizer",
    "rank",
)
"""What is chosen together, besides the recomputation."""
SMALLEST = {"training.batch_size": 1, "training.gradient_checkpointing": "layers"}


def plan(
    box: Machine = CPU, model: ModelSpec = TINY, data: Lengths = SHORT, changed: dict[str, Any] | None = None
) -> Plan:
    return make_plan(box, model, data, changed or {})


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


# devices and memory


def test_an_8b_on_24_gib_keeps_whole_weights_and_computes_half_of_each_layer_twice() -> None:
    made = plan(GPU, LLAMA_8B, CHAT)
    training = made.settings.training
    assert (training.device, training.compute_dtype, training.quantization) == ("cuda", "bfloat16", "none")
    assert training.gradient_checkpointing == "mlp"
    assert made.memory.needed <= 0.9 * made.memory.free
    assert any("half of each layer computed twice" in warning for warning in made.warnings)
    assert "% more time" in made.choices["training.gradient_checkpointing"].reason


def test_the_least_recomputation_that_fits_is_chosen() -> None:
    modes = ("none", "mlp", "layers", "offload")
    found = []
    for gpu in (80, 48, 24, 16, 12, 10, 8):
        made = plan(machine(gpu=gpu), LLAMA_8B, CHAT)
        training = made.settings.training
        found.append((training.quantization, modes.index(training.gradient_checkpointing)))
        for less in modes[: found[-1][1]]:
            mine = {name: getattr(training, name) for name in FITTED} | {"gradient_checkpointing": less}
            other = plan(machine(gpu=gpu), LLAMA_8B, CHAT, {f"training.{n}": v for n, v in mine.items()})
            assert other.memory.needed > 0.9 * other.memory.free
    for weights in ("none", "nf4"):
        steps = [mode for quantization, mode in found if quantization == weights]
        assert steps == sorted(steps) and len(set(steps)) > 1


def test_an_optimizer_in_8_bit_only_where_its_averages_are_much_memory() -> None:
    small, large = (plan(machine(gpu=gpu), LLAMA_8B, CHAT, {"training.rank": 256}) for gpu in (20, 80))
    assert small.settings.training.optimizer == "adamw_8bit" and small.memory.fits
    assert "5.0 GiB" in small.choices["training.optimizer"].reason
    assert large.settings.training.optimizer == "adamw"
    assert plan(machine(gpu=12), LLAMA_8B, CHAT).settings.training.optimizer == "adamw"
    assert plan(machine(ram=4), LLAMA_1B, CHAT).settings.training.optimizer == "adamw"


@pytest.mark.parametrize(("unit", "dtype"), [("AMX", "bfloat16"), ("AVX-512", "bfloat16"), ("", "float32")])
def test_a_cpu_with_units_for_bfloat16_computes_in_it(unit: str, dtype: str) -> None:
    box = machine()
    made = plan(replace(box, host=replace(box.host, bfloat16=unit)))
    choice = made.choices["training.compute_dtype"]
    assert choice.value == dtype
    assert unit in choice.reason


def test_the_path_is_left_to_the_run_and_told() -> None:
    assert plan().settings.training.path == "auto"
    assert plan().choices["training.path"].reason.startswith("fast: ")
    odd = replace(TINY, architecture="GPT2LMHeadModel", model_type="gpt2")
    reason = plan(box=machine(), model=odd).choices["training.path"].reason
    assert reason.startswith("general") and "GPT2LMHeadModel" in reason
    dora = plan(machine(), TINY, SHORT, {"training.dora": True})
    assert "DoRA" in dora.choices["training.path"].reason


def test_an_8b_on_12_gib_is_quantized() -> None:
    made = plan(machine(gpu=12), LLAMA_8B, CHAT)
    assert made.settings.training.quantization == "nf4"
    assert made.memory.fits
    assert "15.0 GiB" in made.choices["training.quantization"].reason


def test_much_memory_is_used_for_speed() -> None:
    training = plan(BOXES["80 GiB GPU"], LLAMA_1B, CHAT).settings.training
    assert training.gradient_checkpointing == "none"
    assert (training.packing, training.batch_size, training.sequence_length) == (True, 4, 2048)
    rows = plan(BOXES["80 GiB GPU"], LLAMA_1B, CHAT, {"training.packing": False}).settings.training
    assert (rows.batch_size, rows.gradient_checkpointing) == (16, "none")


@pytest.mark.parametrize("gpu", [24, 80])
def test_experts_stay_whole_since_4_bit_does_not_reach_them(gpu: float) -> None:
    experts = replace(LLAMA_8B, architecture="Qwen3MoeForCausalLM", model_type="qwen3_moe")
    choice = plan(machine(gpu=gpu), experts, CHAT).choices["training.quantization"]
    assert choice.value == "none"
    assert "experts" in choice.reason
    assert plan(CPU, replace(experts, parameters=10**11), CHAT).settings.training.quantization == "none"


def test_what_fits_without_spare_is_taken_before_rows_are_given_up() -> None:
    needed = plan(machine(gpu=80), LLAMA_8B, CHAT, {"training.quantization": "nf4", **SMALLEST}).memory.needed
    tight = plan(machine(gpu=24, free=int(needed * 1.03) + 24 * GIB // 50), LLAMA_8B, CHAT)
    assert tight.memory.fits and tight.memory.needed > 0.9 * tight.memory.free
    assert tight.settings.training.sequence_length == 2048


def test_an_old_gpu_computes_in_float16() -> None:
    choice = plan(BOXES["old GPU"], LLAMA_1B).choices["training.compute_dtype"]
    assert choice.value == "float16"
    assert "7.5" in choice.reason


def test_little_ram_is_met_in_the_order_of_the_reference() -> None:
    kinds = []
    for ram in (64, 4.9, 3.2, 2.6):
        training = plan(machine(ram=ram), LLAMA_1B, SHORT).settings.training
        kinds.append((training.compute_dtype, training.quantization))
    assert kinds[0] == ("float32", "none")
    assert kinds[1:] == sorted(kinds[1:], key=[("bfloat16", "none"), ("bfloat16", "nf4")].index)
    assert kinds[-1] == ("bfloat16", "nf4")


def test_before_the_rank_the_rows_get_shorter() -> None:
    data = lengths(5000, 300, 160, 60_000, percentile_95=900, percentile_99=1500)
    made = plan(machine(gpu=10), LLAMA_8B, data)
    assert made.settings.training.sequence_length == 1536
    assert made.settings.training.rank == 16
    assert any("1,536 tokens" in warning for warning in made.warnings)
    assert made.memory.fits


def test_what_cannot_fit_is_said_plainly_with_both_figures() -> None:
    made = plan(machine(gpu=8), LLAMA_70B, CHAT)
    assert not made.memory.fits
    assert made.settings.training.rank == 8
    (warning,) = [w for w in made.warnings if "are free; see what is offered" in w]
    assert warning.count("GiB") == 2


def test_a_pytorch_without_cuda_trains_on_the_cpu() -> None:
    report = replace(GPU.gpu, usable=False)
    choice = plan(replace(GPU, gpu=report)).choices["training.device"]
    assert choice.value == "cpu"
    assert "PyTorch here has no CUDA" in choice.reason


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


# packing


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
