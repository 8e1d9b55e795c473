"""What the stand-in for an Ollama server holds, was asked, and is told to do wrong."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Answer = Callable[[Path, dict[str, Any]], tuple[str, str]]
"""Answers a chat from the GGUF file and the request's body: the text and `done_reason`."""
DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Reply:
    """A generated text, why it ended, the tokens of the prompt, and thoughts taken out of the text."""

    text: str
    reason: str
    prompt_tokens: int
    thought: str = ""


class Engine(Protocol):
    """What runs models inside the server. A file that cannot be loaded is a `Refusal`."""

    def render(self, gguf: Path, turns: Turns, variables: Mapping[str, Any]) -> str: ...

    def answer(self, gguf: Path, prompt: str, limit: int, stop: Sequence[str], context: int) -> Reply: ...

    def unload(self, gguf: Path) -> None: ...


@dataclass(frozen=True)
class Request:
    """What the server was asked: the body of a blob is only counted."""

    method: str
    path: str
    body: Any


@dataclass
class Model:
    """A model made by create; `digest` is the stored file's, which a rewriting server changes."""

    digest: str
    files: dict[str, str]
    parameters: dict[str, Any]
    template: str | None = None
    system: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    family: str = ""
    quantization: str = ""


@dataclass
class Faults:
    """What goes wrong, if anything."""

    forbidden: bool = False
    broken: tuple[int, str] | None = None
    key: str | None = None
    die_mid_upload: int = 0
    away_after_death: float = 0.0
    stall_mid_upload: bool = False
    slow_upload: float = 0.0
    create_error: str | None = None
    create_without_success: bool = False
    create_silence: float = 0.0
    blob_gone_after_upload: bool = False
    chat_error: str | None = None
    unload_seconds: float = 0.0
    more_parameters: dict[str, Any] = field(default_factory=dict)
    lost_parameters: tuple[str, ...] = ()
    other_system: str | None = None
    forgotten: str = ""
    uncounted: bool = False


class Refusal(Exception):
    """A status and the words of the error object."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass
class State:
    """What the server holds; `disk` is the size of its disk in bytes, None for plenty."""

    version: str
    folder: Path
    answer: Answer | None
    engine: Engine
    faults: Faults
    disk: int | None = None
    models: dict[str, Model] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    leaving: dict[str, float] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    problems: list[BaseException] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    speak: threading.Event = field(default_factory=threading.Event)
    """Ends the silence of a create before its time."""
    active: list[str] = field(default_factory=list)
    """The paths that are being answered now."""

    @property
    def number(self) -> tuple[int, ...]:
        found = tuple(int(part) for part in self.version.removeprefix("v").split("-")[0].split("."))
        return found if any(found) else (99, 0, 0)

    @property
    def current(self) -> bool:
        """0.34.1 and newer."""
        return self.number >= (0, 34, 1)

    @property
    def native(self) -> bool:
        """0.30 and newer: the template in the file is used."""
        return self.number >= (0, 30, 0)

    @property
    def rewrites(self) -> bool:
        """0.30.0 to 0.34.0: every uploaded file is copied by llama-quantize."""
        return self.native and not self.current

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest.replace(":", "-")

    def take_room(self, size: int) -> None:
        """Refuse what does not fit on the disk."""
        used = sum(path.stat().st_size for path in (self.folder / "blobs").iterdir())
        if self.disk is not None and used + size > self.disk:
            raise Refusal(500, "write /models/blobs/sha256-1: no space left on device")

    def unload(self, name: str) -> None:
        """Memory is freed a little after the answer."""
        if name in self.loaded:
            self.leaving[name] = time.monotonic() + self.faults.unload_seconds

    def running(self) -> set[str]:
        """The models that count as loaded now."""
        for name in [name for name, end in self.leaving.items() if time.monotonic() >= end]:
            self.loaded.discard(name)
            del self.leaving[name]
        return self.loaded
