"""Reads the small text files beside a tokenizer: chat template, special tokens, end-of-turn ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError

LARGEST = 64 * 2**20
"""Bytes; no honest config or template comes near, and a huge file must not fill the memory."""

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that transformers passes to a chat template by name."""


def read_text(path: Path) -> str | None:
    """The file's text, or None where there is none; `TuneError` when it cannot be read as UTF-8."""
    try:
        if path.stat().st_size > LARGEST:
            raise TuneError(f"{path} is too large to be a model's text file.", "Download the model again.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise TuneError(
            f"{path} cannot be read.",
            "Check its permissions or download the model again.",
            details=repr(error),
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no file; `TuneError` when it is damaged."""
    text = read_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half characters, which no library can take
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise TuneError(
            f"{path} is damaged: it is not valid JSON.", "Download the model again.", details=repr(error)
        ) from error
    if not isinstance(value, dict):
        raise TuneError(f"{path} is damaged: it holds no JSON object.", "Download the model again.")
    return value


def _default_template(stored: Any) -> str | None:
    """The stored form is a text, or a list of `{"name", "template"}` of which `default` is meant."""
    if isinstance(stored, list):
        named = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
        stored = named.get("default")
    return stored if isinstance(stored, str) and stored.strip() else None


def chat_template(folder: Path) -> str | None:
    """The model's default chat template, or None for a base model.

    `chat_template.jinja` comes before `tokenizer_config.json`, as in transformers.
    """
    text = read_text(folder / "chat_template.jinja")
    if text is not None and text.strip():
        return text
    return _default_template((read_json(folder / "tokenizer_config.json") or {}).get("chat_template"))


def special_tokens(folder: Path) -> dict[str, str]:
    """The named special tokens (`bos_token`, `eos_token`, ...) as texts; stored as a text or an object."""
    stored = {
        **(read_json(folder / "special_tokens_map.json") or {}),
        **(read_json(folder / "tokenizer_config.json") or {}),
    }
    found: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        value = stored.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def configured_id(folder: Path, name: str) -> tuple[int, ...]:
    """The ids under `name` (such as `eos_token_id`) in generation_config.json, else in config.json."""
    for file in ("generation_config.json", "config.json"):
        value = (read_json(folder / file) or {}).get(name)
        listed = value if isinstance(value, list) else [value]
        ids = tuple(i for i in listed if isinstance(i, int) and not isinstance(i, bool) and i >= 0)
        if ids:
            return ids
    return ()
