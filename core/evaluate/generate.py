"""Answers of the base model and of the tuned model, in batches or as a stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.train.shortage import Shortage, free_memory, halved, is_out_of_memory

if TYPE_CHECKING:
    from ollama_tune.core.train.path import Engine

Ids = Sequence[int]
OnShortage = Callable[[int, int, Shortage], None]


@dataclass(frozen=True)
class Answer:
    """Token ids without the end mark, their text, and whether the model ended it by itself."""

    ids: tuple[int, ...]
    text: str
    ended: bool


class _Listener:
    """Passes the text of one answer on as it grows; holds back half a character."""

    def __init__(self, chat: ChatFormat, on_text: Callable[[str], None]) -> None:
        self._chat = chat
        self._on_text = on_text
        self._ids: list[int] = []
        self._shown = 0

    def put(self, tokens: Ids) -> None:
        """Take the next token."""
        self._ids += [token for token in tokens if token not in self._chat.stop_ids]
        self._show(self._chat.decode(self._ids), final=False)

    def end(self) -> None:
        """Show what is left."""
        self._show(self._chat.decode(self._ids), final=True)

    def _show(self, text: str, *, final: bool) -> None:
        if final or not text.endswith("�"):
            if text[self._shown :]:
                self._on_text(text[self._shown :])
            self._shown = len(text)


class _Ended:
    """Counts the answers of a batch that the model has ended, and tells how many there are in all."""

    def __init__(
        self, before: int, total: int, stop_ids: frozenset[int], progress: Callable[[int, int], None] | None
    ) -> None:
        self._done, self._total = before, total
        self._stop_ids = stop_ids
        self._progress = progress

    def put(self, tokens: Ids) -> None:
        """Take the next token of each answer."""
        ended = sum(token in self._stop_ids for token in tokens)
        if ended and ended < len(tokens) and self._progress is not None:
            self._done += ended
            self._progress(self._done, self._total)


class Generator:
    """Answers of one model with its adapter on (`tuned`) or off (the base), in the words of a chat form.

    All prompts are token ids that end with the generation prompt. With `on_shortage`, running out of memory
    halves the number of prompts at once, for good, and one that does not fit alone stays without an answer;
    the callback gets the prompts at once before and after (0 for none) and the figures. Without it the error
    is raised.
    """

    def __init__(self, engine: Engine, chat: ChatFormat, *, on_shortage: OnShortage | None = None) -> None:
        self._engine = engine
        self._chat = chat
        self._on_shortage = on_shortage
        self._batch = engine.rows

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
            told = _Ended(len(answers), len(prompts), self._chat.stop_ids, progress)
            made = self._guarded([prompts[row] for row in rows], max_new_tokens, tuned, stopped, told.put)
            answers.update(zip(rows, made, strict=False))
            if progress is not None:
                progress(len(answers), len(prompts))
        return [answers[row] for row in range(len(prompts))]

    def _guarded(
        self,
        prompts: list[Ids],
        max_new_tokens: int,
        tuned: bool,
        stopped: Callable[[], bool],
        on_tokens: Callable[[Ids], None],
    ) -> list[Answer]:
        """The answers to the first prompts, as many as memory allows."""
        try:
            return self._decode(prompts, max_new_tokens, tuned, stopped, on_tokens=on_tokens)
        except Exception as error:
            if self._on_shortage is None or not is_out_of_memory(error):
                raise
            shortage = Shortage.of(error, _device())
        free_memory()
        if len(prompts) == 1:
            self._on_shortage(1, 0, shortage)
            return [Answer((), "", ended=False)]
        self._batch = halved(len(prompts))
        self._on_shortage(len(prompts), self._batch, shortage)
        return self._guarded(prompts[: self._batch], max_new_tokens, tuned, stopped, on_tokens)

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
        import torch

        torch.manual_seed(seed)
        listener = _Listener(self._chat, on_text)
        (answer,) = self._decode(
            [prompt], max_new_tokens, tuned, stopped, temperature=temperature, on_tokens=listener.put
        )
        listener.end()
        return answer

    def top_tokens(self, ids: Ids, positions: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """The tuned model's `count` most likely next tokens after ids[:p + 1] for each position p.

        Pairs of (id, natural log of the probability), most likely first.
        """
        logits = self._engine.logits(ids, positions, tuned=True)
        chosen = logits.log_softmax(-1).topk(min(count, logits.shape[-1]))
        pairs = zip(chosen.indices.tolist(), chosen.values.tolist(), strict=True)
        return [list(zip(tokens, logprobs, strict=True)) for tokens, logprobs in pairs]

    def _decode(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        tuned: bool,
        stopped: Callable[[], bool],
        **options: Any,
    ) -> list[Answer]:
        stop_ids = sorted(self._chat.stop_ids)
        found = self._engine.decode(
            prompts, max_new_tokens, tuned=tuned, stop_ids=stop_ids, stopped=stopped, **options
        )
        return [self._answer(ids) for ids in found]

    def _answer(self, ids: list[int]) -> Answer:
        ended = bool(ids) and ids[-1] in self._chat.stop_ids
        kept = tuple(ids[:-1] if ended else ids)
        return Answer(kept, self._chat.decode(kept), ended)


def _device() -> str:
    """Where the models of this process are computed, for the figures of a shortage."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_initialized() else "cpu"
