"""A model in Ollama as one of the two that are evaluated: it tells answers, by its own chat form."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.material import Rows, Task, Tasks
from ollama_tune.core.machine.ollama import ollama_url
from ollama_tune.core.text import one_line

USUAL, MOST = 4, 16
"""Questions on their way at a time, where the box says nothing of it and at most."""
AGAIN = "Then give the same command again: it goes on where it was."


def tasks_for(rows: Rows, kinds: Set[str], longest: int) -> Tasks:
    """Questions for Ollama; those with tools are left out."""
    made = Tasks()
    for number, row in enumerate(rows.rows if "answers" in kinds else ()):
        if not rows.asked(number):
            made.leave_out("A row has no written answer to compare with.")
        elif row.tools or any(message.role == "tool" or message.tool_calls for message in row.prompt):
            made.leave_out("A row has to do with tools; those are not asked in Ollama.")
        else:
            made.tasks.append(Task(number, "answers", longest=longest))
    return made


def turns(rows: Rows, number: int) -> list[dict[str, str]]:
    """The messages before the answer of a row."""
    return [{"role": turn.role, "content": turn.content} for turn in rows.rows[number].prompt]


def known_model(name: str) -> list[str]:
    """Names a model by all that the server tells of it; raises `UsageError` where it has none of the name."""
    from ollama_tune.core.export.ollama import OllamaClient

    with _answering(), OllamaClient(ollama_url()) as client:
        if not client.exists(name):
            what = f"Ollama has no model called {one_line(name, 60)}."
            raise UsageError(what, "See the names with `ollama list`.")
        told = json.dumps(client.show(name), sort_keys=True).encode()
        return [client.url, name, hashlib.sha256(told).hexdigest()]


def at_once() -> int:
    """How many questions are asked at once: as many as this box tells its Ollama to answer, else a few; what
    a server does not answer at once waits in its queue."""
    try:
        return min(max(int(os.environ["OLLAMA_NUM_PARALLEL"]), 1), MOST)
    except (KeyError, ValueError):
        return USUAL


def ask(name: str, rows: Rows, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
    """The answers in the order of the tasks, of the likeliest tokens: {"row", "text", "end", "tokens"}.

    Several questions are on their way at a time. Where nobody takes further answers, or an error ends it,
    those on their way are given up at once and no further one is asked.
    """
    from ollama_tune.core.export.ollama import OllamaClient

    over, count = threading.Event(), at_once()
    with _answering(), OllamaClient(ollama_url()) as client, ThreadPoolExecutor(count) as pool:

        def answer(task: Task) -> dict[str, Any]:
            asked = turns(rows, task.row)
            found = client.chat(name, asked, max_new_tokens=task.longest, stopped=over.is_set)
            end = "stop" if found.done_reason == "stop" else "length"
            return {"row": task.row, "text": found.text, "end": end, "tokens": found.tokens}

        waiting: deque[Future[dict[str, Any]]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(answer, task))
                if len(waiting) == count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """What the client says of an export is said of an evaluation."""
    try:
        yield
    except UsageError:
        raise
    except TuneError as error:
        fix = f"See that Ollama runs and answers (`ollama list`). {AGAIN}"
        raise TuneError(error.what, fix, details=error.details) from error
