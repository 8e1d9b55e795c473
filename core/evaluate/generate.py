"""Answers of the base model and of the tuned model, in batches or as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.train.shortage import Shortage, free_memory, halved, is_out_of_memory

BATCH = 16

Ids = Sequence[int]
OnShortage = Callable[[int, int, Shortage], None]


@dataclass(frozen=True)
class Answer:
    """Token ids without the end mark, their text, and whether the model ended it by itself."""

    ids: tuple[int, ...]
    text: str
    ended: bool


class _Listener(BaseStreamer):
    """Passes the text of one answer on as it grows; holds back half a character."""

    def __init__(self, chat: ChatFormat, on_text: Callable[[str], None]) -> None:
        self._chat = chat
        self._on_text = on_text
        self._ids: list[int] = []
        self._shown = 0
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the next token; the first call brings the prompt."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += [token for token in value.reshape(-1).tolist() if token not in self._chat.stop_ids]
        self._show(self._chat.decode(self._ids), final=False)

    def end(self) -> None:
        """Show what is left."""
        self._show(self._chat.decode(self._ids), final=True)

    def _show(self, text: str, *, final: bool) -> None:
        if final or not text.endswith("�"):
            if text[self._shown :]:
                self._on_text(text[self._shown :])
            self._shown = len(text)


class _Cancel(StoppingCriteria):
    """Ends the generation of all rows when asked."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._stopped(), device=input_ids.device, dtype=torch.bool)


class Generator:
    """Answers of one model with its adapter on (`tuned`) or off (the base).

    `model` is a PEFT model; all prompts are token ids that end with the generation prompt. With
    `on_shortage`, running out of memory halves the number of prompts at once, for good, and one that
    does not fit alone stays without an answer; the callback gets the prompts at once before and after
    (0 for none) and the figures. Without it the error is raised.
    """

    def __init__(
        self, model: Any, chat: ChatFormat, *, autocast: Any = None, on_shortage: OnShortage | None = None
    ) -> None:
        self._model = model
        self._chat = chat
        self._autocast = autocast or contextlib.nullcontext()
        self._on_shortage = on_shortage
        self._batch = BATCH

    def greedy(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        *,
        tuned: bool,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """The most likely answer to each prompt; prompts of like length share a batch."""
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        answers: dict[int, Answer] = {}
        while len(answers) < len(order):
            rows = order[len(answers) : len(answers) + self._batch]
            made = self._guarded([prompts[row] for row in rows], max_new_tokens, tuned, stopped)
            answers.update(zip(rows, made, strict=False))
            if progress is not None:
                progress(len(answers), len(prompts))
        return [answers[row] for row in range(len(prompts))]

    def _guarded(
        self, prompts: list[Ids], max_new_tokens: int, tuned: bool, stopped: Callable[[], bool]
    ) -> list[Answer]:
        """The answers to the first prompts, as many as memory allows."""
        try:
            return self._generate(prompts, self._settings(max_new_tokens), tuned, stopped, None)
        except Exception as error:
            if self._on_shortage is None or not is_out_of_memory(error):
                raise
            shortage = Shortage.of(error, self._device.type)
        free_memory()
        if len(prompts) == 1:
            self._on_shortage(1, 0, shortage)
            return [Answer((), "", ended=False)]
        self._batch = halved(len(prompts))
        self._on_shortage(len(prompts), self._batch, shortage)
        return self._guarded(prompts[: self._batch], max_new_tokens, tuned, stopped)

    def stream(
        self,
        prompt: Ids,
        max_new_tokens: int,
        *,
        tuned: bool,
        on_text: Callable[[str], None],
        temperature: float = 0.0,
        seed: int = 7,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """One answer, greedy or sampled from the whole distribution, passed on piece by piece."""
        torch.manual_seed(seed)
        settings = self._settings(max_new_tokens, temperature)
        return self._generate([prompt], settings, tuned, stopped, _Listener(self._chat, on_text))[0]

    @torch.no_grad()
    def top_tokens(self, ids: Ids, positions: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """The tuned model's `count` most likely next tokens after ids[:p + 1] for each position p.

        Pairs of (id, natural log of the probability), most likely first.
        """
        self._model.eval()
        with self._autocast:
            logits = self._model(input_ids=torch.tensor([list(ids)], device=self._device)).logits[0]
        chosen = logits[list(positions)].float().log_softmax(-1).topk(min(count, logits.shape[-1]))
        pairs = zip(chosen.indices.tolist(), chosen.values.tolist(), strict=True)
        return [list(zip(tokens, logprobs, strict=True)) for tokens, logprobs in pairs]

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(iter(self._model.parameters())).device
        return device

    def _settings(self, max_new_tokens: int, temperature: float = 0.0) -> GenerationConfig:
        sampled = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            do_sample=bool(sampled),
            eos_token_id=sorted(self._chat.stop_ids) or None,
            pad_token_id=self._chat.pad_id,
            use_cache=True,
            **sampled,
        )

    @torch.no_grad()
    def _generate(
        self,
        prompts: Sequence[Ids],
        settings: GenerationConfig,
        tuned: bool,
        stopped: Callable[[], bool],
        streamer: BaseStreamer | None,
    ) -> list[Answer]:
        self._model.eval()
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._chat.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        adapter = contextlib.nullcontext() if tuned else self._model.disable_adapter()
        with adapter, self._autocast:
            output = self._model.get_base_model().generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([_Cancel(stopped)]),
                streamer=streamer,
            )
        return [self._answer(row[width:]) for row in output.tolist()]

    def _answer(self, ids: list[int]) -> Answer:
        end = next((i for i, token in enumerate(ids) if token in self._chat.stop_ids), None)
        kept = tuple(ids if end is None else ids[:end])
        return Answer(kept, self._chat.decode(kept), end is not None)
