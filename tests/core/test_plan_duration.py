"""Time and disk: counted as the worker counts, and growing with the work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ollama_tune.core.machine.values import Machine, OllamaStatus
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.paths import cache_dir
from ollama_tune.core.plan.answers import answer_rows
from ollama_tune.core.plan.duration import estimate, learn_speed, steps_of, token_flops, train_rows
from ollama_tune.core.plan.gguf_types import export_bytes
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.train.batches import StepPlan
from tests.cases import CHAT, LLAMA_8B, SHORT, TINY, lengths, machine

H200 = machine(gpu=139, name="NVIDIA H200", compute_capability=(9, 0))


def settings(**values: Any) -> Settings:
    return Settings().with_values({name.replace("__", "."): value for name, value in values.items()})


@pytest.mark.parametrize("rows", [1, 7, 360, 361])
@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("batch", "accumulation"), [(1, 8), (4, 1), (3, 5)])
def test_steps_are_those_the_worker_makes(rows: int, epochs: float, batch: int, accumulation: int) -> None:
    training = settings(
        training__epochs=epochs,
        training__batch_size=batch,
        training__gradient_accumulation_steps=accumulation,
    ).training
    assert steps_of(training, rows) == StepPlan([10] * rows, training).total_steps


def test_tokens_are_the_training_rows_times_epochs() -> None:
    work = estimate(settings(training__epochs=3.0, data__validation_split=0.1), TINY, SHORT, machine())
    assert train_rows(SHORT, 0.1) == 360
    assert work.tokens == 360 * 50 * 3


def test_arithmetic_of_an_8b_agrees_with_the_reference() -> None:
    """31.2 GFLOP a token at 2,048 tokens with 55 % supervised, 45.8 with full recomputation."""
    rows = lengths(1000, 2048, 1126, 2048)
    for checkpointing, expected in (("none", 31.2e9), ("layers", 45.8e9)):
        chosen = settings(training__sequence_length=2048, training__gradient_checkpointing=checkpointing)
        assert sum(token_flops(chosen, LLAMA_8B, rows)) == pytest.approx(expected, rel=0.06)


def test_an_8b_on_a_large_gpu_takes_a_plausible_time() -> None:
    """The limit is 25,300 tokens a second at the measured 790 TFLOP/s; good results reach half of it."""
    chosen = settings(
        training__device="cuda",
        training__compute_dtype="bfloat16",
        training__sequence_length=2048,
        training__batch_size=4,
        training__epochs=1.0,
        evaluation__rows=0,
    )
    rows = lengths(10_000, 2000, 1100, 2048)
    work = estimate(chosen, LLAMA_8B, rows, H200)
    assert 5_000 < work.tokens / work.seconds < 12_000
    assert "not measured" in work.ground


@pytest.mark.parametrize(
    ("path", "small", "large"),
    [
        ("training.epochs", 1.0, 3.0),
        ("training.rank", 8, 256),
        ("training.gradient_checkpointing", "none", "layers"),
        ("evaluation.rows", 0, 40),
        ("evaluation.max_new_tokens", 16, 512),
    ],
)
@pytest.mark.parametrize("model", [TINY, LLAMA_8B])
def test_more_work_takes_longer(path: str, small: Any, large: Any, model: ModelSpec) -> None:
    less, more = (
        estimate(settings(training__sequence_length=128).with_value(path, value), model, SHORT, machine())
        for value in (small, large)
    )
    assert less.seconds < more.seconds


def test_quantization_costs_time_and_more_of_it_with_small_batches() -> None:
    def seconds(quantization: str, batch: int) -> float:
        chosen = settings(
            training__device="cuda",
            training__compute_dtype="bfloat16",
            training__quantization=quantization,
            training__batch_size=batch,
            training__gradient_accumulation_steps=16 // batch,
            training__sequence_length=2048,
        )
        return estimate(chosen, LLAMA_8B, CHAT, H200).seconds

    assert seconds("nf4", 1) - seconds("none", 1) > 4 * (seconds("nf4", 8) - seconds("none", 8)) > 0


def test_more_cores_and_better_gpus_are_faster() -> None:
    seconds = [estimate(settings(), TINY, SHORT, machine(cores=n)).seconds for n in (1, 2, 8)]
    assert seconds == sorted(seconds, reverse=True)
    chosen = settings(training__device="cuda", training__compute_dtype="bfloat16")
    cards = ["Tesla T4", "NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090", "NVIDIA H200"]
    times = [estimate(chosen, LLAMA_8B, CHAT, machine(gpu=80, name=name)).seconds for name in cards]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("capability", [(12, 0), (9, 0), (8, 6), (7, 5), (6, 1), None])
def test_an_unknown_gpu_gets_a_low_figure_and_says_so(capability: tuple[int, int] | None) -> None:
    box = machine(gpu=24, name="NVIDIA Something New", compute_capability=capability)
    chosen = settings(training__device="cuda", training__compute_dtype="bfloat16")
    assert "low figure" in estimate(chosen, LLAMA_8B, CHAT, box).ground


def test_the_time_of_a_known_card_is_surer_than_that_of_an_unknown_one() -> None:
    chosen = settings(training__device="cuda", training__compute_dtype="bfloat16")
    known = estimate(chosen, LLAMA_8B, CHAT, machine(gpu=24))
    unknown = estimate(chosen, LLAMA_8B, CHAT, machine(gpu=24, name="NVIDIA Something New"))
    assert known.spread < unknown.spread
    assert "165.2 TFLOP/s" in known.ground


def test_a_slice_of_a_card_has_its_share_of_the_speed() -> None:
    chosen = settings(training__device="cuda", training__compute_dtype="bfloat16", training__batch_size=8)
    a100 = {"name": "NVIDIA A100-SXM4-80GB", "compute_capability": (8, 0)}
    whole = estimate(chosen, LLAMA_8B, CHAT, machine(gpu=80, **a100))
    part = estimate(chosen, LLAMA_8B, CHAT, machine(gpu=20, mig=True, **a100))
    assert 3 < part.seconds / whole.seconds < 4.1
    assert "25% of the chip" in part.ground


def test_energy_is_the_power_limit_times_the_time_and_unknown_without_one() -> None:
    chosen = settings(training__device="cuda", training__compute_dtype="bfloat16")
    work = estimate(chosen, LLAMA_8B, CHAT, machine(gpu=24, power_limit=450.0))
    assert work.energy_kwh == pytest.approx(0.45 * work.seconds / 3600, rel=0.1)
    assert estimate(chosen, LLAMA_8B, CHAT, machine(gpu=24)).energy_kwh is None
    on_cpu = settings(training__device="cpu")
    assert estimate(on_cpu, TINY, SHORT, machine(gpu=24, power_limit=450.0)).energy_kwh is None


# what earlier runs on this device reached


def reached(chosen: Settings, box: Machine) -> float:
    """Tokens a second in training, by a plan that measures and answers nothing."""
    plain = chosen.with_values({"evaluation.rows": 0, "data.validation_split": 0.0})
    work = estimate(plain, LLAMA_8B, CHAT, box)
    start = 12.0 + LLAMA_8B.weight_bytes / 1e9
    return work.tokens / (work.seconds - start)


def test_a_measured_speed_replaces_the_guess_for_that_device_and_format() -> None:
    chosen = settings(training__device="cuda", training__compute_dtype="bfloat16", training__batch_size=8)
    box, other = machine(gpu=24), machine(gpu=24, name="NVIDIA GeForce RTX 3090")
    guessed, elsewhere = reached(chosen, box), reached(chosen, other)
    learn_speed(chosen, LLAMA_8B, CHAT, box, 2 * guessed)
    assert reached(chosen, box) == pytest.approx(2 * guessed, rel=0.02)
    assert reached(chosen, other) == elsewhere
    assert estimate(chosen, LLAMA_8B, CHAT, box).spread < 2
    assert "last run" in estimate(chosen, LLAMA_8B, CHAT, box).ground
    learn_speed(chosen, LLAMA_8B, CHAT, box, 0.5 * guessed)
    assert reached(chosen, box) == pytest.approx(0.5 * guessed, rel=0.02), "the newest counts"
    small = estimate(chosen, replace(LLAMA_8B, parameters=10**9), CHAT, box)
    assert "not measured" in small.ground, "a small model says little about a large one"
    nf4 = chosen.with_value("training.quantization", "nf4")
    assert "not measured" in estimate(nf4, LLAMA_8B, CHAT, box).ground


@pytest.mark.parametrize("tokens_per_second", [0.0, -1.0, 1e12, 1e-6, float("nan"), float("inf")])
def test_nonsense_is_not_learned(tokens_per_second: float) -> None:
    chosen, box = settings(), machine()
    before = estimate(chosen, TINY, SHORT, box)
    learn_speed(chosen, TINY, SHORT, box, tokens_per_second)
    assert estimate(chosen, TINY, SHORT, box) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"2 x A CPU, float32 none fast, 1e6": "fast"}',
        '{"2 x A CPU, float32 none fast, 1e6": -3}',
    ],
)
def test_a_damaged_file_of_speeds_is_no_obstacle(text: str) -> None:
    before = estimate(settings(), TINY, SHORT, machine())
    (cache_dir() / "speed.json").write_text(text)
    assert estimate(settings(), TINY, SHORT, machine()) == before
    learn_speed(settings(), TINY, SHORT, machine(), 1000.0)
    assert estimate(settings(), TINY, SHORT, machine()) != before


def test_the_ground_of_a_cpu_estimate_is_stated() -> None:
    ground = estimate(settings(), TINY, SHORT, machine(cores=2)).ground
    assert "GFLOP/s a core" in ground
    assert "2 cores" in ground


def test_an_export_counts_the_file_and_what_is_written_besides() -> None:
    chosen = settings(export__name="x", export__type="q8_0")
    alone = estimate(chosen, LLAMA_8B, CHAT, machine())
    assert alone.export_bytes == export_bytes(LLAMA_8B, "q8_0")
    assert alone.ollama_bytes == 0, "no Ollama answers"
    merged = estimate(chosen.with_value("export.also", ["merged"]), LLAMA_8B, CHAT, machine())
    assert merged.export_bytes - alone.export_bytes == 2 * LLAMA_8B.parameters


@pytest.mark.parametrize(
    ("version", "local", "push", "copies"),
    [
        ("0.24.0", True, True, 1),
        ("0.30.0-rc1", True, True, 2),
        ("0.34.0", True, True, 2),
        ("0.34.1", True, True, 1),
        ("0.0.0", True, True, 1),
        ("0.34.0", False, True, 0),
        ("0.34.0", True, False, 0),
    ],
)
def test_a_local_ollama_writes_the_file_once_or_twice(
    version: str, local: bool, push: bool, copies: int
) -> None:
    box = replace(machine(), ollama=OllamaStatus("http://x:11434", version, "", local))
    chosen = settings(export__name="x", export__type="q4_k_m", export__push=push)
    work = estimate(chosen, LLAMA_8B, CHAT, box)
    assert work.ollama_bytes == copies * export_bytes(LLAMA_8B, "q4_k_m")


def test_without_a_name_nothing_is_exported() -> None:
    assert estimate(settings(), TINY, SHORT, machine()).export_bytes == 0


def test_data_of_no_rows_or_no_trained_token_is_no_crash() -> None:
    empty = replace(SHORT, rows=0, tokens=0, trained_tokens=0, longest=0)
    assert estimate(settings(), TINY, empty, machine()).seconds > 0


@pytest.mark.parametrize(("path", "groups"), [("fast", 1), ("general", 4)])
def test_answers_are_counted_in_groups_as_large_as_the_path_makes_them(path: str, groups: int) -> None:
    """On a large GPU a token takes as long as the weights take to be read, for any number of rows."""
    chosen = settings(training__device="cuda", training__compute_dtype="bfloat16", training__path=path)
    model = replace(LLAMA_8B, layers=4)

    def answers(rows: int) -> float:
        asked = chosen.with_values({"evaluation.rows": rows})
        return estimate(asked, model, CHAT, H200).seconds

    assert answer_rows(model, chosen.training) == 64 // groups
    one = answers(16) - answers(0)
    assert one > 0 and answers(64) - answers(0) == pytest.approx(groups * one)
