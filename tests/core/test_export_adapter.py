"""Adapters as PEFT and other tools store them: what is read under which name, and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter import Adapter, canonical
from ollama_tune.core.export.merge import open_merged
from ollama_tune.core.export.tensors import TensorPlan
from tests.core.export_parts import build_adapter, build_any_adapter, build_llama

Q = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter(base, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((plain / name).read_bytes())
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, path)


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    with open_merged(base, adapter) as rows:
        plans = [
            TensorPlan(name, (name,), (name.rpartition(".")[0],), shape)
            for name, shape in rows.shapes.items()
        ]
        rows.check(plans)
        return {plan.name: rows.rows(plan, 0, plan.rows) for plan in plans}


def with_name(key: str) -> str:
    return key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


RENAMED: dict[str, Callable[[str], str]] = {
    "with the adapter's name": with_name,
    "without the outer model": lambda key: key.removeprefix("base_model.model."),
    "compiled": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "wrapped for several GPUs": lambda key: f"module.{key}",
    "sharded": lambda key: key.replace(".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "checkpointed": lambda key: key.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "text part of a model with pictures": lambda key: key.replace(
        "base_model.model.model.", "base_model.model.model.language_model."
    ),
    "text part, as transformers 4 named it": lambda key: key.replace(
        "base_model.model.model.", "base_model.model.language_model.model."
    ),
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED.keys())
def test_keys_are_read_under_every_name_that_tools_give_them(
    base: Path, plain: Path, adapter: Path, rename: Callable[[str], str]
) -> None:
    change_tensors(adapter, lambda tensors: {rename(key): value for key, value in tensors.items()})
    ours, theirs = merged(base, adapter), merged(base, plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert set(Adapter(adapter).modules) == set(Adapter(plain).modules)


@pytest.mark.parametrize("form", ["{}.modules_to_save.default", "{}.modules_to_save", "{}.base_layer", "{}"])
def test_saved_modules_are_read_under_every_name(base: Path, adapter: Path, form: str) -> None:
    saved = torch.randn(len(load_file(base / "model.safetensors")[HEAD]), 64)
    key = f"base_model.model.{form.format('lm_head')}.weight"
    change_tensors(adapter, lambda tensors: tensors | {key: saved})
    assert torch.equal(merged(base, adapter)[HEAD], saved)


def test_an_original_beside_a_trained_copy_is_passed_over(base: Path, plain: Path, adapter: Path) -> None:
    key = "base_model.model.lm_head.original_module.weight"
    change_tensors(adapter, lambda tensors: tensors | {key: torch.randn(3, 3)})
    assert torch.equal(merged(base, adapter)[HEAD], merged(base, plain)[HEAD])


def test_an_older_name_of_magnitudes_is_read(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", use_dora=True)
    before = merged(base, folder)

    def rename(key: str) -> str:
        return key.replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight")

    change_tensors(folder, lambda tensors: {rename(key): value for key, value in tensors.items()})
    assert any("default.weight" in key for key in load_file(folder / "adapter_model.safetensors"))
    after = merged(base, folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"),
        ("base_model.model.lm_head", "lm_head"),
        ("base_model.model.language_model.lm_head", "lm_head"),
        ("base_model.model.model.language_model.embed_tokens", "model.embed_tokens"),
        ("language_model.model.norm.weight", "model.norm.weight"),
    ],
)
def test_a_module_has_one_name(name: str, found: str) -> None:
    assert canonical(name) == found


# What PEFT can write and cannot be merged: the field, and what the message must name.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "LOHA"),
    ({"peft_type": None}, "None"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ({"use_qalora": True}, "use_qalora"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config"),
    ({"kasa_config": {"beta": 1}}, "kasa_config"),
    ({"monteclora_config": {"num_samples": 2}}, "monteclora_config"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"use_something_new": True}, "use_something_new"),
    ({"something_config": {"on": 1}}, "something_config"),
    ({"init_lora_weights": "quantum"}, "quantum"),
    ({"r": 5}, "rank 4"),
    ({"lora_alpha": "much"}, "alpha"),
    ({"rank_pattern": {"q_proj(": 2}}, "rank"),
    ({"use_dora": True}, "use_dora"),
]


@pytest.mark.parametrize(("changes", "named"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_what_cannot_be_merged_is_refused_by_name(adapter: Path, changes: dict[str, Any], named: str) -> None:
    change_config(adapter, **changes)
    with pytest.raises(TuneError, match=named):
        Adapter(adapter)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_an_adapter_that_took_a_part_of_the_base_names_the_conversion(adapter: Path, start: str) -> None:
    change_config(adapter, init_lora_weights=start)
    with pytest.raises(TuneError, match=f"{start}.*path_initial_model_for_weight_conversion"):
        Adapter(adapter)


def test_an_adapter_of_a_rounded_base_is_refused(adapter: Path) -> None:
    change_config(adapter, init_lora_weights="loftq", loftq_config={"loftq_bits": 4})
    with pytest.raises(TuneError, match="loftq"):
        Adapter(adapter)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_other_starts_are_harmless(adapter: Path, start: Any) -> None:
    change_config(adapter, init_lora_weights=start, auto_mapping={"unsloth_fixed": True}, later_number=16)
    assert Adapter(adapter).modules


def test_every_field_of_the_installed_peft_is_known() -> None:
    from dataclasses import fields

    from peft import LoraConfig

    from ollama_tune.core.export.adapter_config import _FIELDS

    assert {field.name for field in fields(LoraConfig)} <= set(_FIELDS)


def test_a_converted_adapter_is_the_change_of_the_training(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from tests.core.export_parts import load, quiet

    settings = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load(base), settings)
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "start", save_embedding_layers=False)
        model.peft_config["default"].init_lora_weights = "pissa"
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data += torch.randn_like(weight) * 0.1
        model.save_pretrained(
            tmp_path / "adapter",
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=str(tmp_path / "start"),
        )
        truth = model.merge_and_unload().state_dict()
    ours = merged(base, tmp_path / "adapter")
    for name in (name for name in truth if "q_proj" in name):
        torch.testing.assert_close(ours[name], truth[name], atol=1e-5, rtol=1e-4)


def test_half_a_pair_is_refused(adapter: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors.__delitem__(f"{Q}.lora_B.weight"))
    with pytest.raises(TuneError, match=r"layers\.0\.self_attn\.q_proj\.lora_A"):
        Adapter(adapter)


def test_lengths_of_another_number_of_rows_are_refused(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", use_dora=True)
    key = f"{Q}.lora_magnitude_vector"
    change_tensors(folder, lambda tensors: tensors | {key: tensors[key][:-1].clone()})
    with pytest.raises(TuneError, match=r"q_proj do not fit"):
        Adapter(folder)


def test_an_empty_tensor_tells_of_several_gpus(adapter: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors | {f"{Q}.lora_B.weight": torch.empty(0)})
    with pytest.raises(TuneError, match=r"q_proj\.lora_B\.weight is empty.*ZeRO-3"):
        Adapter(adapter)


def test_an_unknown_tensor_is_refused_by_name(adapter: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors | {f"{Q}.lora_diag": torch.ones(4)})
    with pytest.raises(TuneError, match="lora_diag"):
        Adapter(adapter)


def test_several_adapters_in_one_file_are_refused(adapter: Path) -> None:
    def twice(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        other = {with_name(key).replace("default", "other"): value.clone() for key, value in tensors.items()}
        return {with_name(key): value for key, value in tensors.items()} | other

    change_tensors(adapter, twice)
    with pytest.raises(TuneError, match="several adapters: default, other"):
        Adapter(adapter)


def test_lengths_of_an_embedding_are_refused(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(
        base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"], use_dora=True
    )
    with pytest.raises(TuneError, match="use_dora on the token embedding"):
        Adapter(folder)


def test_retrained_tokens_that_are_not_listed_are_refused(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", trainable_token_indices=[5, 6])
    change_config(folder, trainable_token_indices=[5])
    with pytest.raises(TuneError, match="2 retrained tokens"):
        Adapter(folder)


def test_a_retrained_token_beyond_the_vocabulary_is_refused(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", trainable_token_indices=[5, 6])
    change_config(folder, trainable_token_indices=[5, 900])
    with pytest.raises(TuneError, match="token 900"):
        merged(base, folder)
    change_config(folder, trainable_token_indices=[5, 6])
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    change_tensors(folder, lambda tensors: tensors | {key: torch.ones(2, 63)})
    with pytest.raises(TuneError, match="63 numbers"):
        merged(base, folder)


def test_a_resized_embedding_of_its_own_lacks_the_shared_head(tmp_path: Path) -> None:
    tied = build_llama(tmp_path / "tied")
    folder = build_any_adapter(tied, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    key = "base_model.model.model.embed_tokens.weight"
    change_tensors(folder, lambda tensors: tensors | {key: torch.ones(500, 64)})
    with pytest.raises(TuneError, match="resized the vocabulary"):
        merged(tied, folder)


def test_targets_that_the_base_lacks_are_listed(base: Path, tmp_path: Path) -> None:
    deeper = build_llama(tmp_path / "deeper", num_hidden_layers=3)
    folder = build_adapter(deeper, tmp_path / "adapter")
    with pytest.raises(TuneError, match=r"7 modules .*model\.layers\.2\.mlp\.up_proj"):
        merged(base, folder)


def test_a_saved_module_that_the_base_lacks_is_named(base: Path, adapter: Path) -> None:
    key = "base_model.model.score.weight"
    change_tensors(adapter, lambda tensors: tensors | {key: torch.ones(2, 64)})
    with pytest.raises(TuneError, match="1 modules that the base model does not have: score"):
        merged(base, adapter)


def test_an_adapter_of_another_width_is_refused(base: Path, tmp_path: Path) -> None:
    wider = build_llama(tmp_path / "wider", intermediate_size=256)
    with pytest.raises(TuneError, match=r"mlp\.\w+ has the shape"):
        merged(base, build_adapter(wider, tmp_path / "adapter"))


def test_a_resized_embedding_without_its_head_is_refused(base: Path, adapter: Path) -> None:
    key = "base_model.model.model.embed_tokens.weight"
    change_tensors(adapter, lambda tensors: tensors | {key: torch.ones(500, 64)})
    with pytest.raises(TuneError, match="resized the vocabulary"):
        merged(base, adapter)


def test_pickled_weights_name_the_command_that_converts_them(adapter: Path, base: Path, plain: Path) -> None:
    import subprocess
    import sys

    path = adapter / "adapter_model.safetensors"
    torch.save(load_file(path), adapter / "adapter_model.bin")
    path.unlink()
    with pytest.raises(TuneError, match="pickle") as found:
        Adapter(adapter)
    command = found.value.fix.partition('-c "')[2].rpartition('"')[0]
    subprocess.run([sys.executable, "-c", command], cwd=adapter, check=True)
    assert torch.equal(merged(base, adapter)[HEAD], merged(base, plain)[HEAD])


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(TuneError, match=r"no adapter_config\.json"):
        Adapter(tmp_path)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(TuneError, match="no weights"):
        Adapter(adapter)
