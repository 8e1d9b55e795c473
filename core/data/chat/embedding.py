"""Whether a model knows the tokens of its tokenizer: an unresized embedding has no rows for added ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.tokenizer_files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def require_rows(folder: Path, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
    """Raise `TuneError` where the model in `folder` lacks a row of the vocabulary or of a prompt's tokens.

    Added tokens that no prompt holds need none: Gemma 3 has one for pictures.
    """
    rows = (read_json(folder / "config.json") or {}).get("vocab_size")
    last = max(tokenizer.get_vocab_size(with_added_tokens=False) - 1, *prompt)
    if isinstance(rows, int) and last >= rows:
        raise TuneError(
            f"The tokenizer has the token id {last}, but the model has only {rows} embedding rows.",
            "Resize the model's embeddings to its tokenizer, or choose another base model.",
        )
