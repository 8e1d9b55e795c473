"""The general path: any causal language model of transformers, with an adapter by PEFT."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter_config import WEIGHTS
from ollama_tune.core.plan.impossible import SOFT_PROMPTS
from ollama_tune.core.plan.paths import PathName
from ollama_tune.core.plan.settings import Method, Recompute, TrainingSettings
from ollama_tune.core.rounding import round_up
from ollama_tune.core.train.batches import Batch, collate
from ollama_tune.core.train.lora import lighten
from ollama_tune.core.train.loss import Objective
from ollama_tune.core.train.model import (
    Configure,
    add_adapter,
    autocast,
    load_base,
    lora_config,
    recompute,
    tensor_bytes,
    trainable,
)
from ollama_tune.core.train.noise import Pieces, noisy
from ollama_tune.core.train.path import Observe, remembered
from ollama_tune.core.train.shortage import Offload

if TYPE_CHECKING:
    from ollama_tune.core.train.path import Engine

PAD = 0
"""The token that padding is made of; no model sees it, so any will do."""
OWN_LOGITS = "This model changes its logits after the head, so the loss needs more memory and time."

# A layer that an adapter wraps, under the name that the layer has without it.
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save\.\w+)$")


def even(tokens: int) -> int:
    """Slightly more tokens, of which there are few different numbers.

    Products in 16 bit are compiled anew for each number of rows they have not seen (measured on the CPU: 10
    to 25 ms a product, four times what it takes afterwards), and GPUs are faster with round numbers.
    """
    step = 32 if tokens <= 256 else 64 if tokens <= 512 else 128
    return round_up(tokens, step)


def make_general(folder: Path, training: TrainingSettings, name: str, reason: str) -> GeneralPath:
    """Load the model of a folder and put a fresh adapter on it; `name` is what that says its base is."""
    kind = _kind(training.method)
    return kind(add_adapter(load_base(folder, training), training, name, kind.configure), training, reason)


def _kind(method: Method) -> type[GeneralPath]:
    """What trains by a method; each comes with libraries of its own."""
    if method == "adalora":
        from ollama_tune.core.train.adalora import AdaLoraPath

        return AdaLoraPath
    if method in SOFT_PROMPTS:
        from ollama_tune.core.train.soft_prompt import SoftPromptPath

        return SoftPromptPath
    return GeneralPath


class GeneralPath:
    """A PEFT model as the loop sees it (`TrainPath`).

    Rows lie end to end in one sequence where the model's attention can keep them apart: in the families we
    know, computed by SDPA. Others get them padded, or, packed, told apart by their positions.
    """

    name: PathName = "general"
    whole = False
    configure: Configure = staticmethod(lora_config)
    """What PEFT is told to make."""

    def __init__(self, model: Any, training: TrainingSettings, reason: str = "") -> None:
        self.model = model
        self.reason = reason
        self.device: str = training.device
        self.weights: Mapping[str, torch.nn.Parameter] = self._named()
        self._training = training
        self._base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        lighten(model)
        if training.neftune:
            self._base.get_input_embeddings().register_forward_hook(self._noisy)
        self._pieces: Pieces = ()
        self._objective = Objective(self._base)
        self._exact = training.compute_dtype == "float32"
        self._offload: Offload | None = None
        self._real: torch.Tensor | None = None
        self.padded = not self._objective.pack()
        self.recompute(training.gradient_checkpointing)

    def begin(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Nothing has to follow the optimizer's steps."""

    def collate(self, examples: Sequence[Example], capacity: int = 0) -> Batch:
        """The rows as one sequence; where the model cannot have that, padded or packed into several."""
        if self.padded:
            return collate(examples, PAD, self.device, capacity)
        total = sum(len(example.ids) for example in examples)
        return collate(examples, PAD, self.device, total, total if self._exact else even(total))

    def loss(self, batch: Any, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """Sum of the cross entropies, float32, by autocast where the run computes in 16 bit."""
        self._real, self._pieces = batch.real, batch.pieces if self._training.neftune else ()
        with self._computing():
            found: torch.Tensor = self._objective(batch, lengths)
        return found

    def _noisy(self, module: Any, _inputs: Any, states: torch.Tensor) -> torch.Tensor | None:
        """The embeddings with noise while training; some families scale them before they leave the module."""
        if not (module.training and torch.is_grad_enabled()):
            return None
        alpha = self._training.neftune * float(getattr(module, "embed_scale", 1.0))
        return noisy(states.reshape(-1, states.shape[-1]), self._pieces, alpha).view(states.shape)

    def _named(self) -> dict[str, torch.nn.Parameter]:
        """The trained weights under the names that PEFT's file gives them."""
        trained = {weight.data_ptr(): weight for weight in trainable(self.model).values()}
        written: dict[str, torch.Tensor] = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return {name: trained[tensor.data_ptr()] for name, tensor in written.items()}

    def _computing(self) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(autocast(self._training))
        if self._offload is not None and torch.is_grad_enabled():
            stack.enter_context(self._offload.hooks())
        return stack

    def tallies(self) -> Mapping[str, tuple[float, int]]:
        """Nothing besides the loss."""
        return {}

    @torch.no_grad()
    def check(self, examples: Sequence[Example]) -> str:
        """Compare the loss with the model's own, and the last row behind the others with it alone.

        Where rows see each other they are padded from now on; packed ones are refused.
        """
        self.train(False)
        alone = collate(examples[-1:], PAD, self.device)
        with autocast(self._training):
            right = self._objective.check(alone)
            if self._training.packing or not self.padded:
                together = collate(examples, PAD, self.device, sum(len(row.ids) for row in examples))
                self.padded |= not self._objective.keeps_rows_apart(together, alone)
                if self.padded and self._training.packing:
                    raise TuneError(
                        "This model carries something over from one row of a packed sequence to the next.",
                        "Start a run with training.packing set to no.",
                    )
        return "" if right else OWN_LOGITS

    def train(self, on: bool) -> None:
        """Dropout on or off."""
        self.model.train(on)

    def without_adapter(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, the base model alone."""
        alone: contextlib.AbstractContextManager[None] = self.model.disable_adapter()
        return alone

    def recompute(self, what: Recompute) -> None:
        """From now on keep less for the backward pass; a second call changes nothing."""
        recompute(self._base, what)
        if what == "offload" and self._offload is None:
            self._offload = Offload(self.model)

    @contextlib.contextmanager
    def watched(self, observe: Observe) -> Iterator[None]:
        """While it lasts, tell the inputs of every linear layer but the head, as rows of real tokens.

        Layers are hooked as they are, wrapped by PEFT or held in 4 bit. Stacked experts are no linear layers:
        each sees too few of the tokens.
        """
        head, select = set(self._base.get_output_embeddings().modules()), _Selected(lambda: self._real)
        handles = [
            module.register_forward_pre_hook(select.hook(_WRAPPED.sub("", name), observe))
            for name, module in self._base.named_modules()
            if isinstance(module, torch.nn.Linear) and module not in head and ".lora_" not in name
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def write_adapter(self, folder: Path) -> None:
        """The adapter in PEFT's format: its weights and its configuration."""
        write_weights(folder, self.weights, self.model.peft_config["default"])

    def write_state(self, folder: Path) -> None:
        """For a checkpoint: the same."""
        self.write_adapter(folder)

    def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put the tensors of an `adapter_model.safetensors` into the weights."""
        set_peft_model_state_dict(self.model, dict(tensors))

    def way_back(self) -> Callable[[], None]:
        """What puts the weights back as they are now."""
        return remembered(self)

    @property
    def engine(self) -> Engine:
        """What writes answers with this model."""
        from ollama_tune.core.evaluate.general_engine import GeneralEngine

        return GeneralEngine(self.model, lambda: autocast(self._training))

    def parts(self) -> dict[str, int]:
        """Bytes of the base's and of the adapter's weights."""
        adapter = tensor_bytes(self.weights.values())
        return {"weights": tensor_bytes(self.model.parameters()) - adapter, "adapter": adapter}


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor], config: PeftConfig) -> None:
    """The two files of an adapter, in PEFT's format."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(config)
    config.inference_mode = True
    config.save_pretrained(str(folder))


@torch.no_grad()
def put_weights(weights: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into the weights of the same names; `TuneError` where they are of something else."""
    if {name: tensor.shape for name, tensor in tensors.items()} != {n: w.shape for n, w in weights.items()}:
        raise TuneError("The checkpoint is of another adapter.", "Start a new run.")
    for name, weight in weights.items():
        weight.copy_(tensors[name])


class _Selected:
    """The real tokens among the inputs of layers; several layers that read the same tensor get the same."""

    def __init__(self, real: Callable[[], torch.Tensor | None]) -> None:
        self._real = real
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def hook(self, name: str, observe: Observe) -> Any:
        """A forward pre-hook that tells the layer's inputs; those that are not one a token it keeps."""

        def tell(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if self._last is None or self._last[0] is not inputs[0]:
                self._last = inputs[0], self._select(inputs[0])
            if len(self._last[1]):
                observe(name, self._last[1])

        return tell

    def _select(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, real = inputs.detach().reshape(-1, inputs.shape[-1]), self._real()
        if real is None:
            return rows
        return rows[real] if len(rows) == len(real) else rows[:0]
