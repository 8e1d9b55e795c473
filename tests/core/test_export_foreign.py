"""Adapters of other programs become runs whose export is the ordinary one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export import foreign
from ollama_tune.core.export.foreign import adopt
from ollama_tune.core.export.pipeline import run_export
from ollama_tune.core.export.prepare import prepare
from ollama_tune.core.export.values import Verification
from ollama_tune.core.runs.folder import RunFolder, State, list_runs
from tests.core.export_parts import build_any_adapter
from tests.core.export_trained import Trained, build_trained
from tests.core.hub import online

KEPT = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return build_trained(tmp_path_factory.mktemp("foreign"), "Llama", tie_word_embeddings=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def adapter(trained: Trained, tmp_path: Path) -> Path:
    """A copy to be changed, in a folder with a telling name."""
    return shutil.copytree(trained.adapter, tmp_path / "lora-out")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def export(folder: RunFolder) -> Verification:
    (folder.path / "export.yaml").write_text(json.dumps({"name": "birds", "type": "f16", "push": False}))
    return run_export(folder, lambda kind, **data: None, lambda: False)


def test_an_adapter_folder_becomes_a_run_that_is_exported_and_proved(trained: Trained, adapter: Path) -> None:
    folder = adopt(adapter)
    assert folder.settings().model.source == str(trained.base)
    found = export(folder)
    assert found.verdict == "pass", [check for check in found.checks if check.verdict == "fail"]
    assert (folder.export / found.file).is_file()


def test_the_run_shows_as_trained_elsewhere(adapter: Path) -> None:
    from ollama_tune.tui.run_view import RunView

    folder = adopt(adapter, name="birds:v2")
    assert folder.name.endswith("birds-v2") and list_runs() == [folder]
    status = folder.status()
    assert status.state is State.FINISHED and str(adapter) in status.message
    view = RunView()
    view.fold(folder.events())
    assert view.trained and view.step == 0 and view.best is None
    assert [line.text for line in view.log][-1] == "Trained by another program."
    assert folder.events()[-1]["imported"] == str(adapter)


def test_settings_are_those_the_adapter_tells(adapter: Path) -> None:
    change_config(adapter, lora_dropout=0.1, target_modules=["v_proj", "q_proj"])
    settings = adopt(adapter, name="birds").settings()
    assert (settings.training.rank, settings.training.alpha, settings.training.dropout) == (4, 8, 0.1)
    assert settings.training.targets == ["q_proj", "v_proj"] and settings.training.quantization == "none"
    assert settings.export.name == "birds"


def test_figures_beyond_the_settings_are_no_obstacle(adapter: Path) -> None:
    tensors = load_file(adapter / KEPT[1])
    wide = {key: _widened(key, value) for key, value in tensors.items()}
    save_file(wide, adapter / KEPT[1])
    change_config(adapter, r=600, lora_alpha=1200)
    folder = adopt(adapter)
    assert folder.settings().training.rank == 16
    assert prepare(with_name(folder), lambda kind, **data: None, lambda: False).vocabulary


def _widened(key: str, value: torch.Tensor) -> torch.Tensor:
    """The same change with rank 600: zeros where nothing was learned."""
    shape = (600, value.shape[1]) if ".lora_A." in key else (value.shape[0], 600)
    wide = torch.zeros(shape)
    wide[: value.shape[0], : value.shape[1]] = value
    return wide


def with_name(folder: RunFolder) -> RunFolder:
    (folder.path / "export.yaml").write_text(json.dumps({"name": "birds", "type": "f16", "push": False}))
    return folder


def test_nothing_is_held_out_of_data_that_is_not_there(adapter: Path) -> None:
    prepared = prepare(with_name(adopt(adapter)), lambda kind, **data: None, lambda: False)
    assert prepared.conversations == []


def test_a_later_training_in_the_old_folder_changes_nothing(adapter: Path) -> None:
    folder = adopt(adapter)
    before = (folder.adapter / KEPT[1]).read_bytes()
    with (adapter / KEPT[1]).open("r+b") as file:
        file.write(b"\0" * 8)
    assert (folder.adapter / KEPT[1]).read_bytes() == before


def test_a_checkpoint_of_a_training_is_taken_without_what_goes_on_with_it(
    adapter: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "outputs" / "checkpoint-500"
    shutil.copytree(adapter, checkpoint)
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "rng_state.pth", "README.md"):
        (checkpoint / name).write_text("x")
    folder = adopt(checkpoint)
    assert sorted(path.name for path in folder.adapter.iterdir()) == sorted(KEPT)
    with pytest.raises(UsageError, match=r"folders with one.*checkpoint-500"):
        adopt(tmp_path / "outputs")


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"adapter_config\.json is missing"):
        adopt(tmp_path)


@pytest.mark.parametrize(
    ("named", "original"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b"),
        ("unsloth/Qwen3-4B-Instruct-2507-unsloth-bnb-4bit", "unsloth/Qwen3-4B-Instruct-2507"),
    ],
)
def test_a_base_in_4_bit_names_its_original(adapter: Path, named: str, original: str) -> None:
    change_config(adapter, base_model_name_or_path=named)
    with pytest.raises(UsageError, match=rf"--base, most likely {original}\."):
        adopt(adapter)
    assert list_runs() == []


@pytest.mark.parametrize("named", ["/workspace/models/llama", "", None, "nobody/nothing"])
def test_a_base_that_is_not_here_must_be_given(adapter: Path, trained: Trained, named: str | None) -> None:
    change_config(adapter, base_model_name_or_path=named)
    with pytest.raises(TuneError, match="--base"):
        adopt(adapter)
    assert list_runs() == []
    assert adopt(adapter, str(trained.base)).settings().model.source == str(trained.base)


def test_a_quantized_base_folder_is_refused(adapter: Path, trained: Trained, tmp_path: Path) -> None:
    base = shutil.copytree(trained.base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(TuneError, match="16-bit"):
        adopt(adapter, str(base))


def test_what_cannot_be_merged_makes_no_run(adapter: Path) -> None:
    change_config(adapter, init_lora_weights="pissa")
    with pytest.raises(TuneError, match="pissa"):
        adopt(adapter)
    assert list_runs() == []


def test_a_failed_copy_leaves_no_run(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(foreign.shutil, "copyfile", full)
    with pytest.raises(TuneError, match="No space left"):
        adopt(adapter)
    assert list_runs() == [] and not list((foreign.create_run.__globals__["runs_dir"]()).iterdir())


@pytest.fixture
def hub(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with online(trained.base, monkeypatch) as server:
        yield server


def test_weights_of_a_base_on_the_hub_come_with_the_export(adapter: Path, hub: Any) -> None:
    change_config(adapter, base_model_name_or_path="org/tiny")
    folder = adopt(adapter)
    assert folder.settings().model.source == "org/tiny"
    assert export(folder).verdict == "pass"


# A folder that has its own tokenizer and two new tokens, as Unsloth, LLaMA-Factory and Axolotl write it.
def with_new_tokens(trained: Trained, folder: Path, **settings: Any) -> Path:
    from tokenizers import Tokenizer

    build_any_adapter(trained.base, folder, resize=2, target_modules=["q_proj", "v_proj"], **settings)
    tokenizer = Tokenizer.from_file(str(trained.base / "tokenizer.json"))
    assert tokenizer.add_special_tokens(["<|call|>", "<|result|>"]) == 2
    tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copy(trained.base / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text("{# of the adapter #}" + trained.chat.template)
    return folder


def renamed(folder: Path, rename: Callable[[str], str]) -> None:
    tensors = load_file(folder / KEPT[1])
    save_file({rename(key): value for key, value in tensors.items()}, folder / KEPT[1])


STORED: dict[str, tuple[dict[str, Any], Callable[[str], str]]] = {
    "Unsloth": (
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        lambda key: key.replace("embed_tokens.weight", "embed_tokens.modules_to_save.default.weight"),
    ),
    "LLaMA-Factory": ({"modules_to_save": ["embed_tokens", "lm_head"]}, lambda key: key),
    "Axolotl": ({"store_embedding": True}, lambda key: key),
}


@pytest.mark.parametrize(("settings", "rename"), STORED.values(), ids=STORED.keys())
def test_new_tokens_come_with_the_adapter(
    trained: Trained, tmp_path: Path, settings: dict[str, Any], rename: Callable[[str], str]
) -> None:
    source = with_new_tokens(trained, tmp_path / "lora", **settings)
    renamed(source, rename)
    folder = adopt(source, str(trained.base))
    rows = prepare(with_name(folder), lambda kind, **data: None, lambda: False).vocabulary
    assert rows == len(load_file(trained.base / "model.safetensors")["model.embed_tokens.weight"]) + 2
    assert folder.chat_template_path.read_text().startswith("{# of the adapter #}")
    found = export(folder)
    by_name = {check.name: check.verdict for check in found.checks}
    assert by_name["tensors"] == by_name["adapter"] == by_name["tokenizer"] == "pass"
