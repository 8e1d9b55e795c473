"""Held-out questions asked several at a time, and what both models answered to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ollama_tune.core.evaluate.asking import Asking
from ollama_tune.core.evaluate.client import ChatProcess
from ollama_tune.core.evaluate.conversation import MODELS, Answer, HeldOut, Result, Totals
from ollama_tune.core.evaluate.held_out import with_system

AT_ONCE = 8


class Several:
    """Goes through the questions, eight at each `ask`. `version` grows with everything that changes."""

    def __init__(self) -> None:
        self.questions: Sequence[HeldOut] = ()
        self.results: list[Result] = []
        self.busy = False
        self.problem = ""
        self.version = 0
        self._asked: int | None = None
        self._batch: list[Result] = []

    @property
    def left(self) -> int:
        """How many questions were not asked yet."""
        return len(self.questions) - len(self.results)

    def ask(self, chat: ChatProcess, asking: Asking) -> None:
        """Ask the next ones."""
        first = len(self.results)
        self._batch = [
            Result(replace(question, messages=with_system(question.messages, asking.system)))
            for question in self.questions[first : first + AT_ONCE]
        ]
        self.results += self._batch
        self._asked = chat.ask_several([result.question for result in self._batch], asking)
        self.problem = ""
        self._change(busy=True)

    def take(self, message: Mapping[str, Any]) -> bool:
        """Take in what the process tells; False where it belongs to another request."""
        if self._asked is None or message.get("id") != self._asked:
            return False
        if "row" in message:
            self._batch[int(message["row"])].take(message)
            self._change(busy=self.busy)
        elif "error" in message:
            self.end(f"{message['error']['what']} {message['error']['fix']}")
        elif message.get("model") == MODELS[-1]:
            self.end()
        return True

    def end(self, problem: str = "") -> None:
        """Nothing more comes; questions that no model has answered can be asked again."""
        self._asked, self.problem = None, problem
        while self.results and not self.results[-1].answers:
            self.results.pop()
        for result in self.results:
            result.answers = {model: Answer(end="cancelled") for model in MODELS} | result.answers
        self._change(busy=False)

    def clear(self) -> None:
        """Forget the answers, since they were asked for otherwise."""
        self.results, self._batch, self._asked = [], [], None
        self._change(busy=False)

    def totals(self) -> dict[str, Totals]:
        """The figures of each model."""
        return {model: Totals.of(self.results, model) for model in MODELS}

    def waiting_for(self) -> tuple[str, int, int]:
        """Which model answers now, how many questions of the batch it has answered, and of how many."""
        model = next((m for m in MODELS if any(m not in r.answers for r in self._batch)), MODELS[-1])
        return model, sum(model in result.answers for result in self._batch), len(self._batch)

    def _change(self, *, busy: bool) -> None:
        self.busy = busy
        self.version += 1
