"""Answers by transformers: the engine of models that only transformers and PEFT can compute."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.answers import GENERAL_ROWS
from ollama_tune.core.train.batches import collate
from ollama_tune.core.train.path import Choose
from ollama_tune.core.train.virtual import NoPrompt, prompt_of

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


class _Only(LogitsProcessor):
    """Leaves the chosen token of each row as the only possible one, so that both engines choose alike."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = self._choose(scores)[:, None]
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)


class GeneralEngine:
    """Writes answers with a PEFT model, with its adapter or without; see `core/train/path.py`'s `Engine`.

    `autocast` makes the context in which the model is computed; a model without adapter is itself in both
    cases. Prompts of a batch are padded on the left.
    The model's own sampling settings are dropped: they would bend what is compared.
    """

    rows = GENERAL_ROWS
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
        self._causal = model.get_base_model() if isinstance(model, PeftModel) else model
        self._soft = prompt_of(model)
        self._causal.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def decode(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        *,
        tuned: bool,
        stop_ids: Ids,
        choose: Choose | None = None,
        stopped: Callable[[], bool] = lambda: False,
        on_tokens: Callable[[Ids], None] | None = None,
    ) -> list[list[int]]:
        """The tokens after each prompt, up to a stop token, which is included, or the limit."""
        soft = self._soft if tuned else NoPrompt()
        with self._adapter(tuned), self._autocast():
            inputs = soft.lay(self._padded([soft.before(prompt) for prompt in prompts]))
            start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
            watch = _Watch(start, stop_ids, stopped, on_tokens)
            output = self._causal.generate(
                **inputs,
                generation_config=self._settings(max_new_tokens, stop_ids),
                logits_processor=LogitsProcessorList([] if choose is None else [_Only(choose)]),
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        stop = frozenset(stop_ids)
        return [_up_to_stop(row, stop) for row in output[:, start:].tolist()]

    @torch.no_grad()
    def logits(self, ids: Ids, positions: Sequence[int], *, tuned: bool) -> torch.Tensor:
        """float32 logits (positions x vocabulary) of the token after each position."""
        soft = self._soft if tuned else NoPrompt()
        longer = soft.before(ids)
        with self._adapter(tuned), self._autocast():
            inputs = soft.lay({"input_ids": torch.tensor([list(longer)], device=self._device)})
            logits = self._causal(**inputs).logits[0, len(longer) - len(ids) :]
        chosen: torch.Tensor = logits[list(positions)].float()
        return chosen

    @torch.no_grad()
    def likelihoods(self, examples: Sequence[Example], *, tuned: bool) -> list[float]:
        """Of each row the natural log of the probability of its supervised tokens, summed."""
        found: list[float] = []
        soft = self._soft if tuned else NoPrompt()
        with self._adapter(tuned), self._autocast():
            for start in range(0, len(examples), self.rows // 4):
                part = [soft.longer(example) for example in examples[start : start + self.rows // 4]]
                batch = collate(part, self._pad_id, str(self._device))
                logits = self._causal(**soft.lay(batch.inputs())).logits
                found += [_likelihood(logits[row], example) for row, example in enumerate(part)]
        return found

    @contextlib.contextmanager
    def _adapter(self, tuned: bool) -> Any:
        """In evaluation mode, with the adapter or without; afterwards as it was before."""
        training = self._model.training
        self._model.eval()
        try:
            alike = tuned or self._causal is self._model or type(self._soft) is not NoPrompt
            with contextlib.nullcontext() if alike else self._model.disable_adapter():
                yield
        finally:
            self._model.train(training)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(iter(self._model.parameters())).device
        return device

    def _padded(self, prompts: Sequence[Ids]) -> dict[str, torch.Tensor]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        return {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}

    def _settings(self, max_new_tokens: int, stop_ids: Ids) -> GenerationConfig:
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=self._pad_id,
            use_cache=True,
        )


def _likelihood(logits: torch.Tensor, example: Example) -> float:
    """The summed logs of the probabilities of a row's supervised tokens."""
    places = [place for place, trained in enumerate(example.trained) if trained and place]
    targets = torch.tensor([example.ids[place] for place in places], device=logits.device)
    shares = logits[[place - 1 for place in places]].float().log_softmax(-1)
    return float(shares.gather(-1, targets[:, None]).sum())


def _up_to_stop(ids: list[int], stop: frozenset[int]) -> list[int]:
    """What was generated without the padding behind a row that ended before the others."""
    end = next((place for place, token in enumerate(ids) if token in stop), len(ids))
    return ids[: end + 1]
