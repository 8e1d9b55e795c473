"""The process that works on a run: `python -m ollama_tune.core.train.worker FOLDER --stage train`.

It holds the run's lock for its whole life, tells everything through the event log, and ends with
status 0 (done or stopped), 1 (an error, in the log) or 75 (another worker holds the run).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from shutil import disk_usage
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import FREED
from ollama_tune.core.runs.folder import RunFolder, RunLock
from ollama_tune.core.runs.launch import TRACKS, await_trackers, become, nice_worker, track
from ollama_tune.core.text import human_bytes
from ollama_tune.core.train.housekeeping import keep_freed_memory
from ollama_tune.core.train.prepared import Prepared
from ollama_tune.core.train.recovery import Restart
from ollama_tune.core.train.session import Session, Stopped, StopWish
from ollama_tune.core.train.shortage import NEED_LESS, device_failure, is_disk_full, is_out_of_memory
from ollama_tune.core.train.world import World

LAST_FIGURES = 60.0
"""Seconds that the trackers of a cluster's job get after the run's end."""
STAGES = {"train": ("train",), "export": ("export",), "all": ("train", "export")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Work on a run, or with `--warm` get ready and wait to be given one; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ollama_tune.core.train.worker")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--stage", choices=STAGES, default="train")
    parser.add_argument("--warm", nargs=3, metavar=("FOLDER", "PID", "CREATE_TIME"))
    parser.add_argument("--lock", type=int, metavar="DESCRIPTOR")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    if given.warm:
        from ollama_tune.core.train.warm import wait_for_order

        order = wait_for_order(Path(given.warm[0]), int(given.warm[1]), float(given.warm[2]))
        return 0 if order is None else serve(order.folder, order.stage, prepared=order.prepared)
    if given.folder is None:
        parser.error("the run's folder is missing")
    return serve(RunFolder(given.folder.absolute()), given.stage, given.lock)


def serve(folder: RunFolder, stage: str, held: int | None = None, prepared: Prepared | None = None) -> int:
    """Hold the run and do its stages; every way it can end but SIGKILL leaves a last event.

    `held` is the lock's descriptor when this process has just replaced a worker that ran out of memory;
    `prepared` is what a warm worker has loaded.
    """
    stop, world = StopWish(folder), World.of(os.environ)
    stop.listen()
    if world is not None and world.rank:
        return _follow(folder, stage, stop, world)
    try:
        lock = RunLock(folder, held)
    except TuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if held is None and TRACKS in os.environ:
        with contextlib.suppress(TuneError, OSError):
            track(folder, folder.settings().tracking)
    _get_ready(world)
    session = Session(folder, stop, prepared, world)
    session.takes_over = held is not None
    status = _held(session, stage, lock)
    if TRACKS in os.environ:
        lock.release()
        await_trackers(LAST_FIGURES)
    return status


def _held(session: Session, stage: str, lock: RunLock) -> int:
    """Do a run's stages while the lock is held; returns the exit status."""
    folder = session.folder
    session.live()
    try:
        last = _work(session, stage)
    except Stopped as stopped:
        session.finish(
            "stopped", stage=session.stage, step=session.step, reason=stopped.reason, resumable=True
        )
        return 0
    except Restart:
        session.rest()
        become(folder, stage, lock.descriptor)
    except TuneError as error:
        _print(error, error.details)
        session.finish("error", what=error.what, fix=error.fix, details=error.details)
        return 1
    except BaseException as error:
        _print(traceback.format_exc())
        _fail(session, error)
        return 1
    finally:
        session.group.leave()
    session.finish("done", **last)
    return 0


def _get_ready(world: World | None) -> None:
    nice_worker()
    if world is not None:
        world.take_place()


def _follow(folder: RunFolder, stage: str, stop: StopWish, world: World) -> int:
    """A rank above 0: it has no part in an export."""
    if "train" not in STAGES[stage]:
        return 0
    from ollama_tune.core.train.follower import assist

    _get_ready(world)
    return assist(folder, stage, stop, world)


def _work(session: Session, stage: str) -> dict[str, Any]:
    """Do the stages one after the other; returns the fields of the last stage's `done` event."""
    stages = list(STAGES[stage])
    if stage == "all" and session.folder.export_settings().name is None:
        stages.remove("export")
    done: dict[str, Any] = {}
    for session.stage in stages:
        if done:
            session.emit("done", **done)
        if session.stage == "train":
            done = _train(session, stages)
        else:
            from ollama_tune.core.train.exporting import export

            done = export(session, stages)
    return done


def _train(session: Session, stages: Sequence[str]) -> dict[str, Any]:
    from ollama_tune.core.train.recipe import train

    try:
        return train(session, stages)
    except Restart:
        session.group.restart()
        raise


def _print(*lines: object) -> None:
    """For `stdout.log`; on a full disk the last event matters more."""
    with contextlib.suppress(OSError):
        print(*lines, sep="\n", file=sys.stderr)


def _fail(session: Session, error: BaseException) -> None:
    """The event of an unforeseen error; never its message, which may quote a row of the data."""
    folder = session.folder
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = f"The worker met an unforeseen problem ({type(error).__name__})."
    fix = f"Look into {folder.log_path}; `ollama-tune resume {folder.name}` tries again."
    if is_out_of_memory(error):
        session.emit("out_of_memory", step=session.step, change=None)
        what = "The memory of the device was used up."
        fix = NEED_LESS
    elif is_disk_full(error):
        free = human_bytes(disk_usage(folder.path).free)
        what = f"The disk is full: that of {folder.path} has {free} free."
        fix = f"Make room: {FREED}. `ollama-tune resume {folder.name}` goes on."
    elif broken := device_failure(error):
        what = f"The GPU failed ({broken}), after which this process can compute nothing more."
        fix = (
            f"`ollama-tune resume {folder.name}` goes on from the last checkpoint; if it fails again, look "
            "for Xid in the system's log (`sudo dmesg`), and update the driver or run another card."
        )
    place = f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
    session.finish("error", what=what, fix=fix, details=f"{place}; see {folder.log_path}")


if __name__ == "__main__":
    sys.exit(main())
