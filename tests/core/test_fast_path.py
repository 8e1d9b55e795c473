"""The fast path as the loop uses it, beside the general path on the same model and adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.plan.answers import answer_rows
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.fast.path import FastPath, make_fast
from ollama_tune.core.train.general import GeneralPath, make_general
from tests.core.loop_parts import examples
from tests.loud import loud
from tests.tiny import build_model

ROWS = examples(5)
SETTINGS = TrainingSettings(rank=4, alpha=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def fast(folder: Path) -> FastPath:
    return loud(make_fast(folder, SETTINGS, "base", reason="a test"), 0.1)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def general(folder: Path) -> GeneralPath:
    return loud(make_general(folder, SETTINGS, "base", "a test"), 0.1)  # type: ignore[no-any-return]


def inputs_of(path: Any) -> dict[str, torch.Tensor]:
    """The sum of each column's inputs, by layer."""
    found: dict[str, torch.Tensor] = {}
    with path.watched(lambda name, inputs: found.__setitem__(name, inputs.double().sum(0))), torch.no_grad():
        path.loss(path.collate(ROWS))
    return found


def test_both_paths_have_the_same_weights_losses_and_gradients(fast: FastPath, general: GeneralPath) -> None:
    assert fast.reason == "a test" and not fast.padded
    assert list(fast.weights) == list(general.weights)
    batch = fast.collate(ROWS)
    assert batch.supervised_tokens == general.collate(ROWS).supervised_tokens
    assert batch.useful_tokens == sum(len(row.ids) for row in ROWS)
    losses = []
    for path in (fast, general):
        loss = path.loss(path.collate(ROWS))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, weight in fast.weights.items():
        theirs = general.weights[name].grad
        assert weight.grad is not None and torch.allclose(weight.grad, theirs, atol=1e-5, rtol=1e-4), name


def test_without_the_adapter_it_is_the_base_model(fast: FastPath, general: GeneralPath) -> None:
    batch = fast.collate(ROWS)
    with torch.no_grad():
        tuned = float(fast.loss(batch))
        with fast.without_adapter(), general.without_adapter():
            base = float(fast.loss(batch))
            assert base == pytest.approx(float(general.loss(general.collate(ROWS))), rel=1e-6)
        assert float(fast.loss(batch)) == tuned != base


def test_watching_tells_the_inputs_of_the_same_layers(fast: FastPath, general: GeneralPath) -> None:
    ours, theirs = inputs_of(fast), inputs_of(general)
    assert ours.keys() == theirs.keys() and len(ours) == 14
    assert all(inputs.shape == theirs[name].shape for name, inputs in ours.items())
    batch = fast.collate(ROWS)
    told: list[str] = []
    with torch.no_grad():
        before = float(fast.loss(batch))
        with fast.watched(lambda name, _: told.append(name)):
            assert float(fast.loss(batch)) == pytest.approx(before, rel=1e-6)
        told.clear()
        fast.loss(batch)
    assert not told


def test_the_adapter_goes_to_the_other_path_and_back(
    fast: FastPath, general: GeneralPath, folder: Path, tmp_path: Path
) -> None:
    fresh = make_fast(folder, SETTINGS, "base")
    general.write_adapter(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    fresh.load_adapter(tensors)
    assert all(torch.equal(weight, tensors[name]) for name, weight in fresh.weights.items())
    fresh.write_adapter(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == tensors.keys()
    with torch.no_grad():
        assert float(fresh.loss(fresh.collate(ROWS))) == float(fast.loss(fast.collate(ROWS)))


def test_a_check_is_silent_where_rows_are_computed_apart_and_finds_where_they_are_not(
    fast: FastPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast.train(True)
    fast.compare(ROWS[:2])
    fast.compare(ROWS[:1])
    attention = fast.model.layers[0].attention
    real = attention.forward

    def leaky(query: Any, key: Any, value: Any, segments: Any, **options: Any) -> Any:
        out, rows = real(query, key, value, segments, **options)
        return out + out.mean(0) * (len(segments) > 1), rows

    monkeypatch.setattr(attention, "forward", leaky)
    assert fast.check(ROWS[:2]) == "", "the explicit products of the CPU need no check"
    monkeypatch.setattr(fast, "device", "cpu:0")
    with pytest.raises(TuneError, match="for the same rows alone"):
        fast.check(ROWS[:2])


def test_recomputing_only_ever_grows(fast: FastPath) -> None:
    assert fast.model.recompute == "none"
    for asked, then in (("layers", "layers"), ("mlp", "layers"), ("offload", "offload"), ("none", "offload")):
        fast.recompute(asked)  # type: ignore[arg-type]
        assert fast.model.recompute == then


def test_answers_and_sizes(fast: FastPath, general: GeneralPath, folder: Path) -> None:
    prompts = [row.ids[:8] for row in ROWS]
    ours, theirs = (path.engine.decode(prompts, 8, tuned=True, stop_ids=[]) for path in (fast, general))
    assert ours == theirs
    assert fast.parts() == general.parts()
    spec = read_spec(str(folder))
    assert fast.engine.rows == answer_rows(spec, SETTINGS)
    assert general.engine.rows == answer_rows(spec, SETTINGS.model_copy(update={"path": "general"}))


def test_a_gpu_that_is_not_there_and_a_model_that_is_not_known_are_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TuneError, match="torch finds none"):
        make_fast(folder, SETTINGS.model_copy(update={"device": "cuda"}), "base")
    (tmp_path / "config.json").write_text('{"architectures": ["OtherForCausalLM"]}')
    with pytest.raises(TuneError, match="OtherForCausalLM"):
        make_fast(tmp_path, SETTINGS, "base")
