"""Single fields of other tools' configs, where they say something that is easily misread."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_tune.core.plan.import_config import import_config

from .imported import one, read


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("base_model: org/m\nsequence_len: 512\nmicro_batch_size: 1\n", "full"),
        ("base_model: org/m\nsequence_len: 512\nadapter:\n", "full"),
        ("base_model: org/m\nsequence_len: 512\nadapter: lora\nneftune_noise_alpha: 5\n", "lora"),
        ("model_name_or_path: org/m\nfinetuning_type: full\ncutoff_len: 512\nstage: sft\n", "full"),
        ("model_name_or_path: org/m\ndataset_name: org/d\nmax_length: 512\nuse_peft: false\n", "full"),
        ("model_name_or_path: org/m\ndataset_name: org/d\nmax_length: 512\nlora_r: 8\n", "lora"),
    ],
)
def test_where_a_config_names_no_adapter_all_weights_are_trained(
    tmp_path: Path, text: str, method: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    training = read(import_config(tmp_path / "c.yaml")).training
    assert (training.method, training.neftune) == (method, 5.0 if "neftune" in text else 0.0)


def test_a_small_config_of_trl_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model_name_or_path:\n  org/m\ndataset_name:\n  org/d\n")
    assert import_config(tmp_path / "c.yaml").format == "trl"


@pytest.mark.parametrize(
    ("line", "outcome", "values"),
    [
        ("optimizer: adamw_torch_8bit", "approximated", {"training.optimizer": "adamw_8bit"}),
        (
            r"lora_target_modules: 'model.layers.[\d]+.(q|v)_proj'",
            "approximated",
            {"training.targets": ["q_proj", "v_proj"]},
        ),
        (r"lora_target_modules: '.*attn.*'", "missing", {}),
        ("special_tokens: {pad_token: <pad>}", "dropped", {}),
        ("special_tokens: {pad_token: <pad>, eos_token: <end>}", "missing", {}),
        ("optimizer: ao_adamw_4bit", "approximated", {"training.optimizer": "adamw_8bit"}),
        ("bfloat16: true", "taken", {"training.compute_dtype": "bfloat16"}),
        ("cosine_min_lr_ratio: 0.1", "missing", {}),
        ("experts_implementation: scattermoe", "dropped", {}),
        ("otel_metrics_port: 8000", "dropped", {}),
        ("qgalore_rank: 8", "missing", {}),
        ("lora_target_modules: [q_proj, self_attn.k_proj]", "taken", None),
        ("bnb_config_kwargs: {bnb_4bit_use_double_quant: true}", "dropped", {}),
        ("bnb_config_kwargs: {bnb_4bit_quant_type: fp4}", "missing", {}),
    ],
)
def test_fields_of_newer_axolotl(tmp_path: Path, line: str, outcome: str, values: object) -> None:
    (tmp_path / "c.yml").write_text(f"base_model: org/m\nadapter: lora\nsequence_len: 64\n{line}\n")
    found = one(import_config(tmp_path / "c.yml"), line.partition(":")[0])
    assert found.outcome == outcome
    assert values is None or found.settings == values


def test_a_part_of_a_split_is_not_taken_for_its_name(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(
        "base_model: org/m\nadapter: lora\ndatasets: [{path: org/d, split: 'train[:10%]'}]\n"
    )
    imported = import_config(tmp_path / "c.yml")
    assert read(imported).data.split == "train"
    assert one(imported, "datasets.0.split").outcome == "approximated"


@pytest.mark.parametrize(("kind", "method"), [("oft", "lora"), ("freeze", "full")])
def test_a_method_that_is_not_here_names_the_nearest(tmp_path: Path, kind: str, method: str) -> None:
    (tmp_path / "c.yaml").write_text(f"model_name_or_path: org/m\nstage: sft\nfinetuning_type: {kind}\n")
    imported = import_config(tmp_path / "c.yaml")
    assert read(imported).training.method == method
    assert one(imported, "finetuning_type").outcome == "approximated"
