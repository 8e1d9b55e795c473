"""What a model is, wherever it lies; of a hub model that is not here only the small files are fetched."""

from __future__ import annotations

from ollama_tune.core.models.download import fetch_metadata
from ollama_tune.core.models.locate import is_hub_id, snapshots
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.models.values import ModelSpec


def describe(source: str, revision: str | None = None) -> ModelSpec:
    """As `read_spec`, after fetching config, tokenizer and weight headers of an unknown hub id."""
    if is_hub_id(source) and not snapshots(source, revision):
        fetch_metadata(source, revision)
    return read_spec(source, revision)
