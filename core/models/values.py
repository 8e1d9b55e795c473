"""What a base model is, read from its files without loading weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelChoice:
    """A model offered in the list. `source` is what `run.yaml` stores: `bundled`, a folder, or a hub id."""

    source: str
    kind: str
    name: str
    size: int | None
    note: str


@dataclass(frozen=True)
class ModelSpec:
    """Shape, size and texts of a base model.

    Sizes in bytes, `parameters` counted from the safetensors headers. `export_reason` is empty when
    it can become a GGUF, else one sentence says why not.
    """

    source: str
    folder: Path
    name: str
    architecture: str
    model_type: str
    parameters: int
    weight_bytes: int
    weight_dtype: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary_size: int
    tied_embeddings: bool
    context_length: int
    chat_template: str | None
    licence: str
    export_reason: str
