"""Starts workers: processes of their own session that outlive the terminal and the interface."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil

from ollama_tune.core.errors import BusyError, TuneError
from ollama_tune.core.files import require_room
from ollama_tune.core.machine.logout import enable_linger, scope_prefix
from ollama_tune.core.paths import runs_dir, state_dir

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings, TrackingSettings
    from ollama_tune.core.runs.folder import RunFolder

WORKER = "ollama_tune.core.train.worker"
TRACKER = "ollama_tune.core.runs.tracking"
RATES = "ollama_tune.core.runs.rates"
RANKS = "ollama_tune.core.train.ranks"
TRACKS = "OLLAMA_TUNE_TRACK"
"""Set where nobody but the worker itself starts the trackers: in jobs of a cluster."""
PATIENCE = 60.0
PATIENCE_RANKS = 180.0
"""The same where torch's launcher starts the worker: both import torch."""
NICE = 10
SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What asks a worker to write a checkpoint and end."""

NONE = "null"

Process = subprocess.Popen[bytes]


def _spawn(arguments: list[str], log: Path, module: str = WORKER) -> Process:
    """A new session and no descriptor on the terminal: SIGHUP and a closed window do not reach it.

    Where the login manager would end it at a logout all the same, it gets a unit of its own, under the same
    process id. A thread waits for its end, so that it is never left behind as a zombie.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*scope_prefix(), sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=log.parent,
        )
    threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True).start()
    return process


class WarmWorker:
    """A worker that imports the heavy libraries while the person is still choosing.

    It lives in a folder of the state directory, ends by itself when its parent is gone, loads what `prepare`
    names, and becomes the run's worker when `hand_over` names one.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="warm-", dir=state_dir()))
        self._given = False
        self._draft = NONE
        parent = psutil.Process()
        self.process = _spawn(
            ["--warm", str(self._folder), str(parent.pid), repr(parent.create_time())],
            self._folder / "stdout.log",
        )

    @property
    def ready(self) -> bool:
        """True when the imports are done and no run was given yet."""
        return not self._given and self.process.poll() is None and (self._folder / "ready").exists()

    def prepare(self, draft: Settings | None) -> None:
        """Tell it which run is likely, or that none is: it loads that model and lets go of another one.

        Whatever goes wrong there stays silent, and the run is started as if nothing had been prepared.
        """
        text = draft.model_dump_json() if draft is not None else NONE
        if text != self._draft and not self._given:
            self._draft = text
            with contextlib.suppress(OSError):
                _put(self._folder / "prepare", text)

    def hand_over(self, folder: RunFolder, stage: str) -> bool:
        """Give it the run; False when it did not take it, and then it never will.

        One that is still importing is waited for: a cold worker would be later.
        """
        if self._given or self.process.poll() is not None:
            return False
        order = self._folder / "order"
        _put(order, json.dumps({"folder": str(folder.path.absolute()), "stage": stage}))
        deadline = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < deadline and order.exists() and self.process.poll() is None:
                time.sleep(0.01)
        finally:
            self._given = not _withdraw(order)
        if not self._given:
            self.close()
        return self._given

    def close(self) -> None:
        """End it, unless it has become a run's worker."""
        if self._given:
            return
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid


