"""Configs as other tools publish them, with rows in the shapes that go with them: read, and then planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.plan.import_config import Imported, import_config
from ollama_tune.core.plan.prepare import prepare_file

from .imported import one, read

ROWS = 40
LLAMAFACTORY = """\
model_name_or_path: bundled
trust_remote_code: true
do_train: true
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
output_dir: saves/out
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
ddp_timeout: 180000000
"""
AXOLOTL = """\
base_model: bundled
val_set_size: 0.05
output_dir: ./outputs/out
sequence_len: 2048
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
attn_implementation: flash_attention_2
warmup_ratio: 0.1
evals_per_epoch: 4
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
INFO = {
    "alpaca": {"file_name": "alpaca.json"},
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "judged": {
        "file_name": "judged.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": {"role_tag": "role", "content_tag": "content"},
    },
    "plain": {"file_name": "plain.json", "columns": {"prompt": "text"}},
}


def rows_of(shape: str, number: int) -> dict[str, Any]:
    asked, answered = f"What does dish {number} cost?", f"It costs {number % 9} coins."
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    human = {"from": "human", "value": asked}
    return {
        "alpaca": {"instruction": asked, "input": "", "output": answered},
        "pairs": {
            "conversations": [human],
            "chosen": {"from": "gpt", "value": answered},
            "rejected": {"from": "gpt", "value": "No idea."},
        },
        "messages_pairs": {
            "conversation": turns[:1],
            "chosen": turns[1],
            "rejected": {"role": "assistant", "content": "No idea."},
        },
        "judged": {"messages": turns, "label": bool(number % 2)},
        "messages": {"messages": turns},
        "plain": {"text": f"{asked} {answered} " * 4, "timestamp": "2019"},
        "chapters": {"chapter": f"{asked} {answered} " * 4, "title": "Prices"},
    }[shape]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset_info.json").write_text(json.dumps(INFO))
    for shape in (*INFO, "messages_pairs", "messages", "chapters"):
        rows = [rows_of(shape, number) for number in range(ROWS)]
        (data / f"{shape}.json").write_text(json.dumps(rows))
    return tmp_path


def imported(folder: Path, text: str) -> Imported:
    (folder / "config.yaml").write_text(text)
    return import_config(folder / "config.yaml")


def lora(path: str, kind: str, more: str = "") -> str:
    dataset = f"datasets:\n  - path: data/{path}.json\n    type: {kind}\n{more}"
    return f"{AXOLOTL}{dataset}adapter: lora\nlora_r: 32\nlora_alpha: 16\nlora_target_linear: true\n"


PAIRS = "    field_messages: conversation\n    field_chosen: chosen\n    field_rejected: rejected\n"
CONFIGS = {
    "lf sft": (
        f"{LLAMAFACTORY}stage: sft\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\n"
        "dataset: alpaca\nbf16: true\n",
        {"training.method": "lora", "training.alpha": 16, "training.compute_dtype": "bfloat16"},
        15,
    ),
    "lf qlora": (
        f"{LLAMAFACTORY}stage: sft\nfinetuning_type: lora\nquantization_bit: 4\ndataset: alpaca\n",
        {"training.quantization": "nf4"},
        15,
    ),
    "lf full": (
        f"{LLAMAFACTORY}stage: sft\nfinetuning_type: full\ndeepspeed: z3.json\ndataset: alpaca\n",
        {"training.method": "full", "training.rank": 16},
        15,
    ),
    "lf dpo": (
        f"{LLAMAFACTORY}stage: dpo\nfinetuning_type: lora\npref_beta: 0.2\npref_loss: sigmoid\n"
        "dataset: pairs\n",
        {"training.objective": "dpo", "training.beta": 0.2},
        15,
    ),
    "lf kto": (f"{LLAMAFACTORY}stage: kto\nfinetuning_type: lora\ndataset: judged\n", {}, 9),
    "lf pt": (
        f"{LLAMAFACTORY}stage: pt\nfinetuning_type: lora\ndataset: plain\n",
        {"data.form": "text", "data.columns": {}},
        15,
    ),
    "ax lora": (lora("messages", "chat_template"), {"training.rank": 32}, 20),
    "ax dpo": (
        f"{lora('messages_pairs', 'chat_template.default', PAIRS)}rl: dpo\n",
        {"training.objective": "dpo"},
        20,
    ),
    "ax dpo full": (
        f"{AXOLOTL}rl: dpo\ndatasets:\n  - path: data/messages_pairs.json\n{PAIRS}",
        {"training.objective": "dpo", "training.method": "lora"},
        20,
    ),
    "ax completion": (
        lora("chapters", "completion", "    field: chapter\n"),
        {"data.form": "text", "data.columns": {"text": "chapter"}},
        20,
    ),
    "ax pretraining": (
        f"{AXOLOTL}adapter: lora\n"
        "pretraining_dataset:\n  - path: data/chapters.json\n    text_column: chapter\n",
        {"data.form": "text", "data.columns": {"text": "chapter"}},
        20,
    ),
    "ax fsdp": (
        f"{AXOLOTL}adapter: qlora\nload_in_4bit: true\nfsdp: [full_shard]\nfsdp_config: {{fsdp_version: 2}}\n"
        "datasets:\n  - path: data/alpaca.json\n    type: alpaca\n",
        {"training.quantization": "nf4"},
        20,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_read_can_be_planned_with_rows_in_its_shape(folder: Path, name: str) -> None:
    text, wanted, steps = CONFIGS[name]
    found = imported(folder, text)
    settings = read(found)
    assert {path: settings.get(path) for path in wanted} == wanted
    plan = prepare_file(found.path.with_name("run.yaml"), {"training.device": "cpu"}).plan
    assert plan.work.steps == steps
    assert {path: plan.settings.get(path) for path in wanted} == wanted
    assert not [warning for warning in plan.warnings if "does not use" in warning]


def test_a_method_that_is_not_here_says_what_is_learned_instead(folder: Path) -> None:
    found = imported(folder, CONFIGS["lf kto"][0])
    assert "learns the answers" in one(found, "stage").why


def test_plain_text_of_llamafactory_stands_in_the_column_of_its_prompts(folder: Path) -> None:
    found = imported(folder, CONFIGS["lf pt"][0].replace("plain", "chapters"))
    assert "data.columns" not in str(found.tree)
    info = {"chapters": {"file_name": "chapters.json", "columns": {"prompt": "chapter"}}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    found = imported(folder, CONFIGS["lf pt"][0].replace("plain", "chapters"))
    assert read(found).data.columns == {"text": "chapter"}
