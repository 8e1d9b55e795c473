"""A job for SLURM: an sbatch script, one torchrun a machine, that comes back until the run is done."""

from __future__ import annotations

import shlex

from ollama_tune.core.runs.jobs import Job, Launch, fill, said

WARNING = 120
"""Seconds before the job's limit at which the worker is told to write a checkpoint and end."""


def slurm(job: Job) -> Launch:
    """The script for `sbatch`. The run folder, the model and the data must be seen by every machine."""
    submit = ("sbatch", str(job.output))
    home = [f"export {name}={shlex.quote(value)}" for name, value in sorted(job.environment.items())]
    text = fill(
        "slurm.sh",
        {
            "COMMENT": job.about(submit),
            "DIRECTIVES": "\n".join(f"#SBATCH --{line}" for line in _directives(job)),
            "FOLDER": shlex.quote(str(job.folder)),
            "ENVIRONMENT": "\n".join(["export PYTHONUNBUFFERED=1", *home]),
            "PYTHON": shlex.quote(job.python),
            "NAME": job.name,
            "FILE": shlex.quote(str(job.file)),
            "VALUES": said(job.values),
            "GRACE": str(WARNING - 20),
            "CPUS": str(job.cores),
            "PROCESSES": str(job.processes),
        },
    )
    return Launch(text, submit, _notes(job))


def _directives(job: Job) -> list[str]:
    card = f"{job.card}:" if job.card else ""
    asked = {
        "job-name": job.name,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cores),
        "gres": f"gpu:{card}{job.gpus}" if job.gpus else "",
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"B:TERM@{WARNING}",
        "open-mode": "append",
        "output": "%x-%j.log",
    }
    return [*(f"{name}={value}" for name, value in asked.items() if value), "requeue"]


def _notes(job: Job) -> tuple[str, ...]:
    place = "The run folder, the model, the data and this Python must lie where every machine sees them."
    limit = "Without --time the partition's own limit holds; the run comes back after it all the same."
    return (place,) if job.time else (place, limit)
