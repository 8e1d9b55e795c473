"""A conversation with the base and the tuned model: each of them sees its own answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ollama_tune.core.evaluate.metrics import exact_match, similarity

MODELS = ("base", "tuned")
NAMES = {"base": "Base model", "tuned": "Tuned model"}
ENDS = {"length": "cut off", "cancelled": "stopped", "long": "question too long"}


@dataclass
class Answer:
    """What a model has written so far; `end` is empty while it writes. Tokens and seconds are set at the end.

    `prompt` counts the tokens of what was asked with all that stands before it, `dropped` the oldest turns
    that were left out of it.
    """

    text: str = ""
    end: str = ""
    tokens: int = 0
    seconds: float = 0.0
    prompt: int = 0
    dropped: int = 0

    def take(self, message: Mapping[str, Any]) -> None:
        """Take in what the process tells of it; the forms stand in `core/evaluate/chat.py`."""
        self.text += str(message.get("text", ""))
        for name in ("end", "tokens", "seconds", "prompt", "dropped"):
            setattr(self, name, message.get(name, getattr(self, name)))

    def words(self) -> str:
        """`9 tokens, 0.5 s, cut off`."""
        ended = f", {ENDS[self.end]}" if self.end in ENDS else ""
        return f"{self.tokens:,} tokens, {self.seconds:.1f} s{ended}"


@dataclass(frozen=True)
class Judged:
    """An answer beside the wanted one."""

    exact: bool
    similarity: float

    @classmethod
    def of(cls, answer: str, reference: str) -> Judged:
        """Compare two texts."""
        exact = exact_match(answer, reference)
        return cls(exact, 1.0 if exact else similarity(answer, reference))


@dataclass
class Turn:
    """A message that asks, the answer that is wanted where that is known, and both models' answers."""

    message: Mapping[str, Any]
    reference: str = ""
    answers: dict[str, Answer] = field(default_factory=lambda: {name: Answer() for name in MODELS})

    @property
    def question(self) -> str:
        """What is asked."""
        return str(self.message["content"])

    def judged(self, model: str) -> Judged | None:
        """None where no answer is wanted."""
        return Judged.of(self.answers[model].text, self.reference) if self.reference else None


@dataclass
class Conversation:
    """Turns after an `opening`: messages that both models are given, such as a system prompt."""

    opening: tuple[Mapping[str, Any], ...] = ()
    tools: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, model: str) -> list[dict[str, Any]]:
        """What one model is asked now: everything up to the last question.

        A turn in which it wrote nothing is left out, so that questions and answers still alternate.
        """
        found = [dict(message) for message in self.opening]
        for turn in self.turns[:-1]:
            answer = turn.answers[model].text
            if answer:
                found += [dict(turn.message), {"role": "assistant", "content": answer}]
        return [*found, dict(self.turns[-1].message)]

    @classmethod
    def of(cls, question: HeldOut) -> Conversation:
        """One that begins with a held-out question, behind what stands before it in its row."""
        turn = Turn(question.messages[-1], question.reference)
        return cls(question.messages[:-1], question.tools, [turn])

    def ask(self, question: str) -> None:
        """Go on with a question."""
        self.turns.append(Turn({"role": "user", "content": question}))

    def request(self) -> dict[str, Any]:
        """What goes to the process that answers."""
        return {"messages": {model: self.messages(model) for model in MODELS}, "tools": self.tools}

    def markdown(self, title: str, how: str) -> str:
        """The whole conversation as a text for people."""
        parts = [f"# {title}", how]
        parts += [f"**{message['role']}**\n\n{message['content']}" for message in self.opening]
        for number, turn in enumerate(self.turns, start=1):
            parts.append(f"## {number}. Question\n\n{turn.question}")
            parts += [f"### Wanted\n\n{turn.reference}"] if turn.reference else []
            for model in MODELS:
                answer = turn.answers[model]
                parts.append(f"### {NAMES[model]} ({answer.words()})\n\n{answer.text}")
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class HeldOut:
    """A question that was held out: the messages up to the answer, the last one as it is shown,
    the wanted answer, and the tools it may call (JSON)."""

    messages: tuple[Mapping[str, Any], ...]
    shown: str
    reference: str
    tools: str = ""

    def request(self) -> dict[str, Any]:
        """What goes to the process that answers."""
        return {"messages": list(self.messages), "tools": self.tools}


@dataclass
class Result:
    """A held-out question with the answers of both models, as far as they are there."""

    question: HeldOut
    answers: dict[str, Answer] = field(default_factory=dict)
    _judged: dict[str, Judged] = field(default_factory=dict)

    def take(self, message: Mapping[str, Any]) -> None:
        """Take in a whole answer."""
        model = str(message["model"])
        self.answers[model] = Answer()
        self.answers[model].take(message)
        if self.answers[model].end in ("stop", "length"):
            self._judged[model] = Judged.of(self.answers[model].text, self.question.reference)

    def judged(self, model: str) -> Judged | None:
        """None where the model has not answered to the end, or could not."""
        return self._judged.get(model)

    def record(self) -> dict[str, Any]:
        """Everything, for a file."""
        answers = {
            model: {"text": answer.text, "end": answer.end}
            | ({"exact": judged.exact, "similarity": round(judged.similarity, 4)} if judged else {})
            for model, answer in self.answers.items()
            for judged in (self.judged(model),)
        }
        asked = {"messages": self.question.messages, "reference": self.question.reference}
        return asked | answers


@dataclass(frozen=True)
class Totals:
    """Of the questions that a model has answered: how many, how many exactly, and the mean similarity."""

    rows: int
    exact: int
    similarity: float

    @classmethod
    def of(cls, results: Sequence[Result], model: str) -> Totals:
        """Add up one model's answers."""
        judged = [found for result in results if (found := result.judged(model))]
        mean = sum(one.similarity for one in judged) / len(judged) if judged else 0.0
        return cls(len(judged), sum(one.exact for one in judged), mean)


def json_lines(results: Sequence[Result]) -> str:
    """The results for a file, one JSON object a line."""
    return "".join(json.dumps(result.record(), ensure_ascii=False) + "\n" for result in results)
