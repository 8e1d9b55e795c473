"""Answers of the base model and of the tuned model, in batches or as a stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.evaluate.asking import GREEDY, Sampling
from ollama_tune.core.train.shortage import Shortage, free_memory, halved, is_out_of_memory

if TYPE_CHECKING:
    from ollama_tune.core.train.path import Choose, Engine

Ids = Sequence[int]
OnShortage = Callable[[int, int, Shortage], None]
WINDOW = 256
"""Tokens of an answer that are decoded together while it is written."""


@dataclass(frozen=True)
class Answer:
    """Token ids without the end mark, their text, and whether the model ended it by itself."""

    ids: tuple[int, ...]
    text: str
    ended: bool


@dataclass(frozen=True)
class _Batch:
    """Prompts that are answered at once, and how."""

    prompts: Sequence[Ids]
    max_new_tokens: int
    tuned: bool
    stopped: Callable[[], bool]
    choose: Choose | None


class _Listener:
    """Passes the text of one answer on as it grows; holds back half a character.

    Only the newest tokens are decoded anew, so that a token costs the same at the end of a long answer.
    """

    def __init__(self, chat: ChatFormat, on_text: Callable[[str], None]) -> None:
        self._chat = chat
        self._on_text = on_text
        self._ids: list[int] = []
        self._shown = 0

    def put(self, tokens: Ids) -> None:
        """Take the next token."""
        self._ids += [token for token in tokens if token not in self._chat.stop_ids]
        text = self._chat.decode(self._ids)
        self._show(text, final=False)
        if len(self._ids) >= WINDOW and self._shown == len(text):
            self._forget(text)

    def _forget(self, text: str) -> None:
        """Go on with the newest tokens, where these decode alone as they do behind the others."""
        rest = self._ids[-WINDOW // 8 :]
        newest = self._chat.decode(rest)
        if text.endswith(newest):
            self._ids, self._shown = rest, len(newest)

    def end(self) -> None:
        """Show what is left."""
        self._show(self._chat.decode(self._ids), final=True)

    def _show(self, text: str, *, final: bool) -> None:
        if final or not text.endswith("�"):
            if text[self._shown :]:
                self._on_text(text[self._shown :])
            self._shown = len(text)


class _Ended:
    """Follows a batch token by token, and tells each answer that the model has ended."""

    def __init__(
        self, rows: Sequence[int], stop_ids: frozenset[int], ended: Callable[[int, Ids], None]
    ) -> None:
        self._rows, self._stop_ids, self._ended = rows, stop_ids, ended
        self._live = list(range(len(rows)))
        self._ids: list[list[int]] = [[] for _ in rows]

    def put(self, tokens: Ids) -> None:
        """Take the next token of each answer that goes on."""
        for place, token in zip(self._live, tokens, strict=True):
            self._ids[place].append(token)
            if token in self._stop_ids:
                self._ended(self._rows[place], self._ids[place])
        self._live = [place for place in self._live if self._ids[place][-1] not in self._stop_ids]


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
        """The most likely answer to each prompt."""
        told = progress or (lambda done, total: None)
        done = 0

        def ended(_row: int, _answer: Answer) -> None:
            nonlocal done
            done += 1
            told(done, len(prompts))

        return self.several(prompts, max_new_tokens, tuned=tuned, stopped=stopped, on_answer=ended)

    def several(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        *,
        tuned: bool,
        sampling: Sampling = GREEDY,
        stopped: Callable[[], bool] = lambda: False,
        on_answer: Callable[[int, Answer], None] = lambda _row, _answer: None,
    ) -> list[Answer]:
        """Answers to all prompts; those of like length share a batch.

        `on_answer` gets the number of a prompt and its answer as soon as that is whole.
        """
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        answers: dict[int, Answer] = {}

        def ended(row: int, answer: Answer) -> None:
            if row not in answers:
                answers[row] = answer
                on_answer(row, answer)

        choose = self._chooser(sampling)
        while rows := [row for row in order if row not in answers][: self._batch]:
            batch = _Batch([prompts[row] for row in rows], max_new_tokens, tuned, stopped, choose)
            early = partial(self._follow, rows, ended)
            for row, answer in zip(rows, self._guarded(batch, early), strict=False):
                ended(row, answer)
        return [answers[row] for row in range(len(prompts))]

    def _follow(
        self, rows: Sequence[int], ended: Callable[[int, Answer], None], count: int
    ) -> Callable[[Ids], None]:
        """Tells those answers of the first `count` rows that the model ends; each attempt needs a new one."""
        return _Ended(rows[:count], self._chat.stop_ids, lambda row, ids: ended(row, self._answer(ids))).put

    def _guarded(self, batch: _Batch, follow: Callable[[int], Callable[[Ids], None]]) -> list[Answer]:
        """The answers to the first prompts, as many as memory allows; `follow` gets their number."""
        prompts = batch.prompts
        try:
            return self._decode(batch, follow(len(prompts)))
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
        return self._guarded(replace(batch, prompts=prompts[: self._batch]), follow)

    def stream(
        self,
        prompt: Ids,
        max_new_tokens: int,
        *,
        tuned: bool,
        on_text: Callable[[str], None],
        sampling: Sampling = GREEDY,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """One answer, passed on piece by piece."""
        listener = _Listener(self._chat, on_text)
        batch = _Batch([prompt], max_new_tokens, tuned, stopped, self._chooser(sampling))
        (answer,) = self._guarded(batch, lambda _count: listener.put)
        listener.end()
        return answer

    def _chooser(self, sampling: Sampling) -> Choose | None:
        from ollama_tune.core.evaluate.choose import chooser

        return chooser(sampling)

    def top_tokens(self, ids: Ids, positions: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """The tuned model's `count` most likely next tokens after ids[:p + 1] for each position p.

        Pairs of (id, natural log of the probability), most likely first.
        """
        logits = self._engine.logits(ids, positions, tuned=True)
        chosen = logits.log_softmax(-1).topk(min(count, logits.shape[-1]))
        pairs = zip(chosen.indices.tolist(), chosen.values.tolist(), strict=True)
        return [list(zip(tokens, logprobs, strict=True)) for tokens, logprobs in pairs]

    def _decode(self, batch: _Batch, on_tokens: Callable[[Ids], None]) -> list[Answer]:
        found = self._engine.decode(
            batch.prompts,
            batch.max_new_tokens,
            tuned=batch.tuned,
            stop_ids=sorted(self._chat.stop_ids),
            choose=batch.choose,
            stopped=batch.stopped,
            on_tokens=on_tokens,
        )
        return [self._answer(ids) for ids in found]

    def _answer(self, ids: Sequence[int]) -> Answer:
        ended = bool(ids) and ids[-1] in self._chat.stop_ids
        kept = tuple(ids[:-1] if ended else ids)
        return Answer(kept, self._chat.decode(kept), ended)


def _device() -> str:
    """Where the models of this process are computed, for the figures of a shortage."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_initialized() else "cpu"
