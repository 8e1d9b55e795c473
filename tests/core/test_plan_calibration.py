"""What a probe measured on a GPU corrects later plans for that GPU, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.plan.calibration import gpu_ratio, method_of, ratio_key, store_ratio
from ollama_tune.core.plan.memory import predict, predict_parts
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from tests.cases import LLAMA_1B, QWEN3_4B, lengths, machine

BOX = machine(gpu=24)
SETTINGS = Settings().with_values(
    {"training.device": "cuda", "training.compute_dtype": "bfloat16", "training.sequence_length": 2048}
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))


def measured(ratio: float, training: TrainingSettings = SETTINGS.training, family: str = "llama") -> None:
    """As the probe of a run on that box stores it."""
    gpu = BOX.gpu.gpus[0]
    plain = sum(part.bytes for part in predict_parts(training, LLAMA_1B, 2048))
    key = ratio_key(gpu.name, BOX.gpu.driver or "", family, method_of(training))
    store_ratio(key, plain, round(ratio * plain))


def needed(box: Any = BOX, model: Any = LLAMA_1B, settings: Settings = SETTINGS) -> int:
    return predict(settings, model, box, 2048).needed


@pytest.mark.parametrize("ratio", [1.08, 0.93])
def test_a_measured_ratio_corrects_the_plan_and_is_named(ratio: float) -> None:
    plain = needed()
    measured(ratio)
    found = predict(SETTINGS, LLAMA_1B, BOX, 2048)
    assert found.needed == pytest.approx(ratio * plain, rel=0.001)
    assert found.method == f"measured x {ratio:.2f}, formula"
    before = {part.name: part.bytes for part in predict_parts(SETTINGS.training, LLAMA_1B, 2048)}
    after = {part.name: part.bytes for part in found.parts}
    assert {name for name in before if before[name] != after[name]} <= {"other", "workspaces", "context"}
    assert make_plan(BOX, LLAMA_1B, lengths(), {}).memory.method.startswith("measured x")


def test_tensors_that_are_counted_are_never_measured_away() -> None:
    measured(0.81)
    found = predict(SETTINGS, LLAMA_1B, BOX, 2048)
    plain = {part.name: part.bytes for part in predict_parts(SETTINGS.training, LLAMA_1B, 2048)}
    kept = sum(size for name, size in plain.items() if name not in ("other", "workspaces", "context"))
    assert found.needed >= kept
    assert all(part.bytes >= 0 for part in found.parts)


def test_the_probe_divides_by_the_plain_formula_so_ratios_do_not_compound() -> None:
    measured(1.05)
    first = needed()
    measured(1.05)
    assert needed() == first


def test_a_ratio_is_for_that_card_driver_model_and_method_alone() -> None:
    plain, other = needed(), needed(model=QWEN3_4B)
    measured(1.08)
    assert needed() > plain
    gpu = replace(BOX.gpu.gpus[0], name="NVIDIA A100")
    assert needed(replace(BOX, gpu=replace(BOX.gpu, gpus=(gpu,)))) == plain
    assert needed(replace(BOX, gpu=replace(BOX.gpu, driver="999.1"))) == plain
    assert needed(model=QWEN3_4B) == other
    nf4 = SETTINGS.with_value("training.quantization", "nf4")
    assert gpu_ratio(BOX, "llama", nf4.training) is None
    assert gpu_ratio(BOX, "llama", TrainingSettings()) is None


def test_a_ratio_beyond_belief_is_not_used() -> None:
    plain = needed()
    measured(1.9)
    assert needed() == plain
