"""Prompts on which llama.cpp's reading is compared with the training's, and which differences matter."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.probes import CONVERSATIONS, TEXTS

Conversation = Sequence[Message]
Ids = tuple[int, ...]

MOST_CONVERSATIONS = 64
"""Of the user's data; each costs a few milliseconds."""
FEW = 3
"""Difficult plain texts that may become other tokens, with a warning, where the rules are known by name."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the training saw it; one with `as_chat` is to be rendered by llama.cpp too.

    `marks`: it holds combining marks or characters that Unicode would compose. `edges`: it has spaces at
    the edge of a message, which the tokenizer's special tokens swallow. llama.cpp can do neither.
    """

    messages: Conversation
    text: str
    ids: Ids
    as_chat: bool
    marks: bool
    edges: bool

    @property
    def odd(self) -> bool:
        """Whether llama.cpp may read it differently, with a warning."""
        return self.marks or self.edges


def prompts_of(chat: ChatFormat, conversations: Sequence[Conversation]) -> list[Prompt]:
    """What is compared: conversations, and every difficult text as a question.

    Only there does a chat model meet it: SentencePiece reads the beginning of a bare text differently.
    Conversations that the model's template refuses are left out, and those of more than plain texts.
    """
    chats = [*CONVERSATIONS, *filter(is_plain, conversations)][: len(CONVERSATIONS) + MOST_CONVERSATIONS]
    made = [_prompt(chat, messages, as_chat=True) for messages in chats]
    made += [_prompt(chat, (Message("user", text),), as_chat=False) for text in TEXTS]
    return [prompt for prompt in made if prompt is not None]


def is_plain(messages: Conversation) -> bool:
    """True for a conversation of mere roles and texts.

    What a client sends of tools and thoughts, an engine hands to the template in a form of its own, so such
    a conversation says nothing about the exported file.
    """
    roles = ("system", "user", "assistant")
    return all(m.role in roles and not m.reasoning and not m.tool_calls for m in messages)


def _prompt(chat: ChatFormat, messages: Conversation, *, as_chat: bool) -> Prompt | None:
    try:
        text = chat.render(messages, add_generation_prompt=True)
    except TuneError:
        return None
    marks = any(has_marks(message.content) for message in messages)
    return Prompt(messages, text, chat.encode(text)[0], as_chat, marks, has_swallowed_edges(chat, messages))


def is_odd(chat: ChatFormat, messages: Conversation) -> bool:
    """Whether llama.cpp may read the conversation differently, with a warning."""
    return any(has_marks(message.content) for message in messages) or has_swallowed_edges(chat, messages)


def in_own_data(wrong: Sequence[Prompt]) -> bool:
    """Whether one of them is a whole conversation, such as those of the user's data, and no mere probe."""
    return any(prompt.as_chat for prompt in wrong)


def too_many(wrong: Sequence[Prompt], few: int = FEW) -> bool:
    """Whether these prompts, read differently by llama.cpp, make the tuned model useless."""
    plain = [prompt for prompt in wrong if not prompt.odd]
    return len(plain) > few or any(prompt.as_chat for prompt in plain)


def has_swallowed_edges(chat: ChatFormat, messages: Conversation) -> bool:
    """True for messages with spaces at their edges where special tokens swallow those beside them."""
    swallows = any(token.lstrip or token.rstrip for token in chat.added_tokens.values())
    return swallows and any(message.content != message.content.strip() for message in messages)


def has_marks(text: str) -> bool:
    """True for text with combining marks or uncomposed characters.

    llama.cpp composes none, and some of its rules do not count marks as parts of words.
    """
    marks = any(unicodedata.category(character).startswith("M") for character in text)
    return marks or not unicodedata.is_normalized("NFC", text)
