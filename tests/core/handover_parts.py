"""A finished export to hand over, a server that runs it, and what to ask of the outcome."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.handover import hand_over
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.order import Order
from ollama_tune.core.export.reference import ReferenceAnswer
from ollama_tune.core.export.values import Check, Verification
from ollama_tune.core.export.verify import compute_reference
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder
from tests.core.export_asked import check
from tests.core.export_parts import build_adapter, build_llama
from tests.ollama_double import OllamaDouble
from tests.ollama_engine import LlamaEngine
from tests.ollama_state import Reply

LIMIT = 8
PROMPTS = tuple((Message("user", f"Bird {i}?"),) for i in range(4))
NAMES = ("ollama prompt", "ollama answer", "ollama settings", "ollama")
Serve = Callable[..., OllamaDouble]


class Made:
    """A finished export: the proved file and what the tuned model answers to held-out prompts."""

    def __init__(self, folder: Path) -> None:
        self.base = build_llama(folder / "base")
        adapter = build_adapter(self.base, folder / "adapter")
        self.chat = ChatFormat.from_folder(self.base)
        self.folder = RunFolder(folder / "run")
        self.folder.export.mkdir(parents=True)
        path = self.folder.export / "birds-f16.gguf"
        export_gguf(self.base, adapter, path, "f16", chat=self.chat, name="birds")
        content = path.read_bytes()
        passed = Check("tensors", "pass", "all", "All tensors are right.")
        self.verification = Verification(
            "pass", (passed,), path.name, hashlib.sha256(content).hexdigest(), len(content), "f16"
        )
        self.reference = compute_reference(self.base, adapter, self.chat, PROMPTS, LIMIT)

    def order(self, name: str = "birds:latest", **changes: Any) -> Order:
        values = {"evaluation.max_new_tokens": LIMIT, "export.name": name, "export.type": "f16"}
        settings = Settings().with_values(values | changes)
        return Order(self.folder, settings, settings.export, name, "birds-f16", self.base, self.chat)

    def give(
        self,
        *,
        reference: Sequence[ReferenceAnswer] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        **changes: Any,
    ) -> tuple[Verification, list[tuple[str, dict[str, Any]]]]:
        events: list[tuple[str, dict[str, Any]]] = []
        known = self.reference if reference is None else reference
        found = hand_over(
            self.order(**changes),
            self.verification,
            PROMPTS,
            known,
            lambda kind, **data: events.append((kind, data)),
            stopped,
        )
        return found, events


class Shared(LlamaEngine):
    """One llama.cpp for all tests of this file, asked through something that may spoil its words."""

    twist: Callable[[Reply], Reply] = staticmethod(lambda reply: reply)

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def _load(self, gguf: Path, context: int = 512) -> LlamaServer:
        return super()._load(self.file, context)

    def unload(self, gguf: Path) -> None:
        if gguf == self.file:
            super().unload(gguf)

    def answer(self, *rest: Any) -> Reply:
        return self.twist(super().answer(*rest))


@contextlib.contextmanager
def starting(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A function that starts doubles, the last of which is the server at OLLAMA_HOST."""
    with contextlib.ExitStack() as started:

        def start(twist: Callable[[Reply], Reply] | None = None, **how: Any) -> OllamaDouble:
            if twist:
                monkeypatch.setattr(shared, "twist", twist)
            server = started.enter_context(OllamaDouble(**{"engine": shared} | how))
            monkeypatch.setenv("OLLAMA_HOST", server.url)
            return server

        yield start


def verdicts(verification: Verification) -> tuple[str, ...]:
    return tuple(check(verification, name).verdict for name in NAMES)


def ended(answer: ReferenceAnswer, text: str) -> ReferenceAnswer:
    return replace(answer, text=text, answer_ids=answer.answer_ids[:3], ended=True)
