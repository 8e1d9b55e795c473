"""SLURM's `srun` and `scontrol` as far as a job's script needs them, strict about their arguments.

`srun` starts one task a machine, all of them on this one; what `scontrol` is asked to requeue goes to a file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

SRUN, SCONTROL = "srun", "scontrol"


def install(folder: Path) -> None:
    """Put both programs into a folder, which is then to stand first in PATH."""
    for name in (SRUN, SCONTROL):
        program = folder / name
        program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -S '{__file__}' {name} \"$@\"\n")
        program.chmod(0o755)


def environment(job: int, nodes: int, folder: Path, restarts: int = 0) -> dict[str, str]:
    """What SLURM sets for a job's script; `folder` is where the doubles keep their notes."""
    found = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": ",".join(["localhost"] * nodes),
        "DOUBLE_FOLDER": str(folder),
    }
    return found | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})


def srun(arguments: list[str]) -> int:
    """Start the command once a machine, wait for all, and end the others when one fails."""
    parser = argparse.ArgumentParser(prog=SRUN, allow_abbrev=False)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ntasks", type=int, required=True)
    parser.add_argument("--ntasks-per-node", type=int, required=True)
    parser.add_argument("--cpus-per-task", type=int, required=True)
    parser.add_argument("--kill-on-bad-exit", type=int, choices=[0, 1], default=0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    if (
        given.ntasks != given.nodes * given.ntasks_per_node
        or str(given.nodes) != os.environ["SLURM_JOB_NUM_NODES"]
    ):
        parser.error("the tasks do not fill the machines of the job")
    tasks = [
        subprocess.Popen(given.command, env={**os.environ, "SLURM_PROCID": str(n), "SLURM_NODEID": str(n)})
        for n in range(given.ntasks)
    ]
    while None in [task.poll() for task in tasks]:
        time.sleep(0.05)
        if given.kill_on_bad_exit and any(task.returncode for task in tasks):
            for task in tasks:
                task.terminate()
    return max(abs(task.returncode) for task in tasks)


def scontrol(arguments: list[str]) -> int:
    """The three things that the script asks; anything else is an error, as a typing mistake would be."""
    notes, job = Path(os.environ["DOUBLE_FOLDER"]), os.environ["SLURM_JOB_ID"]
    if arguments == ["show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]:
        print("\n".join(arguments[2].split(",")))
    elif arguments == ["show", "job", "-o", job]:
        state = notes / "state"
        print(
            f"JobId={job} JobName=x JobState={state.read_text() if state.exists() else 'RUNNING'} Requeue=1"
        )
    elif arguments == ["requeue", job]:
        with (notes / "requeued").open("a") as file:
            file.write(f"{job}\n")
    else:
        print(f"scontrol: invalid request {arguments}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit({SRUN: srun, SCONTROL: scontrol}[sys.argv[1]](sys.argv[2:]))
