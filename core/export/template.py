"""The chat template as the GGUF carries it: the one of the training, kept from being replaced by Ollama."""

from __future__ import annotations

from ollama_tune.core.data.render import ChatFormat

# Ollama swaps an embedded template for a similar one of its own when fewer than 100 edits part them; a
# comment of 200 characters keeps every one of them away. The words that would make Ollama believe in
# special abilities must not be in it.
TEMPLATE_COMMENT = (
    "{# This is the chat template the model was tuned with, unchanged below this comment. The comment is "
    "long on purpose: Ollama replaces a template that closely resembles one it knows by its own version, "
    "which can render differently by a few characters, and then the model would see text unlike the text "
    "it was trained on. #}\n"
)


def exported_template(chat: ChatFormat) -> str:
    """The template text for `tokenizer.chat_template`."""
    return TEMPLATE_COMMENT + chat.template
