"""Training of every weight of a model by transformers, with 32-bit weights and 16-bit arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.general import GeneralPath
from ollama_tune.core.train.model import load_base, tensor_bytes, thaw, trainable

WEIGHTS = "weights.safetensors"


def make_full(folder: Path, training: TrainingSettings, reason: str) -> FullPath:
    """Load the model of a folder in float32 and let its weights learn, but those of the frozen layers."""
    model = load_base(folder, training, torch.float32)
    thaw(model, training.freeze_layers)
    return FullPath(model, folder, training, reason)


class FullPath(GeneralPath):
    """A model without adapter as the loop sees it: `weights` are its own, by their names in the model."""

    whole = True

    def __init__(self, model: Any, folder: Path, training: TrainingSettings, reason: str = "") -> None:
        super().__init__(model, training, reason)
        self._folder = folder

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return trainable(self.model)

    def without_adapter(self) -> contextlib.AbstractContextManager[None]:
        """The base model, as long as nothing was learned."""
        return contextlib.nullcontext()

    def write_state(self, folder: Path) -> None:
        """The trained weights in float32; what is frozen stands in the base's files."""
        from safetensors.torch import save_file

        whole = {name: weight.detach().cpu().contiguous() for name, weight in self.weights.items()}
        save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})

    def write_adapter(self, folder: Path) -> None:
        """The tuned model in float32 with its tokenizer, as transformers stores one."""
        from ollama_tune.core.export.outputs import TEMPLATE, TOKENIZER_FILES

        self.model.save_pretrained(folder)
        for name in (*TOKENIZER_FILES, TEMPLATE):
            if (self._folder / name).is_file():
                (folder / name).write_bytes((self._folder / name).read_bytes())

    @torch.no_grad()
    def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put the tensors of a checkpoint into the weights."""
        for name, weight in self.weights.items():
            weight.copy_(tensors[name])

    def way_back(self) -> Callable[[], None]:
        """The base's own files, so that no second model waits in memory."""
        return self._begin_anew

    def _begin_anew(self) -> None:
        model = load_base(self._folder, self._training.model_copy(update={"device": "cpu"}), torch.float32)
        self.load_adapter(dict(model.named_parameters()))

    def parts(self) -> dict[str, int]:
        """Bytes of the weights."""
        return {"weights": tensor_bytes(self.model.parameters()), "adapter": 0}