def _put(path: Path, text: str) -> None:
    """Write a file that the worker sees whole; it need not survive a power cut, so nothing is synced."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _withdraw(order: Path) -> bool:
    """Take an order back; False when the worker was faster."""
    try:
        order.unlink()
    except FileNotFoundError:
        return False
    return True


def start(folder: RunFolder, stage: str = "train", warm: WarmWorker | None = None) -> None:
    """Start a worker on a run (stage `train`, `export` or `all`) and return when it holds the run.

    Raises `BusyError` if one holds it already, `TuneError` with its last lines if it died at once. A worker
    whose start is interrupted from the keyboard ends as soon as it is up. Searches for the learning rate give
    way to a run of the person's.
    """
    from ollama_tune.core.runs.turns import step_aside

    if folder.alive():
        raise busy(folder)
    require_room(folder.path)
    if folder.path.parent == runs_dir():
        step_aside()
    if scope_prefix():
        enable_linger()
    folder.stop_path.unlink(missing_ok=True)
    count = ranks(folder, stage)
    command = [str(folder.path.absolute()), "--stage", stage]
    try:
        if count > 1:
            _wait(folder, _spawn([str(count), *command], folder.log_path, RANKS), PATIENCE_RANKS)
        elif warm is not None and warm.hand_over(folder, stage):
            _wait(folder, warm.process)
        else:
            _wait(folder, _spawn(command, folder.log_path))
    except KeyboardInterrupt:
        folder.stop_path.touch(mode=0o600)
        raise
    if stage != "export":
        with contextlib.suppress(TuneError, OSError):
            track(folder, folder.settings().tracking)


def ranks(folder: RunFolder, stage: str) -> int:
    """How many processes a worker of this stage is: an export is one, a training one a GPU that it takes.

    Raises `TuneError` where fewer GPUs are found than the settings ask for.
    """
    if stage == "export":
        return 1
    training = folder.settings().training
    if training.device == "cpu":
        return max(training.gpus, 1)
    from ollama_tune.core.machine.gpus import read_gpus
    from ollama_tune.core.plan.gpus import rows_a_step, taken

    found = read_gpus().gpus
    if training.gpus > max(len(found), 1):
        raise TuneError(
            f"The settings ask for {training.gpus} GPUs, but there are {len(found)} here.",
            "Set training.gpus to 0, which takes every GPU that is found.",
        )
    return max(min(len(taken(training, found)), training.gpus or rows_a_step(training)), 1)


def track(folder: RunFolder, wanted: TrackingSettings) -> list[Process]:
    """Send a run's figures to these trackers while it goes, each from a process of its own."""
    logs = {name: folder.path / "tracking" / f"{name}.log" for name in wanted.to}
    if logs:
        (folder.path / "tracking").mkdir(mode=0o700, exist_ok=True)
    said = wanted.model_dump_json()
    return [_spawn([str(folder.path.absolute()), name, said], log, TRACKER) for name, log in logs.items()]


def await_trackers(seconds: float) -> None:
    """Wait for the trackers that this process started: a job's end would be theirs before all is sent."""
    children = psutil.Process().children()
    with contextlib.suppress(psutil.Error):
        psutil.wait_procs([child for child in children if TRACKER in child.cmdline()], timeout=seconds)


def search_rates(folder: Path) -> Process:
    """A process that tries the learning rates of a search's folder, and outlives this one like a worker."""
    return _spawn([str(folder)], folder / "search.log", RATES)


def become(folder: RunFolder, stage: str, lock: int | None = None) -> NoReturn:
    """Replace this worker by a fresh one under the same pid, which takes over the open lock: no moment is
    without a holder. All other open files are closed, so that the GPU's memory is given back; signals wait
    until the new program listens.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for entry in list(Path("/dev/fd").iterdir()):
        with contextlib.suppress(OSError):
            os.set_inheritable(int(entry.name), int(entry.name) in (0, 1, 2, lock))
    arguments = [str(folder.path.absolute()), "--stage", stage]
    arguments += [] if lock is None else ["--lock", str(lock)]
    os.execv(sys.executable, [sys.executable, "-m", WORKER, *arguments])


def busy(folder: RunFolder) -> BusyError:
    """What to say of a run whose worker goes on."""
    return BusyError(
        f"The run {folder.name} is already going.", f"Watch it with `ollama-tune attach {folder.name}`."
    )


def _wait(folder: RunFolder, process: Process, seconds: float = PATIENCE) -> None:
    """Until this very process or the one that it launched has signed `worker.json`, which a worker does once
    it holds the lock."""
    deadline = time.monotonic() + seconds
    while process.pid not in (folder.worker().get("pid"), folder.worker().get("launcher")):
        status = process.poll()
        if status == BusyError.exit_code:
            raise busy(folder)
        if status is not None or time.monotonic() > deadline:
            raise TuneError("The worker did not start.", f"See {folder.log_path}.", details=folder.log_tail())
        time.sleep(0.01)


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
    """Be polite to the interface and to everything else: nice 10, and no busy waiting.

    To be called before torch is imported. OpenMP's threads spin while they wait for each other; where
    another process uses a core, that makes small steps five to ten times slower (measured). GPUs are
    numbered as NVML numbers them, and their memory comes in segments that grow, where the driver can.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if has_growing_segments() and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if os.getpriority(os.PRIO_PROCESS, 0) < NICE:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


def has_growing_segments(root: Path = Path("/")) -> bool:
    """True on native Linux: WSL2's driver and Jetson's fail at PyTorch's expandable segments."""
    if platform.system() != "Linux" or "microsoft" in platform.release().lower():
        return False
    return not (root / "etc/nv_tegra_release").exists()
