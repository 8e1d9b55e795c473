"""A chat form for base models, which have none: chosen by the tokens that the model really knows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import UsageError
from ollama_tune.core.models.tokenizer_files import chat_template, configured_id, read_json, special_tokens
from ollama_tune.core.text import one_line

NO_TEMPLATE = "This is a base model without a chat template: it has no form for questions and answers."
CHATML_END = "<|im_end|>"

# Both print a turn as its role and its text. The second writes the roles as plain words, in the form of
# Tulu 3 and OLMo 2, and ends only answers: with the token that the base model ends every text with. (Jinja
# takes a line break away that follows a block.)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PLAIN = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ END }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class TemplateOffer:
    """A chat template for a model without one.

    `template` is Jinja, as `ChatFormat.from_folder(folder, template=...)` takes it; `end` is the token that
    ends an answer; `reason` says in a sentence why this form.
    """

    name: str
    template: str
    end: str
    reason: str


def offer_template(folder: Path) -> TemplateOffer | None:
    """The chat form that fits a base model; None for a chat model, and where no token ends a text.

    An adapter does not train embeddings, so a mark must be one that the model has learned already. Of a
    base model that is certain only of the token at the end of its texts; marks of a later chat model stand
    in its vocabulary, but their vectors were never trained. So the roles are plain words and the end is
    the model's own; only where that is ChatML's, ChatML is taken. Raises `TuneError` for damaged files.
    """
    if chat_template(folder) is not None:
        return None
    end = _end_token(folder)
    if not end:
        return None
    start = _start_token(folder)
    start = f"{{{{ {_quoted(start)} }}}}" if start else ""
    if end == CHATML_END:
        reason = f"ChatML, as the model ends its texts with {end} already."
        return TemplateOffer("ChatML", start + _CHATML, end, reason)
    reason = f"Roles as plain words and {one_line(end, 40)} after an answer, which the model knows already."
    return TemplateOffer("plain roles", start + _PLAIN.replace("END", _quoted(end)), end, reason)


def chosen_template(folder: Path, name: str | None) -> str | None:
    """The template that stands in for a base model's missing one; None where a chat model's own is used.

    `name` is the setting `model.chat_template`. Raises `UsageError` when a base model has none set, or any
    model has one set that is not what `offer_template` offers for it; the advice names the offer.
    """
    offer = offer_template(folder)
    if offer is not None and name == offer.name:
        return offer.template
    if offer is not None:
        what = f"There is no chat form {name!r} for this model." if name else NO_TEMPLATE
        way = (
            f"Set model.chat_template to '{offer.name}' ({offer.reason.rstrip('.')}), or choose a chat model."
        )
        raise UsageError(what, way)
    if name is None:
        return None
    if chat_template(folder) is not None:
        raise UsageError("This model has a chat form of its own.", "Leave model.chat_template empty.")
    raise UsageError(NO_TEMPLATE, "Choose a chat model: no token of this one ends an answer.")


def _quoted(text: str) -> str:
    """A token as a text inside a template; other engines than Jinja may not know escaped characters."""
    return json.dumps(text, ensure_ascii=False)


def _end_token(folder: Path) -> str:
    """The text of the token that ends a text: the tokenizer's, else the one that generation stops at."""
    named = special_tokens(folder).get("eos_token")
    if named:
        return named
    ids = configured_id(folder, "eos_token_id")
    added = {entry["id"]: str(entry["content"]) for entry in _added(folder)}
    return next((added[number] for number in ids if number in added), "")


def _added(folder: Path) -> list[dict[str, Any]]:
    listed = (read_json(folder / "tokenizer.json") or {}).get("added_tokens")
    found = listed if isinstance(listed, list) else []
    return [e for e in found if isinstance(e, dict) and isinstance(e.get("id"), int) and e.get("content")]


def _start_token(folder: Path) -> str:
    """The token before every text, where the tokenizer was made to put one there in pre-training."""
    named = special_tokens(folder).get("bos_token")
    if not named:
        return ""
    wanted = (read_json(folder / "tokenizer_config.json") or {}).get("add_bos_token")
    if isinstance(wanted, bool):
        return named if wanted else ""
    steps = json.dumps((read_json(folder / "tokenizer.json") or {}).get("post_processor"))
    return named if json.dumps(named) in steps else ""
