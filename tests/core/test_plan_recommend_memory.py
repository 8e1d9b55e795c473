"""Recommendations: the device, number formats, and the search for what fits the memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cases import CHAT, GIB, LLAMA_1B, LLAMA_8B, LLAMA_70B, SHORT, TINY, lengths, machine
from tests.core.plan_parts import BOXES, CPU, GPU, plan

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


def test_what_fits_with_nothing_to_spare_is_said_to_leave_too_little() -> None:
    (told,) = [w for w in plan(machine(gpu=20), LLAMA_8B).warnings if "fastest settings" in w]
    assert "need 18.5 GiB, 19.1 GiB less 10% spare are free, so chosen" in told
    (told,) = [w for w in plan(machine(gpu=16), LLAMA_8B).warnings if "fastest settings" in w]
    assert "need 18.5 GiB, 15.2 GiB are free, so chosen" in told


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
