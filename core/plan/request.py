"""What a memory prediction is asked: the settings of a training run, and how others train that we do not."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.former import present_value
from ollama_tune.core.plan.methods import as_lora, virtual_tokens
from ollama_tune.core.plan.paths import Way
from ollama_tune.core.plan.settings import ComputeDtype, TrainingSettings

AdapterDtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "flash", "eager"]
AnyOptimizer = Literal["adamw", "adamw_foreach", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
_ALIASES = {
    "checkpointing": "gradient_checkpointing",
    "attn_implementation": "attention",
    "lora_dropout": "dropout",
    "lora_r": "rank",
    "max_length": "sequence_length",
    "optim": "optimizer",
    "per_device_train_batch_size": "batch_size",
    "r": "rank",
    "target_modules": "targets",
}
"""What the arguments of transformers, TRL and peft call these keys."""
_PREFIX = "training."
_WORDS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "flash_attention": "flash",
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "adamw_torch": "adamw_foreach",
    "adamw_fused": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
    "4bit": "nf4",
}
"""What transformers' own arguments call these values."""
_WORDED = {
    "adapter_dtype",
    "attention",
    "compute_dtype",
    "loss",
    "method",
    "objective",
    "optimizer",
    "path",
    "quantization",
}
"""Keys that take one of a few words."""


class MemoryRequest(TrainingSettings):
    """The `training` section of a run.yaml for a GPU, and what published runs do otherwise.

    Every row has `sequence_length` tokens, unless rows lie end to end and `tokens` tells how many there are.
    What has no influence on memory is taken and not used.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    """Where the training runs; predictions are for a GPU."""
    compute_dtype: ComputeDtype = "bfloat16"
    """The number format of the arithmetic and of base weights that are not quantized."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=4096)
    """With more than one the gradients stay in memory while the next batch is computed."""
    method: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter, `full` every weight."""
    rank: int = Field(16, ge=1, le=768)
    """Width of the adapter; AdaLoRA begins with half as much again as the settings allow."""
    experts: bool = True
    """An adapter on all linear layers reaches the experts, too; peft's AdaLoRA does not."""
    adapter_dtype: AdapterDtype | None = None
    """Number format of the trained weights; empty: float32 adapters, with `full` the compute_dtype."""
    autocast: bool = True
    """16-bit arithmetic by autocast around float32 weights; without, adapters compute in their own format."""
    kbit_preparation: bool = False
    """Base weights that are not quantized are cast to float32, as `prepare_model_for_kbit_training` does."""
    attention: Attention = "sdpa"
    """`sdpa` (torch picks the kernel), `flash` (FlashAttention, no mask), `eager` (all scores held)."""
    padded: bool = False
    """Rows are padded to the longest, so attention needs a mask."""
    apart: bool = False
    """Rows lie end to end in one sequence and attend apart; on the fast path they always do."""
    tokens: int = Field(0, ge=0)
    """Tokens of a micro-batch whose rows lie end to end; 0: batch_size x sequence_length."""
    optimizer: AnyOptimizer = "adamw"  # type: ignore[assignment]
    """`adamw` is fused; `adamw_foreach` copies; 8 bit states; paged states are not held on the GPU."""
    loss: Literal["chunked", "full"] = "chunked"
    """`chunked` holds the logits of a few hundred tokens; `full` is the usual loss of transformers."""
    path: Literal["general", "fast"] = "general"
    """Which training code: `general` is transformers and peft, `fast` this project's own."""
    gpu: str = ""
    """Name of the card, such as `H100`; decides cuBLAS' workspace."""
    expandable_segments: bool = False
    """PyTorch's allocator with growing segments, which wastes less."""

    @model_validator(mode="after")
    def _possible(self) -> MemoryRequest:
        if self.path == "fast" and (self.method == "full" or self.dora or self.kbit_preparation):
            raise ValueError("path fast trains adapters only, without dora or kbit_preparation")
        if self.padded and self.laid:
            raise ValueError(f"path {self.path} lays rows end to end here, so they are not padded")
        if self.sharding == "fsdp" and self.method == "full":
            raise ValueError("sharding fsdp is for frozen weights; use method lora")
        if self.device == "cpu":
            raise ValueError("device cpu has no simulation; predictions are for cuda")
        if self.method == "full" and self.quantization != "none":
            raise ValueError("method full cannot train quantized weights; use lora or quantization none")
        return self

    def deciding(self) -> dict[str, Any]:
        """The values that decide memory."""
        unused = set(TrainingSettings.model_fields) - _DECIDE
        return self.model_dump(exclude=unused)

    @property
    def rows(self) -> int:
        """Rows computed at once; a pair of answers is two."""
        return self.batch_size * (2 if self.objective == "dpo" else 1)

    @property
    def laid(self) -> bool:
        """Whether rows lie end to end."""
        return self.apart or self.path == "fast"

    @property
    def micro_batch(self) -> int:
        """Tokens computed at once, padding included."""
        whole = self.rows * self.sequence_length
        return min(self.tokens or whole, whole) if self.laid else whole

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Lengths of the rows of a micro-batch: where they lie end to end, one longest and the rest alike."""
        others = self.rows - 1
        if not others or not self.laid:
            return (self.sequence_length,) * self.rows
        longest = min(self.sequence_length, self.micro_batch - others)
        each, more = divmod(self.micro_batch - longest, others)
        return longest, *(each + (place < more) for place in range(others))

    @property
    def trained_dtype(self) -> str:
        """Number format of the trained weights."""
        return self.adapter_dtype or ("float32" if self.method == "lora" else self.compute_dtype)

    @property
    def mixed(self) -> bool:
        """Whether 16-bit autocast is on while training."""
        return self.autocast and self.compute_dtype != "float32"

    @property
    def hopper(self) -> bool:
        """Whether the card is of the generation with larger cuBLAS workspaces."""
        return any(name in self.gpu.upper() for name in ("H100", "H200", "H800", "H20", "GH200"))


def as_request(training: TrainingSettings, way: Way, longest: int, tokens: int = 0) -> MemoryRequest:
    """A run's own settings as a request: float32 adapters, rows of up to `longest` tokens.

    Rows that lie end to end have `tokens` in the largest micro-batch; 0: all are as long as the longest.
    The CPU's attention holds no scores in any number format, as flash attention on a GPU; on the fast path it
    is made of products, row by row. Packed sequences are full; those of a model that has to pad take no more
    than rows of that length padded.
    """
    width, packed = training.sequence_length, training.packing
    rows, before = training.batch_size * (2 if training.objective == "dpo" else 1), virtual_tokens(training)
    several = rows > 1
    padded = way.padded and (several or packed)
    on_cpu = "eager" if way.path == "fast" else "flash" if packed or not padded else "sdpa"
    values: dict[str, Any] = training.model_dump() | {
        "device": "cuda",
        "sequence_length": max(width if packed else min(longest, width), 16) + before,
        "padded": padded,
        "apart": way.path == "general" and not padded and (several or packed),
        "tokens": 0 if packed or padded or not tokens else tokens + rows * before,
        "attention": on_cpu if training.device == "cpu" else "sdpa",
        "path": way.path,
        "method": "full" if training.method == "full" else "lora",
        "adapter_dtype": "float32",
        **as_lora(training),
    }
    known = MemoryRequest.model_fields  # looked up once: a property of pydantic's that takes its time
    return MemoryRequest(**{name: value for name, value in values.items() if name in known})


def parse_request(values: Mapping[str, Any]) -> MemoryRequest:
    """Check `key: value` pairs, with or without `training.`; `UsageError` names the nearest right one."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.removeprefix(_PREFIX)
        name = _ALIASES.get(name, name)
        if name not in MemoryRequest.model_fields:
            raise UsageError(f"There is no setting {key!r} that decides memory.", _nearest_key(name))
        found[name] = _tidy(name, value)
    try:
        return MemoryRequest.model_validate(found)
    except ValidationError as error:
        raise _wrong_value(error, found) from error


