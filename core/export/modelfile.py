"""The Modelfile for people and the exact commands; the export itself never goes through them."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ollama_tune.core.files import write_atomic

NAME = "Modelfile"


def write_modelfile(
    folder: Path,
    gguf_name: str,
    stop: Sequence[str] = (),
    *,
    num_ctx: int | None = None,
    temperature: float | None = None,
) -> Path:
    """Write `folder`/Modelfile for a GGUF file beside it; returns its path.

    The chat template is inside the GGUF file, so none is repeated here. A stop text that the format
    cannot hold (it has no escapes and drops unprintable characters) is left out with a comment.
    """
    lines = [
        "# Written by ollama-tune. The chat template is inside the GGUF file; Ollama 0.30 or newer uses it.",
        f"FROM ./{gguf_name}",
    ]
    if num_ctx is not None:
        lines.append(f"PARAMETER num_ctx {num_ctx}")
    if temperature is not None:
        lines.append(f"PARAMETER temperature {temperature:g}")
    for text in stop:
        quoted = quote(text)
        lines.append(
            f"PARAMETER stop {quoted}" if quoted else f"# A Modelfile cannot hold the stop {text!a}."
        )
    path = folder / NAME
    write_atomic(path, "\n".join(lines) + "\n")
    return path


def quote(text: str) -> str | None:
    """The text as Ollama's parser reads it back unchanged, or None where it cannot."""
    if not text or not all(_printable(character) for character in text):
        return None
    if '"' not in text:
        return f'"{text}"'
    if '"""' in text or text.startswith('"') or text.endswith('"'):
        return None
    return f'"""{text}"""'


def _printable(character: str) -> bool:
    """Go's strconv.IsPrint: letters, marks, numbers, punctuation, symbols and the plain space."""
    return character == " " or unicodedata.category(character)[0] in "LMNPS"


def commands(name: str, folder: Path) -> list[str]:
    """What to type to make the model from the folder's Modelfile and to chat with it."""
    modelfile = shlex.quote(str(folder / NAME))
    return [f"ollama create {shlex.quote(name)} -f {modelfile}", f"ollama run {shlex.quote(name)}"]
