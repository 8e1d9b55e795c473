"""What Ollama stored of a model it was given, beside what it was told to store."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_tune.core.export.ollama import OllamaClient, same_name
from ollama_tune.core.export.publish import Recipe
from ollama_tune.core.export.values import Check
from ollama_tune.core.text import one_line

OWN_TEMPLATE = "{{ .Prompt }}"
"""What Ollama shows as the template where it uses the one inside the GGUF."""


@dataclass(frozen=True)
class Stored:
    """The check "ollama settings", and whether the server renders prompts by code of its own."""

    check: Check
    forced: bool


def check_settings(client: OllamaClient, model: str, recipe: Recipe, family: str, type_: str) -> Stored:
    """Compare `/api/tags` and `/api/show` with what was sent; `family` and `type_` as in the file.

    `fail` where the model lost what it needs (stop texts, context, system prompt, template), `warn` where
    the server added something of its own.
    """
    shown = client.show(model)
    lost = _lost(shown, recipe)
    if not any(same_name(name, model) for name in client.names()):
        lost.insert(0, "does not list the model")
    added = _added(shown, recipe, family, type_)
    forced = bool(shown.get("renderer") or shown.get("parser"))
    figures = {"lost": len(lost), "added": len(added)}
    if lost:
        text = f"Ollama {one_line('; '.join(lost), 200)}. Update Ollama and export again."
        return Stored(Check("ollama settings", "fail", f"{len(lost)} differ", text, figures), forced)
    if added:
        text = f"Ollama {one_line('; '.join(added), 200)}. The other checks say whether that matters."
        return Stored(Check("ollama settings", "warn", f"{len(added)} added", text, figures), forced)
    text = "Ollama stored what it was sent and nothing else: template, stop texts, context, system prompt."
    return Stored(Check("ollama settings", "pass", "as sent", text, figures), forced)


def _lost(shown: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """What was sent and is not there."""
    found = read_parameters(shown.get("parameters"))
    names = [name for name, value in recipe.parameters.items() if not _equal(found.get(name), value)]
    lost = [f"has another {name} than was sent" for name in names]
    if recipe.template is not None and shown.get("template") != recipe.template:
        lost.append("has another template than was sent")
    if (shown.get("system") or "") != (recipe.system or ""):
        lost.append("has another system prompt than was sent")
    return lost


def _added(shown: Mapping[str, Any], recipe: Recipe, family: str, type_: str) -> list[str]:
    """What nobody asked for."""
    names = [name for name in read_parameters(shown.get("parameters")) if name not in recipe.parameters]
    added = [f"set {name} by itself" for name in names]
    if recipe.template is None and shown.get("template", OWN_TEMPLATE) not in ("", OWN_TEMPLATE):
        added.append("put a chat template of its own over the model's")
    added += [f"uses its own {key} {shown[key]}" for key in ("renderer", "parser") if shown.get(key)]
    added += [f"added {key}" for key in ("messages", "license") if shown.get(key)]
    details = shown.get("details")
    told = details if isinstance(details, dict) else {}
    for key, expected in (("family", family), ("quantization_level", type_)):
        value = str(told.get(key) or expected)
        if value.lower() not in (expected.lower(), "unknown"):
            added.append(f"calls its {key.replace('_', ' ')} {value}, not {expected}")
    return added


def _equal(found: list[Any] | None, sent: Any) -> bool:
    return found is not None and sorted(map(str, found)) == sorted(
        map(str, sent if isinstance(sent, list) else [float(sent)])
    )


def read_parameters(text: Any) -> dict[str, list[Any]]:
    """The parameters that `/api/show` prints, a name and a Go value a line; numbers as float.

    A list is printed as one line an entry.
    """
    found: dict[str, list[Any]] = {}
    for line in text.split("\n") if isinstance(text, str) else ():
        name, _, value = line.partition(" ")
        if name:
            found.setdefault(name, []).append(_value(value.strip()))
    return found


def _value(text: str) -> Any:
    """A number or a quoted text; Go's quoted texts are also valid in Python."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return value if isinstance(value, str) else text
