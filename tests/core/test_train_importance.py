"""The importance matrix gathered in a training's evaluations, compared with a computation row by row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import parse
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.core.train.general import GeneralPath, make_general
from ollama_tune.core.train.importance import LayerInputs
from ollama_tune.core.train.loop import Trainer
from ollama_tune.core.train.model import load_base
from ollama_tune.core.train.session import Session, StopWish
from tests.loud import loud

QUERY = "model.layers.1.self_attn.q_proj"


def rows(count: int) -> list[Example]:
    made = []
    for number in range(count):
        chance = random.Random(number)
        ids = tuple(chance.randrange(3, 300) for _ in range(chance.randrange(20, 60)))
        made.append(Example("", ids, (True,) * len(ids), ((0, 0),) * len(ids)))
    return made


def adapted(model_folder: Path, **training: Any) -> GeneralPath:
    """A path with an adapter on two kinds of layers that changes what flows through it."""
    settings = parse({"training": {"targets": ["q_proj", "down_proj"], "rank": 4} | training}).training
    path: GeneralPath = loud(make_general(model_folder, settings, "base", ""), 0.1)
    path.train(False)
    return path


@torch.no_grad()
def gathered(path: GeneralPath, examples: Sequence[Example], batch: int) -> LayerInputs:
    inputs = LayerInputs()
    with path.watched(inputs.observe):
        for start in range(0, len(examples), batch):
            path.loss(path.collate(examples[start : start + batch]))
    return inputs


@torch.no_grad()
def straightforward(path: GeneralPath, examples: Sequence[Example], module: str) -> torch.Tensor:
    """Mean squared input of one layer, a row at a time and without padding."""
    seen: list[torch.Tensor] = []
    model: Any = path.model
    layer = model.get_base_model().get_submodule(module)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    for example in examples:
        model(input_ids=torch.tensor([example.ids]))
    handle.remove()
    return torch.cat(seen).square().mean(0)


@pytest.mark.parametrize(("quantization", "padded"), [("none", False), ("none", True), ("nf4", False)])
def test_it_equals_a_computation_row_by_row(
    model_folder: Path, tmp_path: Path, quantization: str, padded: bool
) -> None:
    model, examples = adapted(model_folder, quantization=quantization), rows(40)
    model.padded = padded
    inputs = gathered(model, examples, batch=7)
    assert inputs.tokens == sum(len(example.ids) for example in examples)
    inputs.write(tmp_path / "importance.safetensors")
    found = load_file(tmp_path / "importance.safetensors")
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        module = f"model.layers.1.{part}"
        expected = straightforward(model, examples, module)
        torch.testing.assert_close(found[module].double(), expected, rtol=2e-3, atol=1e-7)
    with safe_open(tmp_path / "importance.safetensors", "pt") as file:
        assert file.metadata() == {"tokens": str(inputs.tokens)}


def test_every_linear_layer_but_the_head_is_there_under_its_own_name(model_folder: Path) -> None:
    model = adapted(model_folder)
    inputs = gathered(model, rows(2), batch=2)
    plain = load_base(model_folder, parse({}).training)
    linear = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(inputs._sums) == linear - {"lm_head"}


def test_nothing_stays_hooked(model_folder: Path) -> None:
    path = adapted(model_folder)
    with path.watched(LayerInputs().observe):
        assert any(module._forward_pre_hooks for module in path.model.modules())
    assert not any(module._forward_pre_hooks for module in path.model.modules())


def test_too_few_tokens_write_nothing_and_take_an_old_file_away(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "importance.safetensors"
    path.write_bytes(b"old")
    gathered(adapted(model_folder), rows(5), batch=5).write(path)
    assert not path.exists()


def train(model_folder: Path, **export: Any) -> RunFolder:
    settings = {
        "model": {"source": str(model_folder)},
        "training": {"batch_size": 4, "gradient_accumulation_steps": 1, "epochs": 1.0, "rank": 4},
        "export": export,
    }
    folder = create_run(parse(settings), "importance")
    session = Session(folder, StopWish(folder))
    path = make_general(model_folder, session.settings.training, "base", "")
    Trainer(session, path, rows(16), rows(40)).run()
    return folder


def test_a_training_leaves_the_matrix_of_its_best_checkpoint(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))
    folder = train(model_folder)
    written = load_file(folder.importance_path)
    assert written[QUERY].shape == (64,) and bool((written[QUERY] > 0).all())
    with safe_open(folder.importance_path, "pt") as file:
        assert int(file.metadata()["tokens"]) == sum(len(example.ids) for example in rows(40))


def test_a_training_that_does_not_want_it_leaves_none(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))
    assert not train(model_folder, importance=False).importance_path.exists()
