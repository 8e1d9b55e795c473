"""The settings as form fields: their words, what is allowed, and text to value and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.stopping import OF_LABELS, TITLES

if TYPE_CHECKING:
    from ollama_tune.core.plan.values import Plan


@dataclass(frozen=True)
class FormField:
    """One field of the form: its dotted path, its words, the unit beside it, and words for its values.

    A field without such words takes numbers, or any text where `wordy` is set.
    """

    path: str
    label: str
    unit: str = ""
    words: tuple[tuple[Any, str], ...] = ()
    width: int = 14
    wordy: bool = False


YES_NO = ((False, "no"), (True, "yes"))
METHODS = (
    ("lora", "an adapter (LoRA)"),
    ("adalora", "an adapter (AdaLoRA)"),
    ("prompt", "a soft prompt"),
    ("ptuning", "a soft prompt (p-tuning)"),
    ("full", "all weights"),
)
STOPPING = tuple(
    (metric, f"{title} (labels)" if metric in OF_LABELS else title)
    for metric, title in {**TITLES, "loss": "loss"}.items()
)
OBJECTIVES = (("sft", "the answers"), ("dpo", "preferences (DPO)"))
PATHS = (("auto", "chosen by the model"), ("fast", "fast: own code"), ("general", "general: peft"))
RECOMPUTE = (
    ("none", "nothing"),
    ("mlp", "half of a layer"),
    ("layers", "whole layers"),
    ("offload", "layers, kept in RAM"),
)
SHARDING = (
    ("auto", "chosen by memory"),
    ("ddp", "the whole model (DDP)"),
    ("fsdp", "a part of it (FSDP)"),
)
OPTIMIZERS = (
    ("adamw", "AdamW"),
    ("adamw_8bit", "AdamW in 8 bit"),
    ("paged_adamw_8bit", "AdamW 8 bit, paged"),
)
GGUF_WORDS = (
    ("f32", "F32, 32 bit"),
    ("f16", "F16, 16 bit"),
    ("bf16", "BF16, 16 bit"),
    ("q8_0", "Q8_0, 8 bit"),
    ("q6_k", "Q6_K, 6 bit"),
    ("q5_k_m", "Q5_K_M, 5 bit"),
    ("q4_k_m", "Q4_K_M, 4 bit"),
    ("q4_k_s", "Q4_K_S, 4 bit"),
    ("q4_0", "Q4_0, 4 bit"),
)

FIRST = (
    FormField("training.epochs", "Epochs", "passes over all rows"),
    FormField("training.learning_rate", "Learning rate", "size of a step"),
    FormField("training.batch_size", "Batch size", "rows at once"),
    FormField("training.sequence_length", "Sequence length", "tokens, longest row"),
    FormField("data.validation_split", "Held-out share", "of the rows, to measure on"),
    FormField(
        "training.quantization", "Base weights", "", (("none", "full precision"), ("nf4", "4 bit (NF4)")), 20
    ),
    FormField("export.type", "File for Ollama", "", GGUF_WORDS, 20),
    FormField("export.name", "Name in Ollama", width=34, wordy=True),
)

EXPORT_MORE = (
    FormField("export.importance", "Importance", "for 4- to 6-bit types", YES_NO),
    FormField("export.system", "System prompt", width=44, wordy=True),
    FormField("export.push", "Send to Ollama", "when it answers", YES_NO),
)

MORE = (
    FormField("training.method", "What is trained", "", METHODS, 28),
    FormField("training.objective", "What is learned", "", OBJECTIVES, 22),
    FormField("training.beta", "Beta", "of DPO; larger: nearer the base"),
    FormField("training.rank", "Rank", "width of the adapter"),
    FormField("training.alpha", "Alpha", "strength = alpha / rank"),
    FormField("training.dropout", "Dropout", "share set to zero"),
    FormField("training.targets", "Adapted layers", width=34, wordy=True),
    FormField("training.freeze_layers", "Frozen layers", "the first so many"),
    FormField("training.neftune", "Embedding noise", "NEFTune's alpha; 0: none"),
    FormField("training.virtual_tokens", "Virtual tokens", "length of a soft prompt"),
    FormField("training.rslora", "rsLoRA", "alpha / sqrt(rank)", YES_NO),
    FormField("training.dora", "DoRA", "length and direction", YES_NO),
    FormField("training.gradient_accumulation_steps", "Accumulation", "batches a step"),
    FormField("training.gradient_checkpointing", "Recompute", "instead of keeping", RECOMPUTE, 24),
    FormField("training.packing", "Packing", "rows end to end", YES_NO),
    FormField("training.device", "Device", "", (("cpu", "CPU"), ("cuda", "GPU (CUDA)")), 20),
    FormField("training.gpus", "GPUs", "that train together; 0: all"),
    FormField("training.sharding", "Each GPU holds", "of the model", SHARDING, 26),
    FormField(
        "training.compute_dtype",
        "Number format",
        "",
        (("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")),
        20,
    ),
    FormField("training.path", "Training code", "", PATHS, 24),
    FormField("training.optimizer", "Optimizer", "", OPTIMIZERS, 24),
    FormField(
        "training.schedule",
        "Schedule",
        "after the warm-up",
        (("cosine", "cosine"), ("linear", "linear"), ("constant", "constant")),
        20,
    ),
    FormField("training.warmup", "Warm-up", "share of the steps"),
    FormField("training.weight_decay", "Weight decay"),
    FormField("training.max_gradient_norm", "Gradient limit", "longest gradient"),
    FormField("training.evaluation_interval", "Measure every", "steps; 0: eight times a run"),
    FormField("training.early_stopping", "Stop early", "evaluations without gain; 0: never"),
    FormField("training.early_stopping_metric", "Best by", "on held-out rows", STOPPING, 22),
    FormField("training.checkpoint_minutes", "Checkpoint every", "minutes"),
    FormField("training.seed", "Seed", "order and start values"),
    FormField("data.seed", "Split seed", "which rows are held out"),
    FormField("evaluation.rows", "Answers compared", "held-out rows"),
    FormField("evaluation.max_new_tokens", "Longest answer", "tokens"),
    *EXPORT_MORE,
    FormField("export.also", "Write as well", "merged, adapter, …", width=34, wordy=True),
    FormField("tracking.to", "Figures also to", "tensorboard, mlflow, …", width=34, wordy=True),
    FormField("tracking.project", "Project there", width=34, wordy=True),
    FormField("tracking.folder", "TensorBoard in", "empty: the run's folder", width=34, wordy=True),
)

LISTS = ("training.targets", "export.also", "tracking.to")
OPTIONAL = ("export.name", "export.system")
FIELDS = {field.path: field for field in FIRST + MORE}


def text_of(field: FormField, value: Any) -> str:
    """A value as it stands in the form."""
    for option, words in field.words:
        if option == value:
            return words
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_of(field: FormField, text: str) -> Any:
    """What was typed, as `Settings` takes it; whether it is allowed is for `check` to say."""
    text = text.strip()
    if field.path in LISTS and text != "all-linear":
        return [name.strip() for name in text.split(",") if name.strip()]
    return (text or None) if field.path in OPTIONAL else text


def check(plan: Plan, field: FormField, value: Any) -> Any:
    """The value in its own type, or `UsageError` with one sentence that says what is allowed.

    It has to go with what the person set besides; what was recommended follows it.
    """
    if field.path == "export.name" and value is not None:
        from ollama_tune.core.plan.names import check_ollama_name

        check_ollama_name(value)
    try:
        return plan.given().with_value(field.path, value).get(field.path)
    except UsageError as error:
        if field.path not in error.what:
            raise
        raise UsageError(allowed(field, plan.settings.get(field.path)), "Type another value.") from error


def allowed(field: FormField, example: Any) -> str:
    """One sentence on what a field takes, from its own limits, with an example."""
    from ollama_tune.core.plan.schema import field_info, limit_words

    info = field_info(field.path)
    kind, limits = _kind(info.annotation), limit_words(info)
    sentence = " ".join(part for part in (kind, limits) if part)
    shown = text_of(field, example)
    return f"This must be {sentence}, for example {shown}." if shown else f"This must be {sentence}."


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is list and get_origin(get_args(annotation)[0]) is Literal:
        return "with commas, some of " + ", ".join(get_args(get_args(annotation)[0]))
    return {int: "a whole number", float: "a number"}.get(annotation, "a list of names with commas")
