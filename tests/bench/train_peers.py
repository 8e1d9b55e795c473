"""One contender of the training bench that is not ours, run by the peers' own interpreter: `python FILE JOB`.

Imports nothing of this project. JOB is a JSON object: name, device, quantization, model, rows, steps, batch,
accumulation, checkpointing (of `plain` alone), sequence, rank, alpha, learning_rate, seed, folder. The last
line printed is a JSON object: steps[{useful_tokens, supervised_tokens, cpu_seconds, seconds, loss}],
first{cpu_seconds, time} at the end of the first step, memory (bytes reserved on a GPU at most, else 0),
versions{}.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PAD = 0
IGNORED = -100
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "liger-kernel",
    "unsloth",
    "llamafactory",
    "bitsandbytes",
    "accelerate",
    "datasets",
)
Job = dict[str, Any]


class Record:
    """What each optimizer step cost and learned from."""

    def __init__(self, device: str) -> None:
        self.steps: list[dict[str, Any]] = []
        self.first: dict[str, float] = {}
        self._device = device
        self._useful = self._supervised = 0
        self._began = self._clock = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._wait()
        self._useful = self._supervised = 0
        self._began, self._clock = time.process_time(), time.perf_counter()

    def see(self, ids: Any, labels: Any) -> None:
        """A micro-batch is computed; its first label of each sequence predicts nothing."""
        self._useful += int((ids != PAD).sum())
        self._supervised += int((labels[..., 1:] != IGNORED).sum())

    def end(self, loss: float | None = None) -> None:
        """The weights have changed."""
        self._wait()
        now = time.process_time()
        self.first = self.first or {"cpu_seconds": now, "time": time.time()}
        self.steps.append(
            {
                "useful_tokens": self._useful,
                "supervised_tokens": self._supervised,
                "cpu_seconds": now - self._began,
                "seconds": time.perf_counter() - self._clock,
                "loss": loss,
            }
        )

    def memory(self) -> int:
        """Bytes that torch held on the GPU at most."""
        import torch

        return torch.cuda.max_memory_reserved() if self._device == "cuda" else 0

    def _wait(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()


def nf4() -> Any:
    """4-bit weights, as in QLoRA."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def lora(job: Job) -> Any:
    """The adapter of every peft contender."""
    from peft import LoraConfig

    return LoraConfig(
        r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )


# TRL


