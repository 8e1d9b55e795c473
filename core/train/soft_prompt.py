"""Soft prompts through PEFT: learned vectors before every text, which no token has (`prompt`, `ptuning`).

PEFT's own forward pass ignores positions, so with it rows could not lie end to end. Here only its module
makes the vectors, which take the places of virtual tokens that stand in every row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model_state_dict

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.batches import Batch
from ollama_tune.core.train.general import GeneralPath, put_weights, write_weights
from ollama_tune.core.train.loss import Objective
from ollama_tune.core.train.model import Places
from ollama_tune.core.train.virtual import SoftPrompt


def soft_prompt_config(training: TrainingSettings, _places: Places) -> PeftConfig:
    """What PEFT makes the prompt of: embeddings of random tokens, or a small network over random vectors.

    Both are drawn by the seed. Nothing says which text would be a better start, and which one of them it is
    hardly matters from some billion parameters on (Lester et al., arXiv 2104.08691, section 3.2).
    """
    if training.method == "ptuning":
        return PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=training.virtual_tokens)
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=training.virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
    )


class SoftPromptPath(GeneralPath):
    """A model with a soft prompt as the loop sees it."""

    configure = staticmethod(soft_prompt_config)

    def __init__(self, model: Any, training: TrainingSettings, reason: str = "") -> None:
        super().__init__(model, training, reason)
        self._prompt = SoftPrompt(model)
        self._without = False
        self._objective = Objective(self._base, self._prompt.lay)
        self.padded = not self._objective.pack()

    def _named(self) -> dict[str, torch.nn.Parameter]:
        """What is trained is not what is published: of p-tuning, the network that makes the vectors."""
        trained = self.model.named_parameters()
        return {name: weight for name, weight in trained if weight.requires_grad}

    def collate(self, examples: Sequence[Example], capacity: int = 0) -> Batch:
        """The rows with the virtual tokens in front, which are not counted."""
        if self._without:
            return super().collate(examples, capacity)
        batch = super().collate([self._prompt.longer(example) for example in examples], capacity)
        return replace(batch, useful_tokens=sum(len(example.ids) for example in examples))

    @contextlib.contextmanager
    def _base_alone(self) -> Iterator[None]:
        self._without, before = True, self._without
        try:
            yield
        finally:
            self._without = before

    def without_adapter(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, rows get no virtual tokens."""
        return self._base_alone()

    def write_adapter(self, folder: Path) -> None:
        """The vectors, which is all that answering needs, in PEFT's format."""
        made = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        write_weights(folder, made, self.model.peft_config["default"])

    def write_state(self, folder: Path) -> None:
        """What makes the vectors, so that it can be trained on."""
        write_weights(folder, self.weights, self.model.peft_config["default"])

    def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put the tensors of a checkpoint into the weights."""
        put_weights(self.weights, tensors)