def _tidy(name: str, value: Any) -> Any:
    """Words of transformers' arguments as ours, and names with commas or blanks between them as a list.

    No module's name has a hyphen, as `all-linear` has.
    """
    value = present_value(_PREFIX + name, value)
    if name == "quantization" and not value:
        return "none"
    if not isinstance(value, str):
        return value
    if name == "targets" and "-" not in value:
        return value.replace(",", " ").split()
    word = value.strip().lower().removeprefix("torch.")
    return _WORDS.get(word, word) if name in _WORDED else value


def request_help() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every key that decides memory."""
    unused = set(TrainingSettings.model_fields) - _DECIDE
    return [
        (name, _shown(field.default), " ".join(str(field.description or "").split()))
        for name, field in MemoryRequest.model_fields.items()
        if name not in unused
    ]


_DECIDE = {
    "method",
    "objective",
    "quantization",
    "compute_dtype",
    "rank",
    "dropout",
    "targets",
    "freeze_layers",
    "batch_size",
    "gradient_accumulation_steps",
    "sequence_length",
    "gradient_checkpointing",
    "optimizer",
    "path",
    "gpus",
    "sharding",
}
"""The run's own settings that decide memory."""


def _shown(value: Any) -> str:
    if value is None:
        return "by method"
    return str(value).lower() if isinstance(value, bool) else str(value) or "any"


def _nearest_key(name: str) -> str:
    names = [*MemoryRequest.model_fields, *_ALIASES]
    close = difflib.get_close_matches(name.rpartition(".")[2], names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "`ollama-tune predict --help` lists them."


def _wrong_value(error: ValidationError, found: Mapping[str, Any]) -> UsageError:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    message = first["msg"].removeprefix("Value error, ")
    what = f"The setting {name} is wrong: {message}." if name else f"{message[0].upper()}{message[1:]}."
    allowed = _allowed(name)
    close = difflib.get_close_matches(str(found.get(name)), allowed, n=1, cutoff=0.4)
    if close:
        return UsageError(what, f"Did you mean {name}={close[0]}?")
    return UsageError(what, "`ollama-tune predict --help` says what each key takes.")


def _allowed(name: str) -> list[str]:
    """The words that a key takes, if it takes words."""
    if name not in MemoryRequest.model_fields:
        return []
    schema = MemoryRequest.model_json_schema()["properties"][name]
    options = [schema, *schema.get("anyOf", [])]
    return [str(word) for option in options for word in option.get("enum", [option.get("const")]) if word]
