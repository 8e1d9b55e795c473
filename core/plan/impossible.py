"""Which settings exclude each other, each with the sentence that a person gets; one row a combination."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings, TrainingSettings

SOFT_PROMPTS = ("prompt", "ptuning")
"""Methods that train vectors before the text instead of weights."""

Row = tuple[bool, str, str]
"""Whether it is asked for, the fields (of `training` where no section is named), and why not."""


def impossible(settings: Settings) -> list[tuple[tuple[str, ...], str]]:
    """What is asked for and no run can do: the dotted fields that do not go together, what to change first,
    and why not with what to set instead."""
    training = settings.training
    rows = [
        *_on_the_cpu(training),
        *_forms(training),
        *_soft_prompts(settings),
        *_full(settings),
        *_measured(settings),
        *_preferences(training),
        *_shared_out(training),
    ]
    found = [(names.split(), why) for asked, names, why in rows if asked]
    return [(tuple(n if "." in n else f"training.{n}" for n in names), why) for names, why in found]


def _on_the_cpu(training: TrainingSettings) -> list[Row]:
    cpu = training.device == "cpu"
    return [
        (
            cpu and training.compute_dtype == "float16",
            "compute_dtype device",
            "compute_dtype float16 needs a GPU; use float32 or bfloat16 on the CPU",
        ),
        (
            cpu and training.optimizer.startswith("paged"),
            "optimizer device",
            "optimizer paged_adamw_8bit needs a GPU to move its states from; use adamw_8bit",
        ),
    ]


def _forms(training: TrainingSettings) -> list[Row]:
    """What only method lora has: forms of its adapter, and the fast path."""
    fast, other = training.path == "fast", training.method != "lora"
    return [
        (
            fast and training.dora,
            "path dora",
            "path fast does not compute dora; use path auto or general",
        ),
        (
            fast and other,
            "path method",
            f"path fast trains method lora only, not {training.method}; use path auto or general",
        ),
        (
            other and (training.dora or training.rslora),
            "dora rslora method",
            f"dora and rslora are forms of method lora, not of {training.method}; set them to no",
        ),
    ]


def _soft_prompts(settings: Settings) -> list[Row]:
    training, export = settings.training, settings.export
    soft = training.method in SOFT_PROMPTS
    return [
        (
            soft and training.packing,
            "packing method",
            f"method {training.method} puts its tokens before every row, so rows cannot be packed; set "
            "packing to no",
        ),
        (
            soft and training.freeze_layers > 0,
            "freeze_layers method",
            f"method {training.method} trains no layer; set freeze_layers to 0",
        ),
        (
            soft and bool(export.name or export.also),
            "export.name export.also method",
            f"Ollama's files have no place for the soft prompt of method {training.method}; leave "
            "export.name and export.also empty",
        ),
    ]


def _full(settings: Settings) -> list[Row]:
    full = settings.training.method == "full"
    return [
        (
            full and settings.training.quantization != "none",
            "quantization method",
            "method full trains the weights themselves, which 4 bit cannot hold; use quantization none, or "
            "method lora",
        ),
        (
            full and any(form != "merged" for form in settings.export.also),
            "export.also method",
            "method full makes no adapter to write besides the file; leave adapter out of export.also",
        ),
    ]


def _measured(settings: Settings) -> list[Row]:
    held_out = bool(settings.data.validation_split or settings.data.validation)
    metric = settings.training.early_stopping_metric
    return [
        (
            metric != "loss" and not settings.evaluation.rows and held_out,
            "early_stopping_metric evaluation.rows",
            "early_stopping_metric needs questions to ask; set evaluation.rows above 0, or choose loss",
        ),
    ]


def _preferences(training: TrainingSettings) -> list[Row]:
    dpo = training.objective == "dpo"
    return [
        (
            dpo and training.method in ("full", *SOFT_PROMPTS),
            "objective method",
            "objective dpo compares with the model without its adapter, which is not there with method "
            f"{training.method}; use method lora or adalora",
        ),
        (
            dpo and training.packing,
            "packing objective",
            "objective dpo computes both answers of a pair together, so pairs are not packed; use packing no",
        ),
    ]


def _shared_out(training: TrainingSettings) -> list[Row]:
    sharded = training.sharding == "fsdp"
    return [
        (
            sharded and (training.method != "lora" or training.dora),
            "sharding method dora",
            "sharding fsdp trains method lora, without dora; use sharding ddp",
        ),
        (
            sharded and training.path == "fast",
            "sharding path",
            "path fast does not share out a model; use path auto or general, or sharding ddp",
        ),
    ]
