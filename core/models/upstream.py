"""What the hub names now: the commit of a branch or tag, asked for in a moment and never needed to go on."""

from __future__ import annotations

from typing import Literal

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.hub_errors import hub_errors

Kind = Literal["model", "data set"]

PATIENCE = 3.0
"""Seconds without an answer after which there is none."""


def commit_on_hub(source: str, revision: str, kind: Kind) -> str:
    """The commit that a revision of a hub id names there now (empty: its main branch).

    Empty where the hub cannot be asked or does not say, offline above all: whoever needs its files will hear
    why.
    """
    try:
        with hub_errors(source, kind):
            from huggingface_hub import HfApi

            ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
            return str(ask(source, revision=revision or None, timeout=PATIENCE).sha or "")
    except TuneError:
        return ""
