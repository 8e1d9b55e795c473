"""Starts workers: processes of their own session that outlive the terminal and the interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from ollama_tune.core.errors import BusyError, TuneError
from ollama_tune.core.paths import state_dir
from ollama_tune.core.runs.folder import RunFolder

WORKER = "ollama_tune.core.train.worker"
PATIENCE = 20.0


def _spawn(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A new session and no descriptor on the terminal: SIGHUP and a closed window do not reach it."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=log.parent,
        )


class WarmWorker:
    """A worker that imports the heavy libraries while the person is still choosing.

    It lives in a folder of the state directory, ends by itself when its parent is gone, and becomes
    the run's worker when `hand_over` names one.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="warm-", dir=state_dir()))
        parent = psutil.Process()
        self._process = _spawn(
            ["--warm", str(self._folder), str(parent.pid), repr(parent.create_time())],
            self._folder / "stdout.log",
        )

    @property
    def ready(self) -> bool:
        """True when the imports are done."""
        return (self._folder / "ready").exists() and self._process.poll() is None

    def hand_over(self, folder: RunFolder, stage: str) -> bool:
        """Give it the run; False when it did not take it, and then it never will."""
        if self._process.poll() is not None:
            return False
        order = self._folder / "order"
        temporary = self._folder / "order.part"
        temporary.write_text(json.dumps({"folder": str(folder.path), "stage": stage}))
        temporary.rename(order)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and order.exists() and self._process.poll() is None:
            time.sleep(0.02)
        try:
            order.unlink()
        except FileNotFoundError:
            return True
        self.close()
        return False

    def close(self) -> None:
        """End it when it was not needed."""
        if not (self._folder / "taken").exists():
            self._process.terminate()
            self._process.wait(timeout=10)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid


def start(folder: RunFolder, stage: str = "train", warm: WarmWorker | None = None) -> None:
    """Start a worker on a run (stage `train`, `export` or `all`) and return when it holds the run.

    Raises `BusyError` if one holds it already, `TuneError` with its last lines if it died at once.
    """
    if folder.alive():
        raise BusyError(
            f"The run {folder.name} is already going.", f"Watch it with `ollama-tune attach {folder.name}`."
        )
    folder.stop_path.unlink(missing_ok=True)
    folder.worker_path.unlink(missing_ok=True)
    if warm is not None and warm.hand_over(folder, stage):
        _wait(folder, None)
        return
    _wait(folder, _spawn([str(folder.path), "--stage", stage], folder.log_path))


def _wait(folder: RunFolder, process: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not folder.worker_path.exists():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            raise TuneError("The worker did not start.", f"See {folder.log_path}.", details=folder.log_tail())
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """Versions of what decides a run's result, for the `start` event."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {"python": sys.version.split()[0]}
    for name in (
        "ollama-tune",
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "tokenizers",
        "gguf",
        "xllamacpp",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def nice_worker() -> None:
    """Lower this process' priority, so that the interface answers keys while training."""
    try:
        os.nice(10)
    except OSError:
        return
