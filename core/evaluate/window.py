"""Makes a conversation fit into what a model reads: the oldest turns are left out, as in training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError


@dataclass(frozen=True)
class Fitted:
    """The token ids of a prompt, how many turns were left out of it, and the tokens left for the answer."""

    ids: tuple[int, ...]
    dropped: int
    room: int


def fit_prompt(
    chat: ChatFormat, messages: Sequence[Message], tools: str, context: int | None, max_new_tokens: int
) -> Fitted:
    """The prompt with as few of its oldest turns left out as leave room for the longest answer.

    A system text and the last question always stay; where these leave less room, the answer is shorter.
    `context` is how many tokens the model reads, None where nothing limits it. Raises `TuneError` where not
    even the question fits.
    """
    if context is None:
        return Fitted(chat.prompt_ids(messages, tools), 0, max_new_tokens)
    head = next((i for i, message in enumerate(messages) if message.role != "system"), 0)
    cuts = [head] + [i for i in range(head + 1, len(messages)) if _opens(messages, i)]

    def prompt(cut: int) -> tuple[int, ...]:
        return chat.prompt_ids([*messages[:head], *messages[cut:]], tools)

    chosen = bisect_left(cuts, True, key=lambda cut: len(prompt(cut)) + max_new_tokens <= context)
    dropped = min(chosen, len(cuts) - 1)
    ids = prompt(cuts[dropped])
    if len(ids) >= context:
        raise TuneError(
            f"The question has {len(ids):,} tokens with its system prompt; "
            f"the model reads at most {context:,}.",
            "Ask a shorter one.",
        )
    return Fitted(ids, dropped, min(max_new_tokens, context - len(ids)))


def _opens(messages: Sequence[Message], number: int) -> bool:
    """Whether a new question begins there."""
    return messages[number].role == "user" and messages[number - 1].role != "user"
