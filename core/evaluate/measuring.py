"""Measures rows with a run's model: the process behind `ollama-tune evaluate`.

`python -m ollama_tune.core.evaluate.measuring RUNFOLDER` reads one JSON object to the end of its input and
writes one a line:

    in    {"groups": [{"kind": "answers" | "loss" | "labels", "tuned", "tasks": [task]}]}
          task: {"key", "done": true} or {"key", "ids", "longest"} or {"key", "examples": [[ids, places]]}
    out   {"group", "done", "total"} now and then,
          {"group", "records": [{"key", "text", "end", "tokens"} or {"key", "logs": [of each example]}]},
          {"error": {"what", "fix"}} as the last, where it cannot go on

Tasks share a batch by their place in the whole list, and a task that is done already keeps its place. So an
evaluation that goes on computes the same batches as one that was never interrupted, to the last bit.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.locate import resolve
from ollama_tune.core.runs.chat import run_chat
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.launch import nice_worker

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.generate import Generator
    from ollama_tune.core.train.path import Engine
    from ollama_tune.core.train.shortage import Shortage

TOKENS = 4096
"""Tokens of rows whose likelihoods are computed at once, but for a single row."""

Send = Callable[[dict[str, Any]], None]
Tasks = Sequence[Mapping[str, Any]]


class Measuring:
    """A model with its adapter that is asked and weighed; once `stopped` says so, nothing new is begun and
    what is being written is cut short."""

    def __init__(
        self, engine: Engine, generator: Generator, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._engine, self._generator, self._stopped = engine, generator, stopped

    @classmethod
    def of(cls, folder: RunFolder) -> Measuring:
        """A finished run's model, loaded from its folder."""
        from ollama_tune.core.evaluate.generate import Generator
        from ollama_tune.core.evaluate.loading import load_engine

        settings = folder.settings()
        base = resolve(settings.model.source, settings.model.revision)
        engine = load_engine(base, folder.tuned or folder.adapter, settings.training)
        return cls(engine, Generator(engine, run_chat(folder, base), on_shortage=_too_large))

    def group(self, group: Mapping[str, Any], send: Send) -> None:
        """Measure the tasks of a group that are not done, in batches; records are told batch by batch."""
        tasks: Tasks = group["tasks"]
        answers = group["kind"] == "answers"
        done = 0
        for batch in self._prompts(tasks) if answers else _by_tokens(tasks):
            if self._stopped():
                return
            waiting = [task for task in batch if not task.get("done")]
            if waiting:

                def tell(more: int, before: int = done + len(batch) - len(waiting)) -> None:
                    send({"done": before + more, "total": len(tasks)})

                measure = self._answers if answers else self._likelihoods
                send({"records": measure(waiting, bool(group["tuned"]), tell)})
            done += len(batch)
            send({"done": done, "total": len(tasks)})

    def _prompts(self, tasks: Tasks) -> Iterator[Tasks]:
        """Prompts that are answered at once: of like length, with the same room for the answer."""
        rows = self._engine.rows
        order = sorted(tasks, key=lambda task: (task["longest"], -task["size"]))
        for start, end in _runs([task["longest"] for task in order]):
            for first in range(start, end, rows):
                yield order[first : min(first + rows, end)]

    def _answers(self, tasks: Tasks, tuned: bool, tell: Callable[[int], None]) -> list[dict[str, Any]]:
        whole = 0

        def told(*_: object) -> None:
            nonlocal whole
            whole += 1
            tell(whole)

        prompts = [task["ids"] for task in tasks]
        longest = tasks[0]["longest"]
        found = self._generator.several(prompts, longest, tuned=tuned, stopped=self._stopped, on_answer=told)
        return [
            {
                "key": task["key"],
                "text": answer.text,
                "end": "stop" if answer.ended else "length",
                "tokens": len(answer.ids),
            }
            for task, answer in zip(tasks, found, strict=True)
        ]

    def _likelihoods(self, tasks: Tasks, tuned: bool, tell: Callable[[int], None]) -> list[dict[str, Any]]:
        """Half of the tasks at a time where memory does not suffice for all."""
        from ollama_tune.core.train.shortage import free_memory, is_out_of_memory

        examples = [_example(*one) for task in tasks for one in task["examples"]]
        try:
            logs = iter(self._engine.likelihoods(examples, tuned=tuned))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(tasks) == 1:
                raise _no_memory("row") from error
        else:
            return [{"key": task["key"], "logs": [next(logs) for _ in task["examples"]]} for task in tasks]
        free_memory()
        half = len(tasks) // 2
        return [
            *self._likelihoods(tasks[:half], tuned, tell),
            *self._likelihoods(tasks[half:], tuned, tell),
        ]


def _runs(values: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Where equal values that stand beside each other begin and end."""
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            yield start, end
            start = end


def _by_tokens(tasks: Tasks) -> Iterator[Tasks]:
    """As many tasks as have so many tokens, or one."""
    batch: list[Mapping[str, Any]] = []
    for task in tasks:
        if batch and sum(other["size"] for other in batch) + task["size"] > TOKENS:
            yield batch
            batch = []
        batch.append(task)
    if batch:
        yield batch


def _example(ids: Sequence[int], places: Sequence[int]) -> Example:
    trained = set(places)
    return Example("", tuple(ids), tuple(at in trained for at in range(len(ids))), ())


def _tell(send: Send, group: int, told: dict[str, Any]) -> None:
    send({"group": group} | told)


def _no_memory(what: str) -> TuneError:
    return TuneError(f"The memory does not suffice for one {what}.", "Close other programs, then try again.")


def _too_large(_before: int, after: int, _shortage: Shortage) -> None:
    """Fewer questions are asked at once without a word; one that does not fit alone is an error."""
    if not after:
        raise _no_memory("answer")


def _problem(error: Exception) -> dict[str, Any]:
    """An error as it is told; of an unforeseen one only kind and place, since it may quote a row."""
    if isinstance(error, TuneError):
        return {"error": {"what": error.what, "fix": error.fix}}
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
    print(place, file=sys.stderr)
    what = f"The process that measures met an unforeseen problem: {place}."
    return {"error": {"what": what, "fix": "Give the same command again; tell us if it stays so."}}


def main(arguments: Sequence[str]) -> int:
    """Measure everything that is asked; returns the exit status."""
    from ollama_tune.core.evaluate.chat import _own_output

    nice_worker()
    send = _own_output()
    asked = json.load(sys.stdin)
    try:
        measuring = Measuring.of(RunFolder(Path(arguments[0])))
        for number, group in enumerate(asked["groups"]):
            measuring.group(group, partial(_tell, send, number))
    except BrokenPipeError:
        return 1
    except Exception as error:
        send(_problem(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
