"""What the stand-in for an Ollama server holds, was asked, and is told to do wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Answer = Callable[[Path, dict[str, Any]], tuple[str, str]]
"""Answers a chat from the GGUF file and the request's body: the text and `done_reason`."""


@dataclass(frozen=True)
class Request:
    """What the server was asked: the body of a blob is only counted."""

    method: str
    path: str
    body: Any


@dataclass
class Model:
    """A model made by create."""

    digest: str
    files: dict[str, str]
    parameters: dict[str, Any]


@dataclass
class Faults:
    """What goes wrong, if anything."""

    forbidden: bool = False
    broken: tuple[int, str] | None = None
    die_mid_upload: int = 0
    stall_mid_upload: bool = False
    create_error: str | None = None
    create_without_success: bool = False
    create_silence: float = 0.0
    blob_gone_after_upload: bool = False
    chat_error: str | None = None


class Refusal(Exception):
    """A status and the words of the error object."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass
class State:
    """What the server holds."""

    version: str
    folder: Path
    answer: Answer
    faults: Faults
    models: dict[str, Model] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    problems: list[BaseException] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def number(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("-")[0].split("."))

    @property
    def current(self) -> bool:
        """0.34.1 and newer."""
        return self.number >= (0, 34, 1)

    def blob(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")
