"""What runs models inside the stand-in for Ollama: a real llama.cpp, as in Ollama of 0.30 and later."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.llama import LlamaServer
from tests.ollama_state import Refusal, Reply, Turns


class LlamaEngine:
    """One llama.cpp a file, started at the first question and ended by `unload`."""

    def __init__(self) -> None:
        self._servers: dict[Path, LlamaServer] = {}
        self._lock = threading.Lock()

    def _load(self, gguf: Path, context: int = 512) -> LlamaServer:
        with self._lock:
            if gguf not in self._servers:
                try:
                    self._servers[gguf] = LlamaServer(gguf, context)
                except TuneError as error:
                    words = f"llama-server process has terminated: error loading model: {error.details[-80:]}"
                    raise Refusal(500, words) from error
            return self._servers[gguf]

    def render(self, gguf: Path, turns: Turns, variables: Mapping[str, Any]) -> str:
        return self._load(gguf).render([dict(turn) for turn in turns], variables)

    def answer(self, gguf: Path, prompt: str, limit: int, stop: Sequence[str], context: int) -> Reply:
        llama = self._load(gguf, context)
        ids = llama.tokenize(prompt, as_prompt=True)
        found = llama.complete(ids, limit)
        text = llama._post("/detokenize", {"tokens": found.ids}, lambda answer: str(answer["content"]))
        places = [text.find(mark) for mark in stop if mark in text]
        reason = "stop" if found.ended or places else "length"
        return Reply(text[: min(places)] if places else text, reason, len(ids))

    def unload(self, gguf: Path) -> None:
        with self._lock:
            server = self._servers.pop(gguf, None)
        if server is not None:
            server.close()

    def close(self) -> None:
        for gguf in list(self._servers):
            self.unload(gguf)


class WordEngine:
    """For tests of the protocol alone: renders plainly, counts words, and says the same to everybody."""

    def __init__(self, text: str = "It is blue.", reason: str = "stop") -> None:
        self.text, self.reason = text, reason

    def render(self, gguf: Path, turns: Turns, variables: Mapping[str, Any]) -> str:
        return "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns)

    def answer(self, gguf: Path, prompt: str, limit: int, stop: Sequence[str], context: int) -> Reply:
        return Reply(self.text, self.reason, len(prompt.split()))

    def unload(self, gguf: Path) -> None:
        return
