"""Runs a long piece of work in a process of its own, which gives way to others and tells its progress.

The child is a module of this room, called with `python -m`. It gets its order, a JSON object, on its input
and answers with JSON objects, one a line, on its output: `{"progress": [done, total]}` any number of times,
and at its end what came out, or `{"error": [what, fix, details]}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

from ollama_tune.core.errors import TuneError

NICE = 10
LOOK_EVERY = 0.1
GRACE_SECONDS = 2.0

Progress = Callable[[int, int], None]
News = dict[str, Any]


class Cancelled(Exception):
    """The one who waited does not want it any more."""


def run_in_child(
    module: str,
    order: News,
    on_progress: Progress,
    cancelled: Callable[[], bool],
    stopped: str,
    *,
    nice: int = NICE,
) -> News:
    """What the child says at its end; it runs at that niceness.

    `on_progress` gets the child's progress, and `cancelled` is asked every 100 ms. Raises `Cancelled` once
    the child has ended, and the child's own `TuneError`; `stopped` is what to say where it broke off.
    """
    with tempfile.TemporaryFile() as errors, _started(module, order | {"nice": nice}, errors) as child:
        told = dict(_news(child, on_progress, cancelled))
        child.wait()
        if "error" in told:
            what, fix, details = told["error"]
            raise TuneError(what, fix, details=details)
        if child.returncode or not told:
            errors.seek(0)
            details = errors.read()[-4000:].decode("utf-8", "replace")
            raise TuneError(
                stopped,
                "Close other programs and try again, or take a part of the data.",
                details=f"exit status {child.returncode}\n{details}",
            )
    return told


@contextlib.contextmanager
def _started(module: str, order: News, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", module]
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(order).encode())
        file.seek(0)
        child = subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    with child:
        try:
            yield child
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()


def _news(
    child: subprocess.Popen[bytes], on_progress: Progress, cancelled: Callable[[], bool]
) -> Iterator[tuple[str, Any]]:
    """What the child says at its end, as (name, value); its progress is passed on meanwhile."""
    assert child.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if cancelled():
                raise Cancelled
            if not selector.select(LOOK_EVERY):
                continue
            part = os.read(child.stdout.fileno(), 1 << 16)
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                for name, value in json.loads(line).items():
                    if name == "progress":
                        on_progress(*value)
                    else:
                        yield name, value


def work(do: Callable[[News], News]) -> None:
    """The child's side: do what the order says, and say what came out or what was wrong."""
    signal.signal(signal.SIGTERM, _stop)
    order = json.load(sys.stdin)
    os.nice(order["nice"])
    try:
        said = do(order)
    except TuneError as error:
        said = {"error": (error.what, error.fix, error.details)}
    say(said)


def say(news: News) -> None:
    """One line of news, at once."""
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


def _stop(*_: object) -> NoReturn:
    raise SystemExit(1)