def trl(job: Job, record: Record, model: Any = None, **options: Any) -> None:
    """`SFTTrainer` with its defaults but for what the bench fixes and the given options."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            record.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            record.end()

    class Counting(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            record.see(inputs["input_ids"], inputs["labels"])
            return super().training_step(model, inputs, *rest, **named)

    more: dict[str, Any] = {"max_length": None if options.get("padding_free") else job["sequence"]}
    named = {"peft_config": lora(job)} if model is None else {}
    if model is None and job["device"] == "cuda":
        more["model_init_kwargs"] = {"dtype": "bfloat16"}
    if model is None and job["quantization"] == "nf4":
        named["quantization_config"] = nf4()
    arguments = SFTConfig(
        output_dir=job["folder"],
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=job["accumulation"],
        max_steps=job["steps"],
        learning_rate=job["learning_rate"],
        seed=job["seed"],
        assistant_only_loss=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=job["device"] == "cpu",
        **more,
        **options,
    )
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    trainer = Counting(
        model=model or job["model"],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[Steps()],
        **named,
    )
    trainer.train()


def unsloth(job: Job, record: Record, keep_all: bool = False) -> None:
    """Unsloth's model in TRL's trainer, as its documentation shows; its own checkpointing needs a GPU."""
    from unsloth import FastLanguageModel

    own = "unsloth" if job["device"] == "cuda" else True
    checkpointing = False if keep_all else own
    model, _ = FastLanguageModel.from_pretrained(
        job["model"],
        max_seq_length=job["sequence"],
        load_in_4bit=job["quantization"] == "nf4",
        use_gradient_checkpointing=checkpointing,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=job["rank"],
        lora_alpha=job["alpha"],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing=checkpointing,
        random_state=job["seed"],
    )
    trl(job, record, model)


def llama_factory(job: Job, record: Record, **options: Any) -> None:
    """LLaMA-Factory's LoRA recipe with its defaults but for what the bench fixes, in bfloat16."""
    from llamafactory.train.sft import workflow
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            record.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            record.end()

    class Counting(workflow.CustomSeq2SeqTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            record.see(inputs["input_ids"], inputs["labels"])
            return super().training_step(model, inputs, *rest, **named)

    workflow.CustomSeq2SeqTrainer = Counting
    rows = Path(job["rows"])
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {"file_name": str(rows), "formatting": "sharegpt", "columns": {"messages": "messages"}}
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    listed = {"bench": {**about, "tags": {**tags, "system_tag": "system"}}}
    (folder / "dataset_info.json").write_text(json.dumps(listed))
    arguments = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": job["rank"],
        "lora_alpha": job["alpha"],
        "model_name_or_path": job["model"],
        "template": "chatml",
        "dataset": "bench",
        "dataset_dir": str(folder),
        "cutoff_len": job["sequence"],
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["accumulation"],
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "seed": job["seed"],
        "bf16": True,
        "use_cpu": job["device"] == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    run_exp({**arguments, **options}, callbacks=[Steps()])


# transformers and peft, without a trainer


def tokenized(job: Job) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = []
    for line in Path(job["rows"]).read_text().splitlines():
        made = tokenizer.apply_chat_template(
            json.loads(line)["messages"],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        marks = zip(made["input_ids"], made["assistant_masks"], strict=True)
        rows.append((made["input_ids"], [token if on else IGNORED for token, on in marks]))
    return rows


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """One batch, padded on the right to its longest row."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def shuffled(job: Job) -> Iterator[list[list[tuple[list[int], list[int]]]]]:
    """The micro-batches of each step, of rows in a random order."""
    rows = tokenized(job)
    random.Random(job["seed"]).shuffle(rows)
    waiting = iter(rows)
    for _ in range(job["steps"]):
        parts = range(job["accumulation"])
        yield [[next(waiting) for _ in range(job["batch"])] for _ in parts]


def plain(job: Job, record: Record) -> None:
    """A loop of one's own: padded batches, bfloat16 autocast, the loss of the model."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(job["seed"])
    options = {"quantization_config": nf4()} if job["quantization"] == "nf4" else {}
    base = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.bfloat16, device_map={"": job["device"]}, **options
    )
    if job["checkpointing"]:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    model = get_peft_model(base, lora(job)).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=job["learning_rate"], fused=True)
    for parts in shuffled(job):
        record.begin()
        total = 0.0
        for rows in parts:
            batch = padded(rows)
            record.see(batch["input_ids"], batch["labels"])
            with torch.autocast(job["device"], dtype=torch.bfloat16):
                moved = {name: tensor.to(job["device"]) for name, tensor in batch.items()}
                loss = model(**moved, use_cache=False).loss / len(parts)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        record.end(total)


CONTENDERS: dict[str, Callable[[Job, Record], None]] = {
    "trl": trl,
    "trl-padding-free": lambda job, record: trl(job, record, padding_free=True),
    "trl-packing": lambda job, record: trl(job, record, packing=True),
    "trl-liger": lambda job, record: trl(job, record, use_liger_kernel=True),
    "plain": plain,
    "llamafactory": llama_factory,
    "llamafactory-packing": lambda job, record: llama_factory(job, record, packing=True),
    "llamafactory-keep-all": lambda job, record: llama_factory(
        job, record, disable_gradient_checkpointing=True
    ),
    "unsloth": unsloth,
    "unsloth-keep-all": lambda job, record: unsloth(job, record, keep_all=True),
}


def versions() -> dict[str, str]:
    """What is installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Train as the job says, or without a job tell the versions."""
    if len(sys.argv) == 1:
        print(json.dumps(versions()))
        return
    job: Job = json.loads(sys.argv[1])
    record = Record(job["device"])
    CONTENDERS[job["name"]](job, record)
    found = {"steps": record.steps, "first": record.first, "memory": record.memory()}
    print(json.dumps({**found, "versions": versions()}))


if __name__ == "__main__":
    main()
