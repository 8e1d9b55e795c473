"""Answers questions with the base and the tuned model of a run: the process behind the Try-it screen.

`python -m ollama_tune.core.evaluate.chat RUNFOLDER` reads one JSON object a line and writes one a line:

    in    {"id", "messages": {model: [{"role", "content"}]}, "tools": JSON text, **asking},
          {"id", "questions": [{"messages": [...], "tools"}], "models": [model], **asking} or {"cancel": id}
    out   {"ready": true} once,
          {"id", "model", "prompt": tokens asked, "dropped": oldest turns left out of them},
          {"id", "model", "text": the next piece},
          {"id", "model", "row": number of the question, "text", "end", "tokens", "prompt", "dropped"},
          {"id", "model", "end": "stop" | "length" | "cancelled", "tokens", "seconds"},
          {"id" (absent when the model cannot be loaded), "error": {"what", "fix"}}

A model is `base` or `tuned`; they answer in the order in which they are named. `asking` is what
`Asking.request` gives. The answers to `questions` are made in batches and told when they are whole; the end
of a row may also be `long`, where the question does not fit. It ends when its input is closed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.values import Message, ToolCall
from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.asking import Sampling
from ollama_tune.core.evaluate.loading import load_engine
from ollama_tune.core.evaluate.window import Fitted, fit_prompt
from ollama_tune.core.models.locate import resolve
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.runs.chat import run_chat
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.launch import nice_worker

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.generate import Answer, Generator
    from ollama_tune.core.train.shortage import Shortage

Send = Callable[[dict[str, Any]], None]
LONGEST = 100_000
"""Characters of an answer that are told in one line."""
APART = 1 / 15
"""Seconds between two pieces of an answer: a small model makes a thousand tokens a second, nobody reads so
fast, and whoever listens would be busy with nothing else."""


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
        if folder.tuned is None:
            what = f"The run {folder.name} has no tuned model yet."
            raise TuneError(what, "Wait until its training is done.")
        settings = folder.settings()
        base_folder = resolve(settings.model.source, settings.model.revision)
        self._format = run_chat(folder, base_folder)

        self._context = (read_json(base_folder / "config.json") or {}).get("max_position_embeddings")

        from ollama_tune.core.evaluate.generate import Generator

        engine = load_engine(base_folder, folder.tuned, settings.training)
        self._generator: Generator = Generator(engine, self._format, on_shortage=_too_large)

    def answer(self, request: dict[str, Any], send: Send, cancelled: Callable[[], bool]) -> None:
        """Answer with each of the models in turn: one question piece by piece, or several at once."""
        one = "messages" in request
        sampling = Sampling(**request["sampling"])
        for model in request["messages"] if one else request["models"]:
            job = _Job(request, model, sampling, send, cancelled)
            start, end, tokens = time.perf_counter(), "cancelled", 0
            if not cancelled():
                end, tokens = self._one(job) if one else self._several(job)
            job.tell({"end": end, "tokens": tokens, "seconds": round(time.perf_counter() - start, 4)})

    def _one(self, job: _Job) -> tuple[str, int]:
        """Answer one question; how the answer ended, and its tokens."""
        request = job.request
        fitted = self._fitted(request["messages"][job.model], request)
        job.tell({"prompt": len(fitted.ids), "dropped": fitted.dropped})
        pieces = Pieces(lambda text: job.tell({"text": text}))
        made = self._generator.stream(
            fitted.ids,
            fitted.room,
            tuned=job.model == "tuned",
            on_text=pieces.add,
            sampling=job.sampling,
            stopped=job.cancelled,
        )
        pieces.flush()
        return job.end(made), len(made.ids)

    def _several(self, job: _Job) -> tuple[str, int]:
        """Answer all questions; an answer that was not whole when it was cancelled is told as such."""
        prompts: dict[int, Fitted] = {}
        for number, question in enumerate(job.request["questions"]):
            try:
                prompts[number] = self._fitted(question["messages"], job.request | question)
            except TuneError as error:
                job.tell({"row": number, "text": error.what, "end": "long", "tokens": 0})
        rows = list(prompts)

        def told(place: int, made: Answer) -> None:
            fitted = prompts[rows[place]]
            figures = {"prompt": len(fitted.ids), "dropped": fitted.dropped, "tokens": len(made.ids)}
            job.tell({"row": rows[place], "text": made.text[:LONGEST], "end": job.end(made)} | figures)

        made = self._generator.several(
            [prompts[row].ids for row in rows],
            min((fitted.room for fitted in prompts.values()), default=0),
            tuned=job.model == "tuned",
            sampling=job.sampling,
            stopped=job.cancelled,
            on_answer=told,
        )
        return "cancelled" if job.cancelled() else "stop", sum(len(answer.ids) for answer in made)

    def _fitted(self, messages: Sequence[Mapping[str, Any]], request: Mapping[str, Any]) -> Fitted:
        turns = [message_of(turn) for turn in messages]
        longest = max(int(request["max_new_tokens"]), 1)
        return fit_prompt(self._format, turns, request.get("tools", ""), self._context, longest)


class Pieces:
    """Text as it comes, told at most fifteen times a second; the first piece at once."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._text, self._told = "", -APART

    def add(self, text: str) -> None:
        """Another piece."""
        self._text += text
        if self._clock() - self._told >= APART:
            self.flush()

    def flush(self) -> None:
        """Tell what waits."""
        if self._text:
            self._tell(self._text)
            self._text, self._told = "", self._clock()


@dataclass(frozen=True)
class _Job:
    """What one model is asked, and where its answer goes."""

    request: dict[str, Any]
    model: str
    sampling: Sampling
    send: Send
    cancelled: Callable[[], bool]

    def tell(self, message: dict[str, Any]) -> None:
        """Send something of this model's answer."""
        self.send({"id": self.request["id"], "model": self.model} | message)

    def end(self, made: Answer) -> str:
        """How an answer ended."""
        return "stop" if made.ended else "cancelled" if self.cancelled() else "length"


def _too_large(_before: int, after: int, shortage: Shortage) -> None:
    """Fewer questions are asked at once without a word; one that does not fit alone is an error."""
    if not after:
        raise TuneError("The memory does not suffice for this answer.", "Close other programs, or ask less.")


def message_of(turn: Mapping[str, Any]) -> Message:
    """A turn of a request, in the names of `Message.as_dict`. One without a text has an empty one."""
    calls = tuple(
        ToolCall(call["function"]["name"], json.dumps(call["function"]["arguments"]), call.get("id", ""))
        for call in turn.get("tool_calls", ())
    )
    names = ("content", "reasoning_content", "name", "tool_call_id")
    content, reasoning, name, call_id = (str(turn.get(part) or "") for part in names)
    return Message(str(turn["role"]), content, reasoning, calls, name, call_id)


def main(arguments: Sequence[str]) -> int:
    """Serve one run until the input is closed."""
    nice_worker()
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
