"""Builds the model of a run without weights: the real classes with fake tensors, with only some layers.

Transformers, bitsandbytes and peft build their modules on the meta device; then every parameter and
buffer becomes a fake tensor of the CPU, because fake CUDA tensors abort a torch without CUDA.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch
from peft import prepare_model_for_kbit_training
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers.auto import AutoHfQuantizer

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.train.cuda_like import FLASH
from ollama_tune.core.train.fake_nf4 import empty_nf4
from ollama_tune.core.train.memtrace import NotSimulated
from ollama_tune.core.train.model import add_adapter, decoder_layers, linear_names, recompute, thaw


@dataclass(frozen=True)
class FakeModel:
    """A model ready to train; `causal` is the model without peft's wrapping.

    `changes_logits` is True where the loss needs the model's own logits.
    """

    causal: Any
    quantization: tuple[tuple[torch.nn.Module, torch.Tensor], ...]
    changes_logits: bool

    @property
    def layers(self) -> Sequence[torch.nn.Module]:
        """The decoder's layers; families call the list `layers`, `h` or otherwise."""
        try:
            return decoder_layers(self.causal)[1]
        except TuneError as error:
            raise _not_simulated("its layers are not found", type(self.causal).__name__) from error

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The weights that are trained."""
        return [weight for weight in self.causal.parameters() if weight.requires_grad]


def read_config(values: Mapping[str, Any]) -> Any:
    """The transformers configuration of a `config.json`; `NotSimulated` where there is none for it."""
    tree = dict(values)
    model_type = str(tree.pop("model_type", ""))
    tree.pop("quantization_config", None)
    try:
        return AutoConfig.for_model(model_type, **tree)
    except Exception as error:
        raise _not_simulated(f"its config.json is refused ({type(error).__name__})", str(error)) from error


def layer_kinds(config: Any) -> list[tuple[str, ...]]:
    """What tells each layer from another: the elements of every list with one element a layer."""
    count = config.num_hidden_layers
    lists = [value for value in vars(config).values() if isinstance(value, list) and len(value) == count]
    return [tuple(str(column[index]) for column in lists) for index in range(count)]


def shortened(config: Any, layers: Sequence[int]) -> Any:
    """The configuration of the same model with only the layers of these numbers."""
    count, short = config.num_hidden_layers, copy.deepcopy(config)
    short.num_hidden_layers = len(layers)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == count:
            setattr(short, name, [value[index] for index in layers])
    return short


def build(config: Any, request: MemoryRequest, fake: Any) -> FakeModel:
    """The model that a run of these settings would train; all tensors belong to the fake mode `fake`."""
    causal = on_meta(config, request)
    trained = getattr(torch, request.trained_dtype)
    with fake:
        quantization = tuple(_materialize(causal, trained, whole=request.method == "full"))
        causal.tie_weights()
    return FakeModel(causal.train(), quantization, changes_logits(config))


def on_meta(config: Any, request: MemoryRequest) -> Any:
    """The model with its adapter on the meta device: every module, nothing in memory."""
    with torch.device("meta"), _quiet():
        causal = _base(config, request)
        if request.method == "lora":
            names = {} if request.experts else {"targets": linear_names(causal)}
            add_adapter(causal, request.model_copy(update=names), "")
        else:
            thaw(causal, request.freeze_layers)
            recompute(causal, request.gradient_checkpointing)
    return causal


_from_config: Any = AutoModelForCausalLM.from_config


def _base(config: Any, request: MemoryRequest) -> Any:
    """The frozen model on the meta device, loaded as the worker loads it."""
    dtype = getattr(torch, request.compute_dtype)
    options = {"flash": {"attn_implementation": FLASH}, "eager": {"attn_implementation": "eager"}}
    try:
        causal = _from_config(config, dtype=dtype, **options.get(request.attention, {}))
    except Exception as error:
        raise _not_simulated(f"it cannot be built ({type(error).__name__})", str(error)) from error
    causal.requires_grad_(False)
    if request.quantization == "nf4":
        settings = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        AutoHfQuantizer.from_config(settings).preprocess_model(causal, dtype=dtype, device_map=None)
        causal.is_loaded_in_4bit = True
    if request.kbit_preparation:
        prepare_model_for_kbit_training(causal, use_gradient_checkpointing=False)
    return causal


def _materialize(
    causal: Any, trained: torch.dtype, *, whole: bool
) -> Iterator[tuple[torch.nn.Module, torch.Tensor]]:
    """Replace what is on the meta device; yields the quantization's own tensors with their modules.

    A model that is trained as a whole has its frozen weights in the format of the trained ones, too.
    """
    known: dict[torch.Tensor, torch.nn.Parameter] = {}
    for module in causal.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            for tensor in _quantize(module):
                yield module, tensor
        for name, weight in module._parameters.items():
            if weight is not None and not isinstance(weight, FakeTensor):
                if weight not in known:
                    dtype = trained if weight.requires_grad or whole else weight.dtype
                    known[weight] = torch.nn.Parameter(_empty(weight, dtype), weight.requires_grad)
                module._parameters[name] = known[weight]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _empty(buffer, buffer.dtype)


def _empty(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype, device="cpu")


def _quantize(module: Any) -> list[torch.Tensor]:
    """Give a 4-bit layer its packed weight and scales, as loading does; returns the scales' tensors."""
    packed, state, held = empty_nf4(module.weight.shape, module.compute_dtype)
    weight = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state = state  # type: ignore[attr-defined]
    module._parameters["weight"] = weight
    return held


def changes_logits(config: Any) -> bool:
    """Whether the model caps or scales its logits after the head; then the loss is the model's own."""
    scales = ("logit_scale", "logits_scaling", "lm_head_multiplier")
    capped = getattr(config, "final_logit_softcapping", None) is not None
    return capped or any(getattr(config, name, None) not in (None, 1, 1.0) for name in scales)


def _not_simulated(why: str, details: str) -> NotSimulated:
    return NotSimulated(
        f"The model cannot be simulated: {why}.",
        "The closed formula still gives a figure.",
        details=details[:2000],
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of initialization on the meta device, which is not meant to be kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
