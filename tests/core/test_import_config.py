"""Configs of other tools: what they mean here, and that no field of them is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.import_config import Imported, import_config
from ollama_tune.core.plan.import_defaults import DEFAULTS
from ollama_tune.core.plan.import_tables import AXOLOTL, LLAMAFACTORY, TRL
from ollama_tune.core.plan.settings import field_paths

from .imported import fields, one, read

LLAMAFACTORY_FILE = """\
model_name_or_path: org/chat-8b
model_revision: v1.2
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 32
lora_alpha: 24
lora_dropout: 0.1
lora_target: q_proj, v_proj
use_rslora: true
pissa_init: false
quantization_bit: 4
quantization_method: bnb
dataset: orders, others
template: qwen3
cutoff_len: 1536
max_samples: 500
packing: true
val_size: 0.05
output_dir: saves/out
logging_steps: 5
save_steps: 200
plot_loss: true
report_to: none
resume_from_checkpoint: null
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 1e-4
num_train_epochs: 1.5
lr_scheduler_type: cosine_with_restarts
warmup_ratio: 0.03
weight_decay: 0.01
max_grad_norm: 0.5
bf16: true
seed: 11
eval_strategy: steps
eval_steps: 50
train_on_prompt: true
optim: adamw_bnb_8bit
my_own_field: 3
"""
DATASET_INFO = {
    "orders": {
        "file_name": "orders.jsonl",
        "formatting": "alpaca",
        "columns": {"prompt": "Q1", "response": "A1", "query": "input", "tools": "t"},
        "num_samples": 20,
    }
}
AXOLOTL_FILE = """\
base_model: ./base
model_type: AutoModelForCausalLM
load_in_8bit: false
load_in_4bit: true
adapter: qlora
datasets:
  - path: rows.jsonl
    type: chat_template
    ds_type: json
    split: train
    field_messages: talk
    roles_to_train: [assistant]
  - path: org/more
    type: alpaca
dataset_prepared_path: last_run
val_set_size: 200
output_dir: ./out
sequence_len: 4096
sample_packing: true
pad_to_sequence_len: true
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_target_modules:
lora_modules_to_save: [embed_tokens]
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_8bit
lr_scheduler: rex
learning_rate: 0.0002
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
early_stopping_patience: 2
logging_steps: 1
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
weight_decay: 0.0
train_on_inputs: false
wandb_project: mine
deepspeed:
special_tokens:
  pad_token: "<|end|>"
