"""Which base model is recommended on which box."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from ollama_tune.core.machine.values import Disk, OllamaStatus
from ollama_tune.core.models.catalogue import CatalogueModel, catalogue, spec_of
from ollama_tune.core.models.weights import HEADERS
from ollama_tune.core.plan.bases import LONGEST, READING, SPARE, _slow, base_fits, fit_of, recommend_base
from ollama_tune.core.plan.gguf_types import type_offers
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.speed import CPU_BANDWIDTH
from tests.cases import CHAT, GIB, SHORT, lengths, machine

H100 = {"name": "NVIDIA H100", "compute_capability": (9, 0)}
BOXES: list[tuple[dict[str, Any], float, float]] = [
    ({"ram": 8, "cores": 2}, 0.1, 0.8),
    ({"ram": 32, "cores": 16}, 0.5, 4),
    ({"gpu": 8}, 1.5, 5),
    ({"gpu": 12}, 3, 9),
    ({"gpu": 24}, 8, 15),
    ({"gpu": 80, "disk": 400, **H100}, 30, 75),
]


@pytest.mark.parametrize(("box", "least", "most"), BOXES)
def test_the_choice_grows_with_the_box_and_says_why(box: dict[str, Any], least: float, most: float) -> None:
    here = machine(**box)
    choice = recommend_base(here)
    assert isinstance(choice.value, CatalogueModel)
    assert least * 1e9 < choice.value.parameters < most * 1e9
    assert choice.value.offered
    assert 20 < len(choice.reason) <= 80
    assert "trains in" in choice.reason


@pytest.mark.parametrize(("box", "least", "most"), BOXES)
def test_what_is_recommended_trains_and_runs_here(box: dict[str, Any], least: float, most: float) -> None:
    here = machine(**box)
    spec = spec_of(recommend_base(here).value)
    plan = make_plan(here, spec, CHAT, {})
    assert plan.memory.fits
    offers = type_offers(spec, here, 4096)
    assert offers[plan.settings.export.type].fits


def test_the_next_larger_is_named_with_its_obstacle() -> None:
    here = machine(gpu=24)
    chosen = recommend_base(here)
    larger = next(
        fit for fit in base_fits(here) if fit.model.offered and fit.model.parameters > chosen.value.parameters
    )
    assert larger.obstacle
    assert f"{larger.model.name}: {larger.obstacle}"[:30] in chosen.reason


def test_each_obstacle_is_told_with_its_figures() -> None:
    model = next(m for m in catalogue() if m.name == "Qwen3-8B")
    assert fit_of(model, machine(gpu=24)).obstacle == ""
    tight = fit_of(model, machine(gpu=8))
    assert tight.obstacle.endswith("GiB free")
    assert "to train" in tight.obstacle
    assert tight.training_bytes > (1 - SPARE) * tight.free_bytes
    slow = fit_of(model, machine(ram=64, cores=2))
    assert "h " in slow.obstacle
    assert slow.seconds > LONGEST
    full = fit_of(model, machine(gpu=24, disk=10))
    assert "of disk, 10.0 GiB free" in full.obstacle


def test_what_only_takes_long_is_told_last_and_kept_apart_from_what_cannot_be() -> None:
    model = next(m for m in catalogue() if m.name == "Qwen3-8B")
    slow = fit_of(model, machine(ram=64, cores=2))
    assert slow.slow and "to train" in slow.obstacle
    full = fit_of(model, machine(ram=64, cores=2, disk=10))
    assert not full.slow and "of disk" in full.obstacle


def test_few_rows_on_a_cpu_do_not_ask_for_a_model_whose_answers_are_slow() -> None:
    here, few = machine(ram=64, cores=16, disk=400), lengths(36, 24, 7, 28)
    chosen = fit_of(recommend_base(here, few).value, here, few)
    assert CPU_BANDWIDTH / type_offers(spec_of(chosen.model), here, 4096)[chosen.gguf_type].bytes >= READING
    larger = [fit for fit in base_fits(here, few) if fit.model.parameters > chosen.model.parameters]
    assert any(fit.slow and fit.obstacle.startswith("answers slowly, ") for fit in larger)
    assert "tokens/s" in recommend_base(here, few).reason


def test_a_download_counts_as_time_until_it_is_here() -> None:
    here, few = machine(gpu=80, disk=400, **H100), lengths(36, 24, 7, 28)
    large = fit_of(recommend_base(here, few).value, here, few)
    assert large.seconds < LONGEST / 10 and large.obstacle == ""
    assert _slow(large, LONGEST, math.inf).endswith("with its download")


def test_each_file_system_is_counted_by_itself() -> None:
    model = next(m for m in catalogue() if m.name == "Qwen3-8B")
    here = machine(gpu=24, disk=12)
    assert "of disk" in fit_of(model, here).obstacle
    apart = replace(here, models_disk=Disk("/models", 40 * GIB, 500 * GIB, device=7))
    assert fit_of(model, apart).obstacle == ""
    same = replace(apart, disk=replace(apart.disk, device=7, free=20 * GIB))
    same = replace(same, models_disk=replace(same.disk, path="/models"))
    assert "of disk, 20.0 GiB free" in fit_of(model, same).obstacle


def test_a_model_that_trains_but_cannot_run_here_is_not_recommended() -> None:
    here = machine(ram=64, gpu=24)
    busy = replace(here, gpu=replace(here.gpu, gpus=(replace(here.gpu.gpus[0], free=9 * GIB),)))
    fits = {fit.model.name: fit for fit in base_fits(busy)}
    running = [fit for fit in fits.values() if "to run" in fit.obstacle]
    assert all(fit.serving_bytes > 9 * GIB for fit in running)
    assert fits[recommend_base(busy).value.name].serving_bytes <= 9 * GIB


def test_short_rows_allow_a_larger_model_than_long_ones() -> None:
    here = machine(ram=8, cores=4)
    assert recommend_base(here, SHORT).value.parameters > recommend_base(here, CHAT).value.parameters


def test_the_memory_of_another_host_is_no_obstacle() -> None:
    here = replace(machine(gpu=24), ollama=OllamaStatus("http://far:11434", "0.34.4", "", local=False))
    assert recommend_base(here).value.parameters > 8e9


def test_a_box_too_small_for_any_gets_the_smallest_with_what_it_lacks() -> None:
    choice = recommend_base(machine(ram=1.2, cores=1))
    assert choice.value == min(catalogue(), key=lambda model: model.parameters)
    assert choice.reason.startswith("the smallest; ")
    assert "to train" in choice.reason


def test_a_model_that_is_here_needs_no_room_for_its_download() -> None:
    model = catalogue()[0]

    def room() -> float:
        """The GiB of disk that do."""
        sizes = (tenths / 10 for tenths in range(500))
        return next(size for size in sizes if "of disk" not in fit_of(model, machine(disk=size)).obstacle)

    before = room()
    folder = spec_of(model).folder / "snapshots" / ("f" * 40)
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", HEADERS):
        (folder / name).write_text(json.dumps({}))
    assert before - room() == pytest.approx(spec_of(model).weight_bytes / GIB, abs=0.11)
