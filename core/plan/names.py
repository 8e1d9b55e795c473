"""Names that Ollama takes: `[host/][namespace/]model[:tag]` (rules of its types/model/name.go)."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from ollama_tune.core.errors import UsageError
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.text import visible

MAX_PART = {"host": 350, "namespace": 80, "model": 80, "tag": 80}
EXTRA = {"host": "_-.:", "namespace": "_-", "model": "_-.", "tag": "_-."}
SUGGESTED = 60


def check_ollama_name(name: str) -> str:
    """The full name with its tag (`latest` when none is given); `UsageError` names the wrong part."""
    name = name.strip()
    rest, tag = name, "latest"
    if name.rfind(":") > name.rfind("/"):
        rest, _, tag = name.rpartition(":")
    parts = rest.rsplit("/", 2)
    kinds = ("host", "namespace", "model")[-len(parts) :]
    for kind, part in zip(kinds, parts, strict=True):
        _check(kind, part)
    _check("tag", tag)
    return f"{rest}:{tag}"


def _check(kind: str, part: str) -> None:
    if not part:
        raise UsageError(f"The {kind} in the Ollama name is empty.", "Write a name such as my-model.")
    if len(part) > MAX_PART[kind]:
        raise UsageError(
            f"The {kind} in the Ollama name has {len(part)} characters; {MAX_PART[kind]} are allowed.",
            "Write a shorter name.",
        )
    for position, character in enumerate(part):
        plain = character.isascii() and character.isalnum()
        if plain or (character in EXTRA[kind] and (position or character == "_")):
            continue
        where = "start with" if position == 0 and character in EXTRA[kind] else "contain"
        raise UsageError(
            f"The {kind} in an Ollama name may not {where} {_named(character)}.",
            "Use letters and digits, and after the first character also - _ and, in model and tag, a dot.",
        )


def _named(character: str) -> str:
    return "a space" if character == " " else f"'{visible(character)}'"


def suggest_name(spec: ModelSpec, data_path: str) -> str:
    """A name made of the model's and the data file's, such as `qwen3-4b-tickets`."""
    model = _slug(spec.name.rsplit("/", 1)[-1])
    data = _slug("tickets" if data_path == "bundled" else Path(data_path).stem)
    name = "-".join(part for part in (model[: SUGGESTED - 20], data) if part)
    return name[:SUGGESTED].rstrip("-.") or "my-tune"


def _slug(text: str) -> str:
    """In the letters that a name may have; those with accents lose them."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.")
