"""Control of a run by files and signals; nothing here talks to the process."""

from __future__ import annotations

import shutil
import signal
import time

import psutil

from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.runs.folder import RunFolder, RunLock
from ollama_tune.core.runs.launch import WarmWorker, start


def request_stop(folder: RunFolder) -> None:
    """Ask the worker to write a checkpoint and end; it looks between two steps."""
    if not folder.alive():
        raise UsageError(
            f"The run {folder.name} is not going.", f"Go on with it by `ollama-tune resume {folder.name}`."
        )
    folder.stop_path.touch(mode=0o600)


def wait_until_free(folder: RunFolder, seconds: float) -> bool:
    """Wait for the worker to end; False when it still holds the run after that time."""
    deadline = time.monotonic() + seconds
    while folder.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def resume(folder: RunFolder, warm: WarmWorker | None = None) -> None:
    """Go on with what is not done: training from the last checkpoint with the same order of rows, or the
    export that was to follow it."""
    events = folder.events()
    done = {event["stage"] for event in events if event.kind == "done"}
    asked = next((event.get("stages") for event in reversed(events) if event.kind == "start"), None)
    left = [stage for stage in asked or ["train"] if stage not in done]
    if not left:
        raise UsageError(f"The run {folder.name} is finished.", "Start a new one with `ollama-tune`.")
    start(folder, "all" if len(left) > 1 else left[0], warm)


def delete(folder: RunFolder) -> None:
    """Remove a run and everything in it; refused while a worker holds it."""
    try:
        lock = RunLock(folder)
    except BusyError as error:
        raise BusyError(error.what, f"Stop it first with `ollama-tune stop {folder.name}`.") from error
    try:
        shutil.rmtree(folder.path)
    except OSError as error:
        raise TuneError(
            f"{error.filename} cannot be removed: {error.strerror}.", "Remove the run's folder by hand."
        ) from error
    finally:
        lock.release()


def terminate(folder: RunFolder) -> bool:
    """Send SIGTERM (checkpoint and end) to the worker that `worker.json` names; False when it is gone."""
    process = folder.process()
    if process is None:
        return False
    try:
        process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return False
    return True
