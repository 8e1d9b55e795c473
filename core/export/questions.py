"""What the finished model is asked in Ollama: held-out prompts with the tuned model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.order import Order
from ollama_tune.core.export.prompts import is_plain
from ollama_tune.core.export.reference import ReferenceAnswer

ASKED = 4
"""Questions that are answered; each may take as long as the longest answer."""


@dataclass(frozen=True)
class Question:
    """A conversation as it is sent, the prompt the model must see for it, and what it should answer.

    `turns` are role and content of each message. `text` is the training's text of the prompt with a
    system prompt that the model carries, `ids` its tokens. `reference` is None where no answer is known.
    """

    turns: tuple[dict[str, str], ...]
    text: str
    ids: tuple[int, ...]
    reference: ReferenceAnswer | None


def choose_questions(
    order: Order,
    conversations: Sequence[Sequence[Message]],
    reference: Sequence[ReferenceAnswer],
    system: str | None,
) -> list[Question]:
    """Up to `ASKED` prompts that fit the context with an answer; those whose answer is known come first."""
    known = {answer.prompt_ids: answer for answer in reference}
    found = read_questions(order, conversations, system, known)
    room = order.context - order.settings.evaluation.max_new_tokens
    fitting = [question for question in found if len(question.ids) <= room]
    return sorted(fitting, key=_rank)[:ASKED]


def read_questions(
    order: Order,
    conversations: Sequence[Sequence[Message]],
    system: str | None,
    known: dict[tuple[int, ...], ReferenceAnswer] | None = None,
) -> list[Question]:
    """Every conversation of plain texts that the template does not refuse, as a question."""
    found = []
    for messages in filter(is_plain, conversations):
        try:
            found.append(_question(order, messages, system, known or {}))
        except TuneError:
            continue
    return found


def _rank(question: Question) -> int:
    return 2 if question.reference is None else 0 if question.reference.ended else 1


def _question(
    order: Order,
    messages: Sequence[Message],
    system: str | None,
    known: dict[tuple[int, ...], ReferenceAnswer],
) -> Question:
    """Ollama puts the model's system prompt before a conversation that does not begin with one."""
    turns = list(messages)
    whole = turns if not system or turns[0].role == "system" else [Message("system", system), *turns]
    text = order.chat.render(whole, add_generation_prompt=True)
    ids = order.chat.encode(text)[0]
    sent = tuple({"role": turn.role, "content": turn.content} for turn in turns)
    return Question(sent, text, ids, known.get(ids))
