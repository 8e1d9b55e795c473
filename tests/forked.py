"""Workers that start at once: one process imports everything and forks a real worker for each order.

`python -m tests.forked` reads the paths of run folders, one a line, and answers each with the pid of a
worker, which is a process like any other: it can be killed and signalled.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from ollama_tune.core.runs.folder import RunFolder
from tests.train_faults import listen_for_faults


class ForkServer:
    """The process that forks; `with ForkServer() as server: pid = server.start(folder)`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(300)
        self._process.stdout.close()

    def start(self, folder: RunFolder) -> int:
        """A worker that trains this run and meets the faults of `tests.train_faults`; its pid."""
        assert self._process.stdin is not None and self._process.stdout is not None
        folder.stop_path.unlink(missing_ok=True)
        print(folder.path, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def serve() -> None:
    """Fork a worker for each line of the standard input; the kernel clears away those that end.

    What the first one had imported by its end, the next ones find imported.
    """
    import ollama_tune.core.train.recipe
    import ollama_tune.core.train.worker  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    known: Path | None = None
    for line in sys.stdin:
        if known is not None and known.exists():
            for name in json.loads(known.read_text()):
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
            known.unlink()
        folder = Path(line.rstrip("\n"))
        known = folder / "modules.json"
        pid = os.fork()
        if pid == 0:
            _work(folder, known)
        print(pid, flush=True)


def _work(folder: Path, known: Path) -> None:
    """Be a worker of a session of its own, as if it had been started; never returns."""
    from ollama_tune.core.train import worker

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = os.open(folder / "stdout.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    status = 1
    try:
        listen_for_faults(folder)
        status = worker.main([str(folder), "--stage", "train"])
        if status == 0:
            known.write_text(json.dumps(sorted(sys.modules)))
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve()
