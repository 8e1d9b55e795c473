"""Answers questions with the base and the tuned model of a run: the process behind the Try-it screen.

`python -m ollama_tune.core.evaluate.chat RUNFOLDER` reads one JSON object a line and writes one a line:

    in    {"id", "messages": [{"role", "content"}], "max_new_tokens", "temperature", "seed"} or {"cancel": id}
    out   {"ready": true} once, {"id", "model": "base" | "tuned", "text": the next piece},
          {"id", "model", "end": "stop" | "length" | "cancelled", "tokens", "seconds"},
          {"id" (absent when the model cannot be loaded), "error": {"what", "fix"}}

The base answers first, then the tuned model. It ends when its input is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.locate import resolve
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.runs.chat import run_chat
from ollama_tune.core.runs.folder import RunFolder

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.generate import Generator
    from ollama_tune.core.train.path import Engine

Send = Callable[[dict[str, Any]], None]


class Inbox:
    """Reads requests in a thread, so that a cancellation arrives while an answer is being written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._cancelled: set[int] = set()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any]:
        """The next request, waited for."""
        return self._requests.get()

    def cancelled(self, number: int) -> bool:
        """True when that request is not wanted any more."""
        return number in self._cancelled

    def _read(self) -> None:
        for line in self._file:
            request = json.loads(line)
            if "cancel" in request:
                self._cancelled.add(int(request["cancel"]))
            else:
                self._requests.put(request)
        os._exit(0)


class Chat:
    """A run's model with its adapter, loaded once."""

    def __init__(self, folder: RunFolder) -> None:
        if not folder.adapter.is_dir():
            what = f"The run {folder.name} has no tuned model yet."
            raise TuneError(what, "Wait until its training is done.")
        settings = folder.settings()
        base_folder = resolve(settings.model.source, settings.model.revision)
        self._format = run_chat(folder, base_folder)

        self._context = (read_json(base_folder / "config.json") or {}).get("max_position_embeddings")

        from ollama_tune.core.evaluate.generate import Generator

        engine = load_engine(base_folder, folder.adapter, settings.training)
        self._generator: Generator = Generator(engine, self._format)

    def answer(self, request: dict[str, Any], send: Send, cancelled: Callable[[], bool]) -> None:
        """Answer with the base, then with the tuned model, piece by piece."""
        prompt = self._prompt([_message(m) for m in request["messages"]])
        for model in ("base", "tuned"):
            head = {"id": request["id"], "model": model}
            if cancelled():
                send(head | {"end": "cancelled", "tokens": 0, "seconds": 0.0})
                continue
            start = time.perf_counter()
            made = self._generator.stream(
                prompt,
                int(request["max_new_tokens"]),
                tuned=model == "tuned",
                on_text=lambda text, head=head: send(head | {"text": text}),  # type: ignore[misc]
                temperature=float(request["temperature"]),
                seed=int(request["seed"]),
                stopped=cancelled,
            )
            end = "stop" if made.ended else "cancelled" if cancelled() else "length"
            seconds = round(time.perf_counter() - start, 4)
            send(head | {"end": end, "tokens": len(made.ids), "seconds": seconds})

    def _prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        prompt = self._format.prompt_ids(messages)
        if self._context is not None and len(prompt) >= self._context:
            raise TuneError(
                f"The conversation has {len(prompt):,} tokens; the model reads at most {self._context:,}.",
                "Begin a new conversation or ask a shorter question.",
            )
        return prompt


def load_engine(base: Path, adapter: Path, training: TrainingSettings) -> Engine:
    """The fast path's engine where it can compute the model and its adapter, for that starts in a moment."""
    if training.path != "general":
        from ollama_tune.core.train.fast import path

        with contextlib.suppress(TuneError):
            return path.load_engine(base, training, adapter)

    from ollama_tune.core.evaluate.general_engine import GeneralEngine
    from ollama_tune.core.train.model import autocast, load_adapter, load_base

    return GeneralEngine(load_adapter(load_base(base, training), adapter), lambda: autocast(training))


def _message(turn: Mapping[str, Any]) -> Message:
    """A turn of a request. One without a text, such as a mere call of a tool, has an empty one."""
    return Message(
        str(turn["role"]), str(turn.get("content") or ""), str(turn.get("reasoning_content") or "")
    )


def main(arguments: Sequence[str]) -> int:
    """Serve one run until the input is closed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    inbox, send = Inbox(sys.stdin), _own_output()
    try:
        chat = Chat(RunFolder(Path(arguments[0])))
    except Exception as error:
        send(_problem(error))
        return 1
    send({"ready": True})
    while True:
        request = inbox.next()
        number = int(request["id"])
        try:
            chat.answer(request, send, lambda: inbox.cancelled(number))  # noqa: B023
        except Exception as error:
            send({"id": number} | _problem(error))


def _own_output() -> Send:
    """Keep the real standard output for answers; whatever libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")

    return send


def _problem(error: Exception) -> dict[str, Any]:
    if not isinstance(error, TuneError):
        traceback.print_exception(error)
        what = f"The answer failed with an unforeseen problem ({type(error).__name__})."
        error = TuneError(what, "Look into chat.log in the run's folder.")
    return {"error": {"what": error.what, "fix": error.fix}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