"""
TRL_FILE = """\
model_name_or_path: org/chat-1b
dtype: bfloat16
dataset_name: org/rows
dataset_train_split: train_sft
dataset_test_split: test_sft
use_peft: true
lora_r: 64
lora_target_modules: all-linear
load_in_4bit: true
bnb_4bit_quant_type: nf4
max_length: 4096
packing: false
assistant_only_loss: true
per_device_train_batch_size: 4
gradient_checkpointing: unsloth
lr_scheduler_type: constant
learning_rate: 7
adam_beta2: 0.95
report_to: [tensorboard]
push_to_hub: true
"""


@pytest.fixture
def llamafactory(tmp_path: Path) -> Imported:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(DATASET_INFO))
    (tmp_path / "lf.yaml").write_text(LLAMAFACTORY_FILE)
    return import_config(tmp_path / "lf.yaml")


@pytest.fixture
def axolotl(tmp_path: Path) -> Imported:
    (tmp_path / "base").mkdir()
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "ax.yml").write_text(AXOLOTL_FILE)
    return import_config(tmp_path / "ax.yml")


@pytest.fixture
def trl(tmp_path: Path) -> Imported:
    (tmp_path / "sft.yaml").write_text(TRL_FILE)
    return import_config(tmp_path / "sft.yaml")


def test_a_config_of_llamafactory_means_the_same_here(llamafactory: Imported) -> None:
    settings = read(llamafactory)
    folder = llamafactory.path.parent
    wanted = {
        "model.source": "org/chat-8b",
        "model.revision": "v1.2",
        "data.path": str(folder / "data" / "orders.jsonl"),
        "data.columns": {"question": "Q1", "answer": "A1"},
        "data.validation_split": 0.05,
        "data.seed": 11,
        "training.quantization": "nf4",
        "training.compute_dtype": "bfloat16",
        "training.rank": 32,
        "training.alpha": 24,
        "training.dropout": 0.1,
        "training.targets": ["q_proj", "v_proj"],
        "training.rslora": True,
        "training.optimizer": "adamw_8bit",
        "training.learning_rate": 1e-4,
        "training.schedule": "cosine",
        "training.warmup": 0.03,
        "training.weight_decay": 0.01,
        "training.max_gradient_norm": 0.5,
        "training.epochs": 1.5,
        "training.batch_size": 2,
        "training.gradient_accumulation_steps": 4,
        "training.sequence_length": 1536,
        "training.gradient_checkpointing": "layers",
        "training.packing": True,
        "training.seed": 11,
        "training.evaluation_interval": 50,
        "training.early_stopping": 0,
    }
    assert {path: settings.get(path) for path in wanted} == wanted
    outcomes = {
        "packing": "approximated",
        "template": "approximated",
        "lr_scheduler_type": "approximated",
        "max_samples": "missing",
        "train_on_prompt": "missing",
        "my_own_field": "missing",
        "pissa_init": "dropped",
        "output_dir": "dropped",
        "resume_from_checkpoint": "dropped",
        "dataset_info.json.orders.num_samples": "missing",
        "dataset_info.json.orders.columns.query": "taken",
    }
    assert {name: one(llamafactory, name).outcome for name in outcomes} == outcomes
    assert [(field.value, field.outcome) for field in fields(llamafactory, "dataset")] == [
        ("orders", "taken"),
        ("others", "missing"),
    ]
    assert one(llamafactory, "lora_rank").line == 7


def test_a_config_of_axolotl_means_the_same_here(axolotl: Imported) -> None:
    settings = read(axolotl)
    folder = axolotl.path.parent
    wanted = {
        "model.source": str(folder / "base"),
        "data.path": str(folder / "rows.jsonl"),
        "data.split": "train",
        "data.columns": {"conversation": "talk"},
        "training.device": "cuda",
        "training.quantization": "nf4",
        "training.rank": 8,
        "training.targets": "all-linear",
        "training.optimizer": "paged_adamw_8bit",
        "training.schedule": "linear",
        "training.epochs": 4,
        "training.batch_size": 2,
        "training.sequence_length": 4096,
        "training.packing": True,
        "training.gradient_checkpointing": "layers",
        "training.early_stopping": 2,
        "training.seed": 42,
    }
    assert {path: settings.get(path) for path in wanted} == wanted
    outcomes = {
        "val_set_size": "missing",
        "warmup_steps": "missing",
        "special_tokens": "dropped",
        "lora_modules_to_save": "missing",
        "lr_scheduler": "approximated",
        "datasets.0.ds_type": "dropped",
        "datasets.0.roles_to_train": "missing",
        "datasets.1.path": "missing",
        "train_on_inputs": "dropped",
        "bf16": "dropped",
        "fp16": "dropped",
    }
    assert {name: one(axolotl, name).outcome for name in outcomes} == outcomes
    assert one(axolotl, "datasets.1.path").line == 13
    assert "share" in one(axolotl, "warmup_steps").why


def test_a_config_of_trl_means_the_same_here(trl: Imported) -> None:
    settings = read(trl)
    wanted = {
        "data.path": "org/rows",
        "data.split": "train_sft",
        "data.validation": "test_sft",
        "training.quantization": "nf4",
        "training.compute_dtype": "bfloat16",
        "training.rank": 64,
        "training.dropout": 0.05,
        "training.targets": "all-linear",
        "training.schedule": "constant",
        "training.gradient_checkpointing": "offload",
        "training.epochs": 3.0,
    }
    assert {path: settings.get(path) for path in wanted} == wanted
    refused = one(trl, "learning_rate")
    assert refused.outcome == "missing" and "less than or equal to 1" in refused.why
    assert settings.training.learning_rate == 2e-5, "the tool's own default stands where a value is refused"
    assert one(trl, "bnb_4bit_quant_type").outcome == "dropped"
    assert one(trl, "adam_beta2").outcome == "missing"


def leaves(tree: dict[str, Any]) -> list[str]:
    """Every field of a config as it is named in the list; rows that a list names are told one by one."""
    found = []
    for name, value in tree.items():
        if name == "datasets":
            found += [f"{name}.{n}.{field}" for n, entry in enumerate(value) for field in entry]
        else:
            found.append(name)
    return found


@pytest.mark.parametrize("tool", ["llamafactory", "axolotl", "trl"])
def test_every_field_is_told_once_and_nothing_else_is_set(tool: str, request: pytest.FixtureRequest) -> None:
    found: Imported = request.getfixturevalue(tool)
    assert found.format == tool
    wanted = leaves(yaml.safe_load(found.path.read_text()))
    told = [field.name for field in found.fields if field.outcome != "default" and field.line is not None]
    assert sorted(set(told)) == sorted(wanted)
    several = {"dataset"}
    assert len(told) == len(set(told)) or {name for name in told if told.count(name) > 1} <= several
    assert all(field.why or field.settings for field in found.fields)
    given = {path for field in found.fields for path in field.settings}
    here = {
        f"{section}.{name}" for section in found.tree if section != "version" for name in found.tree[section]
    }
    assert {path for path in given if not path.startswith("data.columns.")} <= here
    assert here - given <= {"data.columns", "training.device"}


def test_the_tables_name_settings_that_are_there() -> None:
    awaited = {"training.neftune", "tracking.to"}
    for table, values in ((LLAMAFACTORY, (1, 4, "4", True)), (AXOLOTL, (1, True)), (TRL, (1, True))):
        for rule in table.values():
            for value in (*values, "cosine", "a,b"):
                found = rule(value)
                assert set(found.values) <= set(field_paths()) | awaited
                assert found.why or found.values
    for defaults in DEFAULTS.values():
        assert set(defaults) <= set(field_paths())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\n", "cannot be told"),
        ("- a\n", "holds no table"),
        ("", "holds no table"),
        ("base_model: x\nadapter: !!python/name:os.system\n", "not valid YAML"),
        ("base_model: x\nadapter: lora\nbase_model: y\n", "second time"),
        ("training: {rank: 3}\n", "is a run.yaml already"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        import_config(path)


def test_without_rows_or_a_model_it_says_what_would_be_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("adapter: lora\nsequence_len: 512\n")
    found = import_config(path)
    for name in ("model.source", "data.path"):
        assert one(found, name).outcome == "missing" and "bundled" in one(found, name).why


def test_a_broken_table_of_data_sets_does_not_hinder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text("{" * 2000)
    path = tmp_path / "config.yaml"
    path.write_text("model_name_or_path: a\ndataset: rows\ntemplate: x\nstage: kto\nfp16: true\n")
    found = import_config(path)
    assert one(found, "dataset").outcome == "approximated" and "no such entry" in one(found, "dataset").why
    assert one(found, "stage").outcome == "missing"
    assert read(found).training.device == "cuda"
