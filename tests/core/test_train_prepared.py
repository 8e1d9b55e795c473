"""What a warm worker loads before there is a run, and when a run takes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.plan.settings import Settings, parse
from ollama_tune.core.train import warm
from ollama_tune.core.train.path import make_path
from ollama_tune.core.train.prepared import LOOPS_OWN, Overtaken, Prepared
from ollama_tune.core.train.recipe import train
from ollama_tune.core.train.session import Session, StopWish
from tests.core.train_parts import make_run, write_rows


def never() -> bool:
    return False


def draft(model: Path, **training: Any) -> Settings:
    return parse({"model": {"source": str(model)}, "training": {"rank": 4} | training})


def test_a_run_takes_what_was_loaded_for_it_once(model_folder: Path) -> None:
    settings, prepared = draft(model_folder, learning_rate=1e-3), Prepared()
    prepared.load(settings, never)
    run = settings.with_values({"training.learning_rate": 1e-4, "training.batch_size": 3})
    path = prepared.take(model_folder, run.training, str(model_folder))
    assert path is not None and path.name == "fast"
    fresh = make_path(("fast", ""), model_folder, run.training, str(model_folder), lambda done, total: None)
    assert all(torch.equal(path.weights[name], weight) for name, weight in fresh.weights.items())
    assert all(weight.grad is None for weight in path.weights.values())
    assert prepared.take(model_folder, run.training, str(model_folder)) is None


@pytest.mark.parametrize(
    "changed",
    [{"rank": 8}, {"seed": 8}, {"targets": ["q_proj"]}, {"compute_dtype": "bfloat16"}, {"path": "general"}],
)
def test_other_settings_of_the_model_take_nothing(model_folder: Path, changed: dict[str, Any]) -> None:
    prepared = Prepared()
    prepared.load(draft(model_folder), never)
    other = draft(model_folder, **changed).training
    assert prepared.take(model_folder, other, str(model_folder)) is None


def test_a_model_whose_files_changed_is_not_taken(model_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    prepared, settings = Prepared(), draft(copy)
    prepared.load(settings, never)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"note": 1}))
    assert prepared.take(copy, settings.training, str(copy)) is None


@pytest.mark.parametrize("newer", [True, False])
def test_what_is_overtaken_or_no_longer_likely_is_let_go(model_folder: Path, newer: bool) -> None:
    settings, prepared = draft(model_folder), Prepared()
    prepared.load(settings, never)
    if newer:
        with pytest.raises(Overtaken):
            prepared.load(draft(model_folder, rank=8), lambda: True)
    else:
        prepared.load(None, never)
    assert prepared.take(model_folder, settings.training, str(model_folder)) is None


def test_a_run_on_what_was_prepared_is_the_run_of_a_cold_worker_bit_for_bit(
    model_folder: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    told = []
    for warmed in (False, True):
        folder = make_run(model_folder, data, training={"epochs": 1.0, "batch_size": 8})
        prepared = Prepared()
        if warmed:
            prepared.load(folder.settings().with_value("training.learning_rate", 1e-5), never)
        train(Session(folder, StopWish(folder), prepared), ["train"])
        events = folder.events()
        loaded = any(e.kind == "progress" and e["name"] == "loading_model" for e in events)
        assert loaded is not warmed
        steps = [(e["loss"], e["gradient_norm"]) for e in events if e.kind == "step"]
        told.append((steps, (folder.adapter / "adapter_model.safetensors").read_bytes()))
    assert told[0] == told[1] and told[0][0]


def test_the_loops_own_settings_are_settings() -> None:
    assert set(Settings().training.model_dump()) >= LOOPS_OWN


def test_a_warm_worker_prepares_the_newest_draft_and_survives_a_bad_one(
    model_folder: Path, tmp_path: Path
) -> None:
    prepared, settings = Prepared(), draft(model_folder)
    for text in ("{", json.dumps({"training": {"rank": -1}}), draft(tmp_path / "absent").model_dump_json()):
        (tmp_path / "prepare").write_text(text)
        warm._prepare(tmp_path, prepared)
    (tmp_path / "prepare").write_text(settings.model_dump_json())
    warm._prepare(tmp_path, prepared)
    warm._prepare(tmp_path, prepared)
    assert not (tmp_path / "prepare").exists()
    assert prepared.take(model_folder, settings.training, str(model_folder)) is not None


def test_loading_for_the_fast_path_imports_neither_transformers_nor_peft_nor_torchs_compiler(
    model_folder: Path,
) -> None:
    code = (
        "import sys; from ollama_tune.core.plan.settings import parse;"
        "from ollama_tune.core.train import loop, recipe, worker;"
        "from ollama_tune.core.train.prepared import Prepared;"
        "from ollama_tune.core.train.optimizer import make_optimizer;"
        "settings = parse({'model': {'source': sys.argv[1]}}); prepared = Prepared();"
        "prepared.load(settings, lambda: False); path = prepared._path;"
        "optimizer = make_optimizer(settings.training, path.weights);"
        "[setattr(w, 'grad', w.detach() + 1) for w in path.weights.values()]; optimizer.step();"
        "heavy = ['transformers', 'peft', 'bitsandbytes', 'pyarrow', 'datasets', 'pandas', 'httpx', 'gguf'];"
        "heavy += ['torch._dynamo', 'sympy'];"
        "print(path.name, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_folder)], capture_output=True, check=True, text=True
    )
    assert done.stdout == "fast []\n"
