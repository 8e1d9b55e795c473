"""Answers by transformers: the engine of models that only transformers and PEFT can compute."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

Ids = Sequence[int]


class _Watch(StoppingCriteria):
    """Between two tokens: passes on the new ones and ends all rows when asked."""

    def __init__(
        self, width: int, stop_ids: Ids, stopped: Callable[[], bool], on_tokens: Callable[[Ids], None] | None
    ) -> None:
        self._width, self._stop = width, frozenset(stop_ids)
        self._stopped, self._on_tokens = stopped, on_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self._on_tokens is not None:
            rows = input_ids[:, self._width :].tolist()
            self._on_tokens([row[-1] for row in rows if self._stop.isdisjoint(row[:-1])])
        return torch.full((len(input_ids),), self._stopped(), device=input_ids.device, dtype=torch.bool)


class GeneralEngine:
    """Writes answers with a PEFT model, with its adapter or without; see `core/train/path.py`'s `Engine`.

    `autocast` makes the context in which the model is computed. Prompts of a batch are padded on the left.
    The model's own sampling settings are dropped: they would bend what is compared.
    """

    rows = 16
    """Prompts that are answered at once."""

    def __init__(
        self,
        model: Any,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        *,
        pad_id: int = 0,
    ) -> None:
        self._model = model
        self._autocast = autocast
        self._pad_id = pad_id
        model.get_base_model().generation_config = GenerationConfig()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def decode(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        *,
        tuned: bool,
        stop_ids: Ids,
        temperature: float = 0.0,
        stopped: Callable[[], bool] = lambda: False,
        on_tokens: Callable[[Ids], None] | None = None,
    ) -> list[list[int]]:
        """The tokens after each prompt, up to a stop token, which is included, or the limit."""
        ids, mask = self._padded(prompts)
        watch = _Watch(ids.shape[1], stop_ids, stopped, on_tokens)
        with self._adapter(tuned), self._autocast():
            output = self._model.get_base_model().generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self._settings(max_new_tokens, stop_ids, temperature),
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        stop = frozenset(stop_ids)
        return [_up_to_stop(row, stop) for row in output[:, ids.shape[1] :].tolist()]

    @torch.no_grad()
    def logits(self, ids: Ids, positions: Sequence[int], *, tuned: bool) -> torch.Tensor:
        """float32 logits (positions x vocabulary) of the token after each position."""
        with self._adapter(tuned), self._autocast():
            logits = self._model(input_ids=torch.tensor([list(ids)], device=self._device)).logits[0]
        chosen: torch.Tensor = logits[list(positions)].float()
        return chosen

    @contextlib.contextmanager
    def _adapter(self, tuned: bool) -> Any:
        """In evaluation mode, with the adapter or without; afterwards as it was before."""
        training = self._model.training
        self._model.eval()
        try:
            with contextlib.nullcontext() if tuned else self._model.disable_adapter():
                yield
        finally:
            self._model.train(training)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(iter(self._model.parameters())).device
        return device

    def _padded(self, prompts: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        return ids.to(self._device), mask.to(self._device)

    def _settings(self, max_new_tokens: int, stop_ids: Ids, temperature: float) -> GenerationConfig:
        sampled = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            do_sample=bool(sampled),
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=self._pad_id,
            use_cache=True,
            **sampled,
        )


def _up_to_stop(ids: list[int], stop: frozenset[int]) -> list[int]:
    """What was generated without the padding behind a row that ended before the others."""
    end = next((place for place, token in enumerate(ids) if token in stop), len(ids))
    return ids[: end + 1]
