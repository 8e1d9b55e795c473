"""Checks of the folders that are written to: a real file in each, and a lock that two processes fight for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ollama_tune.core import paths
from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import DISK_FULL, write_atomic
from ollama_tune.core.machine.doctor import Check, fail, ok, warn
from ollama_tune.core.machine.host import read_disk
from ollama_tune.core.text import human_bytes, visible

HOME = "OLLAMA_TUNE_HOME"
ELSEWHERE = f"Set {HOME} to a folder on a local disk that you may write to."
ROOM = 10 << 30
"""Bytes below which a model and its export may not find room."""
SLOW = 1.0
"""Seconds that a small file may take to be safe on the disk."""
NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ncpfs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.gcsfuse",
        "fuse.s3fs",
    ]
)
"""File systems on which flock is emulated, kept to one machine, or missing."""
MOUNTS = Path("/proc/self/mountinfo")
REFUSED = 3


def runs() -> Iterator[Check]:
    """Where runs are kept."""
    yield from _ours(paths.runs_dir, "XDG_DATA_HOME", ROOM)


def models() -> Iterator[Check]:
    """Where downloaded models are kept."""
    yield from _ours(paths.models_dir, "XDG_DATA_HOME", ROOM)


def state() -> Iterator[Check]:
    """Where answers, logs and warm workers are."""
    yield from _ours(paths.state_dir, "XDG_STATE_HOME")


def cache() -> Iterator[Check]:
    """What can be made again."""
    yield from _ours(paths.cache_dir, "XDG_CACHE_HOME")


def config() -> Iterator[Check]:
    """The folder of `config.toml`, and what in that file is ignored."""
    from ollama_tune.core.preferences import load_preferences, preferences_path

    yield from _ours(paths.config_dir, "XDG_CONFIG_HOME")
    path = preferences_path()
    _, remarks = load_preferences()
    yield from (warn(visible(remark), f"Mend or remove {path}.", path.name) for remark in remarks)
    if not remarks:
        yield ok("read" if path.exists() else "not there: the defaults hold", path.name)


def temporary() -> Iterator[Check]:
    """Where short-lived files go."""
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield fail(visible(str(error)), "Set TMPDIR to a folder you may write to.")
        return
    source = next((name for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), "default")
    yield _written(place, source, 1 << 30, "Free some space there, or set TMPDIR to another folder.")


def hub_cache() -> Iterator[Check]:
    """The Hugging Face cache: models in it are used as they are."""
    names = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    source = next((name for name in names if os.environ.get(name)), "default")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("HF_HOME") or f"{base}/huggingface")
    place = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    if not place.is_dir():
        yield ok(f"{visible(str(place))} ({source}): nothing there yet")
    elif not os.access(place, os.R_OK | os.X_OK):
        yield warn(f"{visible(str(place))} ({source}) may not be read", "Set HF_HOME to a folder of yours.")
    else:
        count = sum(1 for entry in place.glob("models--*"))
        free = human_bytes(read_disk(place).free)
        yield ok(f"{visible(str(place))} ({source}), {count} model{'' if count == 1 else 's'}, {free} free")


def _ours(where: object, variable: str, room: int = 0) -> Iterator[Check]:
    """One of this tool's own folders: made, written to, and how much room it has."""
    assert callable(where)
    source = next((name for name in (HOME, variable) if os.environ.get(name)), "default")
    try:
        place = where()
    except TuneError as error:
        yield fail(f"{visible(error.what.removesuffix('.'))} ({source})", ELSEWHERE)
        return
    yield _written(place, source, room, ELSEWHERE)


def _written(place: Path, source: str, room: int, fix: str) -> Check:
    """Write, sync and rename a real file in a folder, then take it away."""
    disk = read_disk(place)
    said = f"{visible(str(place))} ({source}), {human_bytes(disk.free)} free"
    trial = place / f".doctor-{os.getpid()}"
    begun = time.monotonic()
    try:
        write_atomic(trial, b"\0" * 65536)
    except OSError as error:
        if error.errno in DISK_FULL:
            return fail(f"{said}: the disk or your quota is full", fix)
        why = "read-only" if error.errno == errno.EROFS else visible(error.strerror or str(error))
        return fail(f"{said}: cannot be written to ({why})", fix)
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()
    taken = time.monotonic() - begun
    if taken > SLOW:
        return warn(f"{said}: a small file took {taken:.1f} s", fix)
    if room and disk.total and disk.free < room:
        return warn(f"{said}: little for a model and its export", fix)
    return ok(said)


def lock() -> Iterator[Check]:
    """Whether a lock on the runs' disk keeps a second process out, and is free when the first one ends."""
    try:
        folder = paths.runs_dir()
    except TuneError as error:
        yield fail(visible(error.what.removesuffix(".")), ELSEWHERE)
        return
    kind = file_system(folder, _mounts())
    where = f"on this {kind} file system" if kind else "on the runs' disk"
    try:
        problem = _fight(folder / f".doctor-lock-{os.getpid()}")
    except OSError as error:
        problem = f"flock fails {where} ({error.strerror})"
    if problem:
        yield fail(problem.replace("HERE", where), ELSEWHERE)
    elif kind in NETWORK:
        yield fail(f"flock is only emulated {where}", ELSEWHERE)
    else:
        yield ok(f"a second process is kept out {where}")


def _fight(path: Path) -> str:
    """Hold a lock while another process asks for it; says what went wrong, if anything."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _another_gets(path):
            return "flock keeps nobody out HERE"
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return "" if _another_gets(path) else "flock is not free again HERE after its holder let go"
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _another_gets(path: Path) -> bool:
    """Whether a process of its own, with a file of its own, gets the lock that runs are probed with."""
    child = os.fork()
    if child == 0:
        status = REFUSED
        try:
            fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _mounts() -> str:
    try:
        return MOUNTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def file_system(place: Path, mounts: str) -> str:
    """The kind of file system a folder lies on (`ext4`, `nfs4`) by Linux' `mountinfo`; empty if unknown.

    The last of the longest mount points above the folder wins: later mounts hide earlier ones.
    """
    found, longest = "", -1
    for line in mounts.splitlines():
        fields = line.split(" ")
        if "-" not in fields or len(fields) < 5:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))
        if (point == place or point in place.parents) and len(point.parts) >= longest:
            found, longest = fields[fields.index("-") + 1], len(point.parts)
    return found
