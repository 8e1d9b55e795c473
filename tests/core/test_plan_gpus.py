"""Plans for boxes with several GPUs: which train, what each holds, what that takes, and what is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ollama_tune.core.machine.values import Gpu, Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.gpus import (
    gpu_words,
    of_one,
    rows_a_step,
    suitable,
    taken,
    together_words,
    world_of,
)
from ollama_tune.core.plan.memory import predict, settled
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.plan.shape import Shape
from ollama_tune.core.plan.sharding import FLAT_BUFFER, LINKS, held_weights, layer_weights
from ollama_tune.core.plan.speed import LINK_BYTES, NVLINK_BYTES, TOGETHER, expected_rate
from ollama_tune.core.plan.values import MemoryEstimate, Plan
from ollama_tune.tui.plain.machine import describe
from ollama_tune.tui.plain.settings import memory_line
from ollama_tune.tui.printing import plan_json, plan_lines
from ollama_tune.tui.review_words import what
from ollama_tune.tui.widgets.membar import verdict
from tests.cases import CHAT, GIB, LLAMA_1B, LLAMA_8B, LLAMA_70B, SHORT, TINY, lengths, machine, spec

LLAMA_13B = spec(5120, 13824, 40, 40, 40, 128, 32_000, False)


def box(*gib: float, **fields: Any) -> Machine:
    """A box with GPUs of these sizes, nearly all of it free."""
    one = machine(gpu=gib[0], disk=2000, **fields)
    first = one.gpu.gpus[0]
    gpus = (
        replace(first, index=n, uuid=f"GPU-{n}", total=int(size * GIB), free=int((size - 0.5) * GIB))
        for n, size in enumerate(gib)
    )
    return replace(one, gpu=replace(one.gpu, gpus=tuple(gpus)))


def training(**values: Any) -> TrainingSettings:
    given = {"device": "cuda", "compute_dtype": "bfloat16"} | values
    return Settings().with_values({f"training.{name}": value for name, value in given.items()}).training


def memory(on: Machine, model: ModelSpec, longest: int = 512, **values: Any) -> MemoryEstimate:
    return predict(Settings(training=training(**values)), model, on, longest)


def parts(estimate: MemoryEstimate) -> dict[str, int]:
    return {part.name: part.bytes for part in estimate.parts}


def chosen(plan: Plan) -> tuple[Any, ...]:
    used = plan.settings.training
    return used.gpus, used.sharding, used.quantization


# Which GPUs train


@pytest.mark.parametrize(
    ("sizes", "count"),
    [((24,), 1), ((24, 24), 2), ((24, 24, 20), 3), ((24, 6), 1), ((24, 24, 8, 24), 2), ((8, 24), 2)],
)
def test_gpus_that_would_hold_back_the_first_do_not_train_with_it(
    sizes: tuple[float, ...], count: int
) -> None:
    assert suitable(box(*sizes).gpu.gpus) == count


def test_an_older_generation_is_left_out_as_it_computes_in_another_number_format() -> None:
    new, same = box(24, 24).gpu.gpus
    assert suitable((new, replace(same, compute_capability=(8, 0)))) == 2
    assert suitable((new, replace(same, compute_capability=(7, 5)))) == 1


def test_of_instances_that_mig_cut_from_a_card_one_trains() -> None:
    cut = tuple(replace(gpu, mig=True) for gpu in box(40, 40).gpu.gpus)
    assert suitable(cut) == 1 and len(taken(training(), cut)) == 1
    on = replace(box(40, 40), gpu=replace(box(40, 40).gpu, gpus=cut))
    assert world_of(training(gpus=2), on) == 1 and "MIG" in together_words(on)


def test_the_settings_say_how_many_train_and_the_cpu_takes_none() -> None:
    four = box(24, 24, 24, 24)
    assert [gpu.index for gpu in taken(training(gpus=2), four.gpu.gpus)] == [0, 1]
    assert world_of(training(), four) == 4
    assert world_of(training(gpus=9), four) == 4
    assert (world_of(training(device="cpu"), four), world_of(training(device="cpu", gpus=2), four)) == (1, 2)
    assert taken(training(device="cpu", gpus=2), four.gpu.gpus) == ()


@pytest.mark.parametrize(
    ("batch", "accumulation", "world", "mine"),
    [(4, 4, 1, (4, 4)), (4, 4, 4, (4, 1)), (16, 1, 4, (4, 1)), (2, 8, 3, (2, 3)), (1, 4, 8, (1, 1))],
)
def test_one_process_computes_its_share_of_a_step(
    batch: int, accumulation: int, world: int, mine: tuple[int, int]
) -> None:
    whole = training(batch_size=batch, gradient_accumulation_steps=accumulation)
    part = of_one(whole, world)
    assert (part.batch_size, part.gradient_accumulation_steps) == mine
    assert world * rows_a_step(part) >= rows_a_step(whole)


def test_words_name_the_gpus() -> None:
    pair = box(24, 24)
    assert gpu_words(pair.gpu.gpus) == "2 x RTX 4090"
    mixed: tuple[Gpu, ...] = (pair.gpu.gpus[0], replace(pair.gpu.gpus[1], name="Tesla T4"))
    assert gpu_words(mixed) == "RTX 4090 + Tesla T4"
    assert together_words(pair) == "All 2 train together, unless the settings say otherwise."
    assert "the next has far less" in together_words(box(24, 6))
    assert together_words(box(24)) == together_words(machine()) == ""


# What each holds


def test_beside_others_a_gpu_holds_its_rows_a_buffer_and_the_links() -> None:
    rows = {"batch_size": 4, "gradient_accumulation_steps": 8, "sharding": "ddp"}
    alone, four = memory(box(24), LLAMA_1B, **rows), memory(box(24, 24, 24, 24), LLAMA_1B, **rows)
    more = {name: count - parts(alone)[name] for name, count in parts(four).items()}
    assert (more["weights"], more["optimizer"], more["context"]) == (0, 0, 0)
    assert more["gradients"] == FLAT_BUFFER and more["workspaces"] == LINKS
    assert more["activations"] == 0, "four rows at once, as alone"
    assert (four.processes, four.sharded, alone.processes) == (4, False, 1)
    assert four.together == "on 4 GPUs, the rows of a step split between them"


def test_a_step_with_few_rows_needs_less_on_each_of_several_gpus() -> None:
    rows = {"batch_size": 8, "gradient_accumulation_steps": 1}
    alone, four = (parts(memory(one, LLAMA_1B, **rows)) for one in (box(24), box(24, 24, 24, 24)))
    assert four["activations"] < 0.3 * alone["activations"]


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_shared_out_model_leaves_a_part_of_the_layers_and_all_of_the_rest(world: int) -> None:
    shape, used = Shape.of(LLAMA_8B), training(sharding="fsdp")
    whole = 2 * layer_weights(shape)
    assert whole == 2 * (LLAMA_8B.parameters - 2 * 128_256 * 4096)
    held = held_weights(shape, used, world)
    assert held == round(whole / world + 3.5 * whole / 32)
    found = parts(memory(box(*[24] * world), LLAMA_8B, sharding="fsdp"))
    assert found["weights"] == 2 * LLAMA_8B.parameters - whole + held


def test_a_shared_out_model_in_4_bit_leaves_a_part_of_its_numbers_and_scales() -> None:
    shape, used = Shape.of(LLAMA_70B), training(sharding="fsdp", quantization="nf4")
    linear = shape.linear_parameters()
    whole = linear * (0.5 + 1 / 64 + 4 / 16384) + 2 * (layer_weights(shape) - linear)
    assert held_weights(shape, used, 4) == round(whole / 4 + 3.5 * whole / 80)
    tight = {"quantization": "nf4", "gradient_checkpointing": "layers", "batch_size": 1}
    small, large = box(24, 24, 24, 24), box(40, 40)
    fits = [
        memory(on, LLAMA_70B, sharding=how, **tight).fits for on in (small, large) for how in ("fsdp", "ddp")
    ]
    assert fits == [True, False, True, False]
    made = make_plan(large, LLAMA_70B, CHAT, {})
    assert chosen(made)[1:] == ("fsdp", "nf4") and made.memory.sharded


MEASURED = {2: (71_320_576, 32_518_656), 3: (53_177_708, 32_561_692), 4: (44_048_896, 46_154_240)}
"""Bytes by processes, of a Llama in float32 on the CPU (gloo): frozen weights of a rank between steps, and by
how much the peak of a step was above that of a process alone."""


@pytest.mark.parametrize("world", MEASURED)
def test_a_shared_out_model_is_predicted_as_it_was_measured(world: int) -> None:
    model = spec(512, 1536, 8, 8, 8, 64, 4096, False)
    shape, used = Shape.of(model), training(sharding="fsdp", compute_dtype="float32")
    rest = 4 * (model.parameters - layer_weights(shape))
    between, more = MEASURED[world]
    assert rest + 4 * layer_weights(shape) / world == pytest.approx(between, rel=1e-3)
    assert 1 <= (rest + held_weights(shape, used, world)) / (between + more) < 1.2


def test_more_gpus_never_need_more_of_each_when_the_model_is_shared_out() -> None:
    needed = [memory(box(*[24] * world), LLAMA_13B, sharding="fsdp").needed for world in (2, 3, 4, 8)]
    assert needed == sorted(needed, reverse=True)


def test_processes_on_the_cpu_share_its_memory() -> None:
    one, two = (memory(machine(), TINY, 75, device="cpu", gpus=count) for count in (1, 2))
    assert two.needed > 1.9 * one.needed and two.free == one.free
    assert "2 processes" in two.together


def test_the_smallest_gpu_decides_what_is_free() -> None:
    assert memory(box(24, 20, 24), TINY).free == memory(box(20), TINY).free
    assert memory(box(24, 20, 24), TINY, gpus=1).free == memory(box(24), TINY).free


# What auto means


@pytest.mark.parametrize(
    ("on", "model", "values", "meant"),
    [
        (box(24, 24), LLAMA_1B, {}, "ddp"),
        (box(24, 24, 24, 24), LLAMA_13B, {"gradient_checkpointing": "layers"}, "fsdp"),
        (box(24), LLAMA_13B, {}, "ddp"),
        (box(24, 24, 24, 24), LLAMA_13B, {"quantization": "nf4"}, "ddp"),
        (box(24, 24, 24, 24), LLAMA_13B, {"path": "fast"}, "ddp"),
        (box(24, 24, 24, 24), LLAMA_13B, {"dora": True}, "ddp"),
        (box(24, 24), LLAMA_70B, {}, "ddp"),
        (box(24, 24), LLAMA_1B, {"sharding": "fsdp"}, "fsdp"),
        (machine(), LLAMA_13B, {"device": "cpu", "gpus": 2}, "ddp"),
    ],
)
def test_the_whole_model_where_it_fits_else_a_part_where_that_does(
    on: Machine, model: ModelSpec, values: dict[str, Any], meant: str
) -> None:
    assert settled(training(**values), model, on, 512) == meant


@pytest.mark.parametrize(
    "wrong", [{"method": "adalora"}, {"dora": True}, {"path": "fast"}, {"method": "full"}]
)
def test_what_cannot_be_shared_out_is_refused_with_a_way_out(wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="sharding ddp"):
        training(sharding="fsdp", **wrong)


# The plan


def test_every_gpu_trains_by_default_and_the_effective_batch_stays() -> None:
    one, four = (make_plan(on, LLAMA_1B, CHAT, {}) for on in (box(24), box(24, 24, 24, 24)))
    assert chosen(four)[:2] == (0, "auto")
    assert four.memory.processes == 4 and not four.memory.sharded
    assert rows_a_step(four.settings.training) == rows_a_step(one.settings.training)
    assert four.work.steps == one.work.steps
    assert 2 < one.work.seconds / four.work.seconds < 4
    assert "4 x RTX 4090" in four.choices["training.gpus"].reason
    assert "each of 4 GPUs" in four.choices["training.sharding"].reason
    assert "4 GPUs together" in four.choices["training.batch_size"].reason
    assert f"{TOGETHER:.0%} of 4 times" in four.work.ground


def test_a_model_too_large_for_one_gpu_is_shared_out_before_it_is_rounded() -> None:
    one, four = (make_plan(on, LLAMA_13B, CHAT, {}) for on in (box(24), box(24, 24, 24, 24)))
    assert chosen(one) == (0, "auto", "nf4")
    assert chosen(four) == (0, "fsdp", "none")
    assert four.memory.fits and four.memory.sharded
    reason = four.choices["training.sharding"].reason
    assert "the whole model" in reason and "a part of it" in reason
    assert "does not share out" in four.choices["training.path"].reason
    assert four.memory.together.endswith("and the model too")


def test_a_model_that_fits_in_no_way_says_so_for_several_gpus_too() -> None:
    made = make_plan(box(16, 16), LLAMA_70B, CHAT, {})
    assert not made.memory.fits and made.memory.processes == 2
    assert any("are free" in warning for warning in made.warnings)


def test_what_the_person_says_of_gpus_stays() -> None:
    mine = {"training.gpus": 1, "training.quantization": "none", "training.sharding": "ddp"}
    made = make_plan(box(24, 24), LLAMA_8B, CHAT, mine)
    assert made.memory.processes == 1
    assert not mine.keys() & made.choices.keys()
    four_bit = make_plan(box(24, 24, 24, 24), LLAMA_13B, CHAT, {"training.quantization": "nf4"})
    assert chosen(four_bit) == (0, "auto", "nf4")


def test_packing_goes_where_it_would_leave_gpus_without_rows() -> None:
    one, eight = (make_plan(on, LLAMA_1B, CHAT, {}) for on in (box(80), box(*[80] * 8)))
    assert one.settings.training.packing and not eight.settings.training.packing
    assert "for 8 GPUs" in eight.choices["training.packing"].reason
    assert rows_a_step(eight.settings.training) >= 8


def test_no_more_gpus_than_a_step_has_rows() -> None:
    made = make_plan(box(*[24] * 8), LLAMA_1B, lengths(120), {})
    assert made.memory.processes == rows_a_step(made.settings.training) < 8
    assert "rows" in made.choices["training.gpus"].reason


@pytest.mark.parametrize(
    ("sizes", "values", "words"),
    [
        ((24, 24, 20), {}, "GPU 2 has 19.5 GiB free, which decides what fits on all 3."),
        ((24, 24), {"training.gpus": 4}, "training.gpus is 4 and there are 2 GPUs here"),
        ((6, 24), {"training.gpus": 1}, "CUDA_VISIBLE_DEVICES=1,0"),
        (
            (24, 24, 24, 24),
            {"training.gpus": 0, "training.batch_size": 1, "training.gradient_accumulation_steps": 2},
            "A step has 2 rows for 4 GPUs, so 2 of them wait",
        ),
    ],
)
def test_gpus_that_differ_or_wait_are_told(sizes: Any, values: dict[str, Any], words: str) -> None:
    made = make_plan(box(*sizes), TINY, SHORT, values)
    assert any(words in warning for warning in made.warnings), made.warnings


def test_equal_gpus_are_no_reason_for_a_warning() -> None:
    assert make_plan(box(24, 24), LLAMA_1B, CHAT, {}).warnings == ()


# The time


def test_rows_that_do_not_divide_leave_gpus_waiting_for_the_fullest() -> None:
    rate = expected_rate(training(), box(*[24] * 6))
    assert rate.together(12) == pytest.approx(6 * TOGETHER)
    assert rate.together(16) == pytest.approx(16 / 3 * TOGETHER)
    assert rate.together(1) == 1.0
    assert expected_rate(training(gpus=1), box(24, 24)).together(16) == 1.0


def test_the_slowest_gpu_sets_the_pace() -> None:
    pair = box(24, 24)
    slow = replace(pair.gpu.gpus[1], name="RTX 3090")
    mixed = replace(pair, gpu=replace(pair.gpu, gpus=(pair.gpu.gpus[0], slow)))
    assert expected_rate(training(), mixed).flops == expected_rate(training(), box(24, name="RTX 3090")).flops


def test_weights_that_travel_through_pcie_take_longer_than_the_arithmetic() -> None:
    rates = [
        expected_rate(training(), box(80, 80, name=name)).link for name in ("A100 80GB", "H100 PCIe", "L4")
    ]
    assert rates == [NVLINK_BYTES, LINK_BYTES, LINK_BYTES]
    mine = {"training.batch_size": 1, "training.quantization": "none"}
    shared, whole = (
        make_plan(box(80, 80), LLAMA_8B, CHAT, mine | {"training.sharding": kind}).work.seconds
        for kind in ("fsdp", "ddp")
    )
    assert shared > 1.2 * whole


def test_energy_is_that_of_all_gpus() -> None:
    used = [make_plan(box(*[24] * n, power_limit=450.0), LLAMA_1B, CHAT, {}).work for n in (1, 2)]
    one, two = (work.energy_kwh or 0 for work in used)
    assert 0.9 < two / one < 2.5


# What people read


def test_lines_say_that_the_figures_are_those_of_each_gpu() -> None:
    made = make_plan(box(24, 24), LLAMA_1B, CHAT, {})
    text = "\n".join(plan_lines(made))
    assert "trained on 2 GPUs, the rows of a step split between them" in text
    assert "memory on cuda, each of 2: " in text
    assert (
        "on each of 2 GPUs" in memory_line(made.memory) and "on each of 2 GPUs" in verdict(made.memory).plain
    )
    assert ("", made.memory.together) in what(made, None, None)
    told = plan_json(made)["memory"]
    assert (told["processes"], told["sharded"]) == (2, False)


def test_lines_about_one_gpu_say_nothing_of_others() -> None:
    made = make_plan(box(24), LLAMA_1B, CHAT, {})
    text = "\n".join([*plan_lines(made), memory_line(made.memory), verdict(made.memory).plain])
    assert "each of" not in text and made.memory.together == ""


def test_the_machine_shows_every_gpu_and_says_that_all_train() -> None:
    lines = describe(box(24, 20), [])
    assert sum("RTX 4090" in line for line in lines) == 2
    assert together_words(box(24, 20)) in lines
