"""Why a base model could be trained but not exported, told from its small files before anything is done."""

from __future__ import annotations

from pathlib import Path

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.architectures import read_config
from ollama_tune.core.models.vocabulary import tokenizer_obstacle


def export_obstacle(folder: Path) -> str:
    """Empty when a model of this folder can become a GGUF, else one sentence why not.

    Only config.json and tokenizer.json are read, so it answers before the weights are downloaded.
    """
    try:
        read_config(folder)
    except TuneError as error:
        return error.what
    return tokenizer_obstacle(folder)
