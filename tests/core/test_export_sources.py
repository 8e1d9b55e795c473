"""What an export works from: the training's answers and importance, 4-bit weights, a base on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ollama_tune.core.export import verify
from ollama_tune.core.export.about import digest_of
from ollama_tune.core.export.pipeline import run_export
from ollama_tune.core.export.values import ExportStopped
from ollama_tune.core.paths import models_dir
from ollama_tune.core.runs.folder import RunFolder
from tests.core.export_asked import ask, check, export, names
from tests.core.export_parts import load
from tests.core.export_trained import Trained, make_run, write_reference
from tests.core.hub import COMMIT, online


@pytest.fixture
def folder(trained: Trained) -> RunFolder:
    return make_run(trained)


def test_lost_data_does_not_hinder_the_proof(folder: RunFolder) -> None:
    folder.settings().with_value("data.path", str(folder.path / "gone.jsonl")).save(folder.settings_path)
    (folder.path / "reference.json").unlink()
    found, events = export(folder)
    assert found.verdict in ("pass", "warn")
    assert "asking_tuned" in names(events, "phase")
    assert found.about["reference"] == "computed by the export"
    assert " of 6 answers" in check(found, "probabilities").text


def test_answers_of_another_adapter_are_not_compared_with(folder: RunFolder, trained: Trained) -> None:
    digest = digest_of(trained.adapter / "adapter_model.safetensors")
    write_reference(folder, trained.reference, adapter_sha256=digest)
    assert export(folder)[0].about["reference"] == "stored by the training"
    write_reference(folder, trained.reference, adapter_sha256="0" * 64)
    assert export(folder)[0].about["reference"] == "computed by the export"


def test_a_model_too_large_to_be_asked_is_proved_by_its_file_alone(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "reference.json").unlink()
    monkeypatch.setattr(verify, "_size", lambda base: 1 << 60)
    found, _ = export(folder)
    assert found.verdict == "warn"
    assert "of memory" in check(found, "tuned model").text
    assert check(found, "probabilities").figure == "not compared"
    assert check(found, "adapter").verdict == check(found, "tensors").verdict == "pass"


@pytest.fixture(scope="module")
def four_bit(trained: Trained) -> Any:
    """Answers of the adapter on 4-bit weights, as a QLoRA training stores them."""
    from ollama_tune.core.evaluate.general_engine import GeneralEngine
    from ollama_tune.core.evaluate.generate import Generator
    from ollama_tune.core.plan.settings import TrainingSettings
    from ollama_tune.core.train.model import load_adapter, load_base

    base = load_base(trained.base, TrainingSettings(quantization="nf4"))
    generator = Generator(GeneralEngine(load_adapter(base, trained.adapter)), trained.chat)
    return tuple(verify._filled(generator, answer, lambda: False) for answer in trained.reference)


def test_four_bit_training_is_parted_from_what_the_file_costs(
    folder: RunFolder, four_bit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.settings().with_value("training.quantization", "nf4").save(folder.settings_path)
    write_reference(folder, four_bit)
    found, events = export(folder)
    line = check(found, "4-bit base")
    assert line.data["kl"] > 100 * check(found, "probabilities").data["kl"]
    assert check(found, "probabilities").data["slack"] == 0.0
    assert "asking_tuned" in names(events, "phase")
    monkeypatch.setattr(verify, "SMALL", 0)
    found, _ = export(folder)
    assert (check(found, "4-bit base").verdict, check(found, "probabilities").data["slack"]) == (
        "skipped",
        0.05,
    )


def test_the_importance_of_the_training_is_used_where_it_helps(folder: RunFolder, trained: Trained) -> None:
    chance = np.random.default_rng(0)
    widths = {
        key.removesuffix(".weight"): weight.shape[1]
        for key, weight in load(trained.base).state_dict().items()
        if weight.dim() == 2
    }
    columns = {name: np.exp(2 * chance.standard_normal(width)) for name, width in widths.items()}
    save_file({name: row.astype(np.float32) for name, row in columns.items()}, folder.importance_path)
    for kind, used in (("q4_k_m", True), ("q8_0", False)):
        ask(folder, type=kind)
        found, _ = export(folder)
        assert found.about["importance"] is used
        assert check(found, "tensors").verdict == check(found, "adapter").verdict == "pass"
    ask(folder, type="q4_k_m", importance=False)
    assert export(folder)[0].about["importance"] is False


@pytest.fixture
def hub_folder(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run on a model of the hub whose files are not on this machine any more."""
    with online(trained.base, monkeypatch):
        yield make_run(trained, **{"model.source": "org/tiny"})


def test_a_base_model_that_is_gone_is_downloaded_again(hub_folder: RunFolder) -> None:
    found, events = export(hub_folder)
    assert names(events, "phase")[:3] == ["preparing", "downloading", "probing"]
    assert found.verdict == "pass"
    assert found.about["base"]["revision"] == COMMIT
    assert "downloading" in names(events, "progress")
    _, events = export(hub_folder)
    assert "downloading" not in names(events, "phase")


def test_a_stop_while_the_base_is_downloaded_is_obeyed(hub_folder: RunFolder) -> None:
    phases: list[str] = []

    def emit(kind: str, **data: Any) -> None:
        phases.extend([data["name"]] if kind == "phase" else [])

    with pytest.raises(ExportStopped):
        run_export(hub_folder, emit, lambda: "downloading" in phases)
    assert not any(models_dir().rglob("model.safetensors"))
