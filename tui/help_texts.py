"""The help for people, from `assets/help`: found by file and heading, for the screens and the plain lines."""

from __future__ import annotations

from ollama_tune.core.paths import asset
from ollama_tune.tui.fields import FIELDS

TITLES = {
    "list": "Models",
    "source": "Model",
    "path": "Data",
    "table": "Rows",
    "text": "One row as the model sees it",
    "split": "Train on",
    "validation": "Measure on",
    "form": "Kind of task",
}
"""What the screens call a thing that is no field and whose heading is a name of the files."""


def help_text(section: str, heading: str) -> str:
    """The text below a heading of `assets/help/<section>.md`; empty when there is none."""
    path = asset(f"help/{section}.md")
    parts = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.is_file() else []
    for part in parts:
        title, _, text = part.partition("\n")
        if title.strip() == heading:
            return text.strip()
    return ""


def help_title(section: str, heading: str) -> str:
    """What a topic is called on the screens: a field by its label."""
    field = FIELDS.get(f"{section}.{heading}")
    words = heading.replace("_", " ")
    return field.label if field is not None else TITLES.get(heading, words[:1].upper() + words[1:])
