"""What settings were called, and which words they took, in the files of earlier releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Former:
    """A setting as it was: its dotted path then and now, and its former words (lower case) with today's."""

    path: str
    now: str
    words: Mapping[str, Any] = field(default_factory=dict)

    def value(self, value: Any) -> Any:
        """Today's word for a value."""
        return self.words.get(str(value).strip().lower(), value)


RECOMPUTE = "training.gradient_checkpointing"
FORMER = (Former(RECOMPUTE, RECOMPUTE, {"true": "layers", "yes": "layers", "false": "none", "no": "none"}),)
"""Until there was a choice of what is recomputed, gradient_checkpointing was yes or no."""


def migrate(tree: dict[str, Any], formers: tuple[Former, ...] = FORMER) -> dict[str, Any]:
    """A tree of settings as this release reads it; where old name and new both stand, the new one holds."""
    made = {name: dict(section) if isinstance(section, dict) else section for name, section in tree.items()}
    for former in formers:
        section, _, name = former.path.partition(".")
        if not isinstance(made.get(section), dict) or name not in made[section]:
            continue
        value = former.value(made[section].pop(name))
        section, _, name = former.now.partition(".")
        holder = made.setdefault(section, {})
        if isinstance(holder, dict):
            holder.setdefault(name, value)
    return made


def present_value(path: str, value: Any) -> Any:
    """Today's word for the value of one setting."""
    for former in FORMER:
        if path == former.now:
            value = former.value(value)
    return value
