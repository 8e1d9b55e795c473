"""The fast path's adapter against PEFT: the same start, the same files, the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.merge import open_merged
from ollama_tune.core.models.blueprint import Blueprint, read_blueprint
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.fast.adapter import Adapter, new_adapter, read_adapter
from ollama_tune.core.train.model import add_adapter, load_base, trainable
from tests.core.export_parts import build_adapter, build_family, load, log_probabilities

IDS = (1, 20, 300, 41, 7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("Llama", "Phi3", "Gemma2")
    return {name: build_family(tmp_path_factory.mktemp(name), name) for name in names}


def blueprint(folder: Path) -> Blueprint:
    return read_blueprint(read_json(folder / "config.json"))


def random_adapter(folder: Path, **training: Any) -> Adapter:
    """A fresh one whose B is not zero, so that it changes answers."""
    adapter = new_adapter(blueprint(folder), TrainingSettings(**{"rank": 4, "alpha": 8} | training))
    for pair in adapter.pairs():
        torch.nn.init.normal_(pair.b, std=0.15)
    return adapter


@pytest.mark.parametrize("family", ["Llama", "Phi3", "Gemma2"])
@pytest.mark.parametrize(
    "training",
    [
        {"seed": 3},
        {"compute_dtype": "bfloat16", "rank": 8, "targets": ["o_proj", "mlp.down_proj"]},
        {"compute_dtype": "bfloat16", "quantization": "nf4", "targets": ["layers.1.self_attn.o_proj"]},
    ],
)
def test_the_start_is_the_one_that_peft_draws_from_the_same_seed(
    folders: dict[str, Path], family: str, training: dict[str, Any]
) -> None:
    settings = TrainingSettings(**training)
    model = trainable(add_adapter(load_base(folders[family], settings), settings, "base"))
    theirs = {name.replace(".default.", "."): weight for name, weight in model.items()}
    ours = new_adapter(blueprint(folders[family]), settings).named()
    assert ours.keys() == theirs.keys()
    assert all(weight.dtype == torch.float32 for weight in ours.values())
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize("family", ["Llama", "Phi3"])
@pytest.mark.parametrize(
    "training", [{"dropout": 0.1, "rslora": True}, {"targets": ["layers.2.self_attn.o_proj", "down_proj"]}]
)
def test_written_files_load_in_peft_and_in_the_export_and_come_back(
    folders: dict[str, Path], family: str, training: dict[str, Any], tmp_path: Path
) -> None:
    base = folders[family]
    adapter = random_adapter(base, **training)
    adapter.write(tmp_path, str(base))
    model = load(base, tmp_path)
    theirs = {name.replace(".default.", "."): w for name, w in model.named_parameters() if "lora_" in name}
    assert theirs.keys() == adapter.named().keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in adapter.named().items())
    config = model.peft_config["default"]
    assert config.use_rslora == training.get("rslora", False)
    assert config.base_model_name_or_path == str(base) and config.inference_mode
    module = model.get_submodule("base_model.model.model.layers.2.self_attn.o_proj")
    assert module.scaling["default"] == pytest.approx(adapter.scale)
    assert log_probabilities(model, IDS) != log_probabilities(load(base), IDS)

    with open_merged(base, tmp_path) as merged:
        assert set(merged.shapes) >= {f"{pair.module}.weight" for pair in adapter.pairs()}
    again = read_adapter(blueprint(base), tmp_path, "cpu")
    assert again.layout == adapter.layout
    assert all(torch.equal(w, adapter.named()[name]) for name, w in again.named().items())


def test_an_adapter_that_peft_wrote_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = build_adapter(folders["Phi3"], tmp_path, use_rslora=True)
    adapter = read_adapter(blueprint(folders["Phi3"]), folder, "cpu")
    stored = load_file(folder / "adapter_model.safetensors")
    assert adapter.named().keys() == stored.keys() and adapter.scale == 8 / 2
    assert all(torch.equal(weight, stored[name]) for name, weight in adapter.named().items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias=all"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ],
)
def test_an_adapter_with_more_than_pairs_of_one_rank_is_refused(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    folder = build_adapter(folders["Llama"], tmp_path, **changes)
    with pytest.raises(TuneError, match=named):
        read_adapter(blueprint(folders["Llama"]), folder, "cpu")


def test_files_that_are_damaged_or_of_another_model_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    random_adapter(folders["Llama"]).write(tmp_path, "base")
    with pytest.raises(TuneError, match="weights differ"):
        read_adapter(blueprint(folders["Phi3"]), tmp_path, "cpu")
    config = tmp_path / "adapter_config.json"
    tree = json.loads(config.read_text())
    config.write_text(json.dumps(tree | {"r": 5}))
    with pytest.raises(TuneError, match="weights differ"):
        read_adapter(blueprint(folders["Llama"]), tmp_path, "cpu")
    config.write_text(json.dumps({key: value for key, value in tree.items() if key != "r"}))
    with pytest.raises(TuneError, match="'r'"):
        read_adapter(blueprint(folders["Llama"]), tmp_path, "cpu")
    config.write_text(json.dumps(tree))
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(TuneError, match="cannot be read"):
        read_adapter(blueprint(folders["Llama"]), tmp_path, "cpu")


def test_a_target_that_is_no_linear_layer_is_refused_by_name(folders: dict[str, Path]) -> None:
    with pytest.raises(TuneError, match="'q_prj'") as caught:
        new_adapter(blueprint(folders["Llama"]), TrainingSettings(targets=["q_proj", "q_prj"]))
    assert "q_proj" in caught.value.fix


def test_stacked_matrices_share_the_memory_of_the_weights(folders: dict[str, Path]) -> None:
    adapter = random_adapter(folders["Llama"], targets=["q_proj", "v_proj", "up_proj"])
    group = adapter.group("layers.1.qkv")
    assert group is not None and [(pair.start, pair.stop) for pair in group.pairs] == [(0, 64), (96, 128)]
    assert adapter.group("layers.1.o") is None
    adapter.load({name: torch.full_like(w, 2.0) for name, w in adapter.named().items()})
    assert bool((group.a == 2.0).all()) and group.a.shape == (8, 64)
    up = adapter.group("layers.1.gate_up")
    assert up is not None and (up.pairs[0].start, up.pairs[0].stop) == (96, 192)
