"""Starts the processes of a run on this box: `python -m ollama_tune.core.train.ranks N FOLDER --stage train`.

They are workers under torch's own elastic launcher, as `torchrun` would start them, but deaf to a closed
terminal and with time for a last checkpoint when they are told to end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import psutil

from ollama_tune.core.runs.launch import WORKER, nice_worker

LAST_WORDS = 120
"""Seconds that the ranks get to end by themselves."""


def launch(arguments: Sequence[str]) -> int:
    """Start so many ranks, wait for them, and give their exit status: 0, or 1 where one failed.

    Where OMP_NUM_THREADS is not set, the ranks share the cores.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nice_worker()
    count, *worker = arguments
    cores = psutil.cpu_count(logical=False) or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // int(count), 1)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(LAST_WORDS))
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--standalone", "--nproc-per-node", count, "--max-restarts", "0"]
    if "--signals-to-handle" in run.get_args_parser().format_help():  # torch 2.6 does not know it
        options += ["--signals-to-handle", "SIGTERM,SIGINT"]
    try:
        run.main([*options, "-m", WORKER, *worker])
    except (ChildFailedError, SignalException):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
