"""The Modelfile for people and the exact commands; the export itself never goes through them."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ollama_tune.core.files import write_atomic

NAME = "Modelfile"
MARK = '"""'
USUAL_HOST = "registry.ollama.ai"


def write_modelfile(
    folder: Path,
    gguf_name: str,
    stop: Sequence[str] = (),
    *,
    num_ctx: int | None = None,
    temperature: float | None = None,
    system: str | None = None,
) -> Path:
    """Write `folder`/Modelfile for a GGUF file beside it; returns its path.

    The chat template is inside the GGUF file, so none is repeated here. What the format cannot hold (it
    has no escapes and drops unprintable characters) is left out with a comment.
    """
    lines = [
        "# Written by ollama-tune. The chat template is inside the GGUF file; Ollama 0.30 or newer uses it.",
        f"FROM ./{gguf_name}",
    ]
    if num_ctx is not None:
        lines.append(f"PARAMETER num_ctx {num_ctx}")
    if temperature is not None:
        lines.append(f"PARAMETER temperature {temperature:g}")
    lines += [_line("PARAMETER stop", "stop", text) for text in stop]
    if system:
        lines.append(_line("SYSTEM", "system prompt", system))
    path = folder / NAME
    write_atomic(path, "\n".join(lines) + "\n")
    return path


def _line(command: str, kind: str, text: str) -> str:
    quoted = quote(text)
    return f"{command} {quoted}" if quoted else f"# A Modelfile cannot hold the {kind} {text!a}."


def quote(text: str) -> str | None:
    """The text as Ollama's parser reads it back unchanged, or None where it cannot (parser/parser.go).

    A quoted value ends at the first line break before which the text so far looks closed.
    """
    if not text or not all(_kept(character) for character in text):
        return None
    mark = MARK if '"' in text else '"'
    breaks = [i for i, character in enumerate(text) if character in "\r\n"]
    closed_early = any(_closed(mark, (mark + text[:i]).strip()) for i in breaks)
    return None if closed_early else f"{mark}{text}{mark}"


def _closed(mark: str, text: str) -> bool:
    return len(text) >= 2 * len(mark) and text.endswith(mark)


def _kept(character: str) -> bool:
    """Go's strconv.IsPrint (letters, marks, numbers, punctuation, symbols, the plain space), and what the
    parser keeps besides: tabs and line breaks."""
    return character in " \t\r\n" or unicodedata.category(character)[0] in "LMNPS"


def commands(name: str, folder: Path) -> list[str]:
    """What to type to make the model from the folder's Modelfile and to chat with it."""
    modelfile = shlex.quote(str(folder / NAME))
    return [f"ollama create {shlex.quote(name)} -f {modelfile}", f"ollama run {shlex.quote(name)}"]


def push_commands(name: str) -> list[str]:
    """What to type to put the model into a registry; `USER` stands for the account where the name has none.

    Only a name with a namespace can be pushed, and only after `ollama signin`; other registries than
    ollama.com have a way of their own to sign in.
    """
    *places, model = name.split("/")
    if len(places) == 2 and places[0] != USUAL_HOST:
        return [f"ollama push {shlex.quote(name)}"]
    if places and places[-1] != "library":
        return ["ollama signin", f"ollama push {shlex.quote(name)}"]
    return ["ollama signin", f"ollama cp {shlex.quote(name)} USER/{model}", f"ollama push USER/{model}"]
