"""Control of a run by files and signals; nothing here talks to the process."""

from __future__ import annotations

import shutil
import signal
import time

import psutil

from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.runs.events import Event
from ollama_tune.core.runs.folder import RunFolder, RunLock
from ollama_tune.core.runs.launch import WarmWorker, start


def request_stop(folder: RunFolder) -> None:
    """Ask the worker to write a checkpoint and end; it looks between two steps."""
    if not folder.alive():
        raise UsageError(
            f"The run {folder.name} is not going.", f"Go on with it by `ollama-tune resume {folder.name}`."
        )
    folder.stop_path.touch(mode=0o600)


def request_pause(folder: RunFolder) -> None:
    """Ask the worker to write a checkpoint after its step and wait; it keeps its memory and the run.

    Only training waits, an export goes on. Raises `UsageError` where nothing is being trained.
    """
    if not folder.alive():
        raise UsageError(
            f"The run {folder.name} is not going.", f"Go on with it by `ollama-tune resume {folder.name}`."
        )
    if folder.status().stage == "export":
        raise UsageError("An export does not pause.", f"End it with `ollama-tune stop {folder.name}`.")
    folder.pause_path.touch(mode=0o600)


def continue_run(folder: RunFolder) -> bool:
    """Take back the wish to pause; False where there was none. The worker goes on within a second."""
    try:
        folder.pause_path.unlink()
    except FileNotFoundError:
        return False
    return True


def wait_until_free(folder: RunFolder, seconds: float) -> bool:
    """Wait for the worker to end; False when it still holds the run after that time."""
    deadline = time.monotonic() + seconds
    while folder.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def resume(folder: RunFolder, warm: WarmWorker | None = None) -> None:
    """Go on with what is not done: a paused worker at once, else training from the last checkpoint with the
    same order of rows, or the export that was to follow it."""
    if continue_run(folder) and folder.alive():
        return
    left = stages_left(folder.events())
    if not left:
        raise UsageError(f"The run {folder.name} is finished.", "Start a new one with `ollama-tune`.")
    start(folder, "all" if len(left) > 1 else left[0], warm)


def stages_left(events: list[Event]) -> list[str]:
    """The stages still to be done: those the last worker was given, and training if it never ended."""
    begun = next((i for i in reversed(range(len(events))) if events[i].kind == "start"), None)
    if begun is None:
        return ["train"]
    stage, stages = events[begun]["stage"], events[begun].get("stages") or [events[begun]["stage"]]
    ended = any(event.kind == "done" and event["stage"] == stage for event in events[begun:])
    left = [str(name) for name in stages[stages.index(stage) + ended :]]
    trained = any(event.kind == "done" and event["stage"] == "train" for event in events)
    return left if trained or "train" in left else ["train", *left]


def delete(folder: RunFolder) -> None:
    """Remove a run and everything in it; refused while a worker holds it.

    Its `run.yaml` goes last: a run whose removal was cut short stays in the list and can be removed again.
    """
    try:
        lock = RunLock(folder, sign=False)
    except BusyError as error:
        raise BusyError(error.what, f"Stop it first with `ollama-tune stop {folder.name}`.") from error
    try:
        for entry in folder.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != folder.settings_path:
                entry.unlink()
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
