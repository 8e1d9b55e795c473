"""Virtual tokens: places before a text whose vectors are learned instead of looked up by an id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel

from ollama_tune.core.data.values import Example

VIRTUAL = -1
"""The id of all virtual tokens."""


class NoPrompt:
    """Rows, prompts and inputs as they are."""

    def before(self, ids: Sequence[int]) -> Sequence[int]:
        """The same ids."""
        return ids

    def longer(self, example: Example) -> Example:
        """The same row."""
        return example

    def lay(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The same inputs."""
        return dict(inputs)


class SoftPrompt(NoPrompt):
    """The vectors that a PEFT model has learned, and how rows and prompts get them in front."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._embedding = model.get_base_model().get_input_embeddings()
        self._length = int(model.active_peft_config.num_virtual_tokens)

    def before(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Ids with the virtual tokens in front."""
        return (VIRTUAL,) * self._length + tuple(ids)

    def longer(self, example: Example) -> Example:
        """A row with the virtual tokens in front; they and the text's first token are never supervised."""
        trained = (*(False,) * (self._length + 1), *example.trained[1:])
        return replace(example, ids=self.before(example.ids), trained=trained)

    def lay(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A model's inputs with embeddings in the place of the ids: the vectors, and those of the tokens."""
        rest = dict(inputs)
        ids = rest.pop("input_ids")
        virtual = ids == VIRTUAL
        embedded = self._embedding(ids.clamp(min=0))
        rows = int(virtual.sum()) // self._length
        if rows:
            vectors = self.vectors().to(embedded.dtype).repeat(rows, 1)
            embedded = embedded.masked_scatter(virtual[..., None], vectors)
        return rest | {"inputs_embeds": embedded}

    def vectors(self) -> torch.Tensor:
        """Virtual tokens x width, in float32 whatever the run computes in, as they are published."""
        with torch.autocast(self._embedding.weight.device.type, enabled=False):
            made: torch.Tensor = self._model.get_prompt(batch_size=1)[0]
        return made


def prompt_of(model: Any) -> NoPrompt:
    """What stands before texts in a model: a soft prompt where PEFT trained one."""
    soft = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
    return SoftPrompt(model) if soft else NoPrompt()
