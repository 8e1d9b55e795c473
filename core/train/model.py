"""Loads the base model and puts an adapter on it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import ALL_LINEAR, Recompute, TrainingSettings

disable_progress_bar()  # type: ignore[no-untyped-call]


def compute_dtype(training: TrainingSettings) -> torch.dtype:
    """The torch type of `training.compute_dtype`."""
    dtype = getattr(torch, training.compute_dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def autocast(training: TrainingSettings) -> Any:
    """16-bit arithmetic around float32 adapter weights; nothing where the run computes in float32."""
    if training.compute_dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(training.device, dtype=compute_dtype(training))


def load_base(folder: Path, training: TrainingSettings, dtype: torch.dtype | None = None) -> Any:
    """The base model from local files, frozen and in evaluation mode, on the device of the settings.

    Its weights are in the compute dtype, or in `dtype`.
    No code from the model's folder is run and no pickle is read; attention is torch's SDPA wherever the
    architecture has it. The folder's own sampling settings are dropped: they would bend measurements.
    """
    _check_device(training.device)
    options: dict[str, Any] = {"dtype": dtype or compute_dtype(training), "device_map": {"": training.device}}
    if training.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype(training),
        )
    model = _load(folder, options)
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    _keep_differentiable(model)
    return model.train(False)


def _keep_differentiable(model: Any) -> None:
    """Keep bitsandbytes from laying its weights out anew on the CPU at the first evaluation.

    It never turns them back, and what it computes with them passes no gradient on: all later steps would be
    wrong (measured with its 0.50.2 on a CPU with AVX512-BF16).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _load(folder: Path, options: dict[str, Any]) -> Any:
    """Load, and refuse weights that are absent or of another shape: they would silently be random."""
    options |= {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unusable(folder, type(error).__name__, str(error)) from error
    model, report = loaded
    wrong = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if wrong:
        first = min(wrong)
        raise _unusable(folder, f"{len(wrong)} weights such as {first} do not fit its config.json", "")
    return model


def _unusable(folder: Path, why: str, details: str) -> TuneError:
    return TuneError(
        f"The model in {folder} cannot be loaded: {why}.",
        "Download it again or choose another model.",
        details=details[:2000],
    )


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise TuneError(
            "The settings ask for a GPU, but torch finds none.",
            "Set training.device to cpu, or install a torch build for this GPU's driver.",
        )


Places = Mapping[str, Any]
"""Where PEFT puts adapters, as the settings that say so."""
Configure = Callable[[TrainingSettings, Places], PeftConfig]
"""Makes PEFT's settings of ours."""


def lora_config(training: TrainingSettings, places: Places) -> PeftConfig:
    """PEFT's settings of a LoRA adapter."""
    return LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=training.dropout,
        **places,
        task_type="CAUSAL_LM",
        use_rslora=training.rslora,
        use_dora=training.dora,
    )


def add_adapter(
    base: Any,
    training: TrainingSettings,
    name: str,
    configure: Configure = lora_config,
) -> PeftModel:
    """Put a fresh adapter (float32, seeded) on the base; `name` is what the adapter says its base is."""
    if training.targets != ALL_LINEAR:
        _check_targets(base, training.targets)
    torch.manual_seed(training.seed)
    base.config._name_or_path = name
    base.name_or_path = name
    with _old_names():
        model = get_peft_model(base, configure(training, _places(base, training)))
    recompute(base, training.gradient_checkpointing)
    return model


def _places(base: Any, training: TrainingSettings) -> dict[str, Any]:
    """Where PEFT puts adapters: by the names of modules, in all layers but the first ones that stay frozen.

    It takes numbers of layers beside a list of names only.
    """
    frozen, targets = training.freeze_layers, training.targets
    if not frozen:
        return {"target_modules": targets}
    names = linear_names(base) if targets == ALL_LINEAR else targets
    pattern, layers = decoder_layers(base)
    learning = list(range(frozen, len(layers)))
    return {"target_modules": names, "layers_to_transform": learning, "layers_pattern": pattern}


def thaw(model: Any, frozen: int) -> None:
    """Let all weights learn; with frozen layers neither those nor the embedding, which comes before them.

    A head that is the embedding itself then stays as it is, too.
    """
    model.requires_grad_(True)
    if frozen:
        model.get_input_embeddings().requires_grad_(False)
        for layer in decoder_layers(model)[1][:frozen]:
            layer.requires_grad_(False)


def decoder_layers(model: Any) -> tuple[str, list[torch.nn.Module]]:
    """The decoder's layers, in their order, and what their family calls the list: `layers`, `h` or so."""
    count = model.config.get_text_config().num_hidden_layers
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == count:
            return name.rpartition(".")[2], list(part)
    raise TuneError(
        "The layers of this model are not found.",
        "Set training.freeze_layers to 0, and training.sharding to ddp.",
    )


def recompute(base: Any, what: Recompute) -> None:
    """From now on compute again in the backward pass what is named; a second call changes nothing.

    `mlp` is every layer's part of that name; where the layers have none, and for `offload`, the whole layers.
    """
    parts = [module for name, module in base.named_modules() if name.endswith(".mlp")]
    if what == "none":
        return
    if what == "mlp" and parts:
        for part in parts:
            if not hasattr(part.forward, "plain"):
                part.forward = _recomputed(part)
        return
    for part in parts:
        part.forward = getattr(part.forward, "plain", part.forward)
    with _old_names():
        if not base.is_gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.disable_input_require_grads()  # which only the reentrant kind needs


def _recomputed(part: Any) -> Any:
    """The part's forward pass, of which only the input is kept for the backward pass."""
    plain = part.forward

    def forward(*inputs: Any) -> Any:
        return checkpoint(plain, *inputs, use_reentrant=False) if torch.is_grad_enabled() else plain(*inputs)

    forward.plain = plain  # type: ignore[attr-defined]
    return forward


def load_adapter(base: Any, folder: Path) -> PeftModel:
    """Put a finished adapter on the base, for answering only."""
    with _old_names():
        return PeftModel.from_pretrained(base, str(folder), local_files_only=True).eval()


@contextlib.contextmanager
def _old_names() -> Iterator[None]:
    """Gradient checkpointing has a new name in newer transformers; the old one works, with a warning."""
    with warnings.catch_warnings():
        old = "`(is_gradient_checkpointing|gradient_checkpointing_enable)` is deprecated"
        warnings.filterwarnings("ignore", old, FutureWarning)
        yield


def linear_names(base: Any) -> list[str]:
    """The names an adapter can target: the last parts of the linear layers' names, without the head."""
    head = base.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return sorted(found)


def _check_targets(base: Any, targets: list[str]) -> None:
    known = linear_names(base)
    for target in targets:
        if target.rpartition(".")[2] not in known:
            raise TuneError(
                f"The model has no linear layer called {target!r}.",
                f"Choose training.targets from {', '.join(known)}, or all-linear.",
            )


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's weights by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def tensor_bytes(tensors: Any) -> int:
    """The size of tensors in bytes; of shared ones the part that is here."""
    here = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in here)
