"""The chat template as the GGUF carries it: the one of the training, kept from being replaced by Ollama."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_tune.core.data.chat.pins import pinned, prints_date
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError

# The words that would make Ollama believe in special abilities must not be in it.
TEMPLATE_COMMENT = (
    "{# This is the chat template the model was tuned with, unchanged below this comment. The comment is "
    "long on purpose: Ollama replaces a template that closely resembles one it knows by its own version, "
    "which can render differently by a few characters, and then the model would see text unlike the text "
    "it was trained on. #}\n"
)
LONGEST_KNOWN = 4614
"""Characters of the longest of the 37 templates that Ollama would replace (0.5.5 to 0.40)."""
NEAR = 100
"""Ollama takes a template for one it knows when fewer edits part them."""
THINKING = ("enable_thinking", "thinking", "reasoning_effort")
"""What templates call the wish that the model thinks first."""

_QUESTION, _ANSWER = Message("user", "q"), Message("assistant", "a")
_FORMS = {
    "two questions in a row": (_QUESTION, _QUESTION),
    "an answer before the first question": (_ANSWER, _QUESTION),
    "a system text after the first question": (_QUESTION, _ANSWER, Message("system", "s"), _QUESTION),
}


def exported_template(chat: ChatFormat) -> str:
    """The template text for `tokenizer.chat_template`: a comment and the template of the training.

    Two texts are at least as many edits apart as their lengths differ, so a text of 4,714 characters or
    more is near to none that Ollama knows; shorter ones are made that long with blanks in a comment.
    """
    text = TEMPLATE_COMMENT + chat.template
    missing = LONGEST_KNOWN + NEAR - len(text)
    return text if missing <= 0 else f"{TEMPLATE_COMMENT}{{#{' ' * missing}#}}\n{chat.template}"


def template_limits(chat: ChatFormat) -> list[str]:
    """What a person may expect of the model in Ollama that its chat template does not do, in sentences."""
    limits = []
    if any(pinned(chat.template, name) for name in THINKING):
        limits.append("Ollama's setting for thinking changes no prompt: all stay as in the training.")
    if prints_date(chat.template):
        limits.append("The chat template prints the date; it stays that of the training.")
    refused = [form for form, messages in _FORMS.items() if not _renders(chat, messages)]
    if refused:
        limits.append(f"The chat template refuses {', '.join(refused)}; Ollama answers with an error then.")
    return limits


def _renders(chat: ChatFormat, messages: Sequence[Message]) -> bool:
    try:
        chat.render(messages, add_generation_prompt=True)
    except TuneError:
        return False
    return True
