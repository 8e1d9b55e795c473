"""A task for SkyPilot: machines of a cloud, ollama-tune on them, torchrun by SkyPilot's variables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from ollama_tune.core.errors import UsageError
from ollama_tune.core.runs.jobs import Job, Launch, fill, own_files, requirement, said

FOLDER = "~/ollama-tune"
"""Everything of a job on a machine of the cloud, but the run folder."""
BUCKET = f"{FOLDER}/bucket"
"""Where a bucket is seen there."""
PORT = 29400


def skypilot(job: Job) -> Launch:
    """The task for `sky launch`; what lies on this machine is copied to the others.

    With a bucket it is for `sky jobs launch`, which begins again where a machine was taken away, and goes on.
    Raises `UsageError` where a GPU is wanted and not named, or ollama-tune cannot be installed there.
    """
    if job.gpus and not job.card:
        raise UsageError("SkyPilot must know which GPU.", "Name one as `sky gpus list` does: --card H100.")
    install = job.install or requirement()
    wheel = Path(install).expanduser().absolute() if Path(install).suffix == ".whl" else None
    copied = own_files(job.settings)
    places = {path: f"{FOLDER}/{path.split('.')[0]}/{_plain(file.name)}" for path, file in copied.items()}
    mounts: dict[str, Any] = {places[path]: str(file) for path, file in copied.items()}
    mounts[f"{FOLDER}/run.yaml"] = str(job.file)
    if wheel is not None:
        mounts[f"{FOLDER}/{wheel.name}"] = str(wheel)
    run = fill("skypilot.sh", _places(job, places))
    if job.bucket:
        mounts[BUCKET] = {"source": job.bucket, "mode": "MOUNT_CACHED"}
        run = fill("bucket.sh", {"NAME": _run_name(job), "KEPT": _shell(BUCKET), "JOB": run})
    task: dict[str, Any] = {
        "name": f"ollama-tune-{job.name}"[:50].rstrip("-."),
        "num_nodes": job.nodes,
        "resources": _resources(job),
        "file_mounts": mounts,
        "setup": fill("setup.sh", {"REQUIREMENT": _shell(f"{FOLDER}/{wheel.name}" if wheel else install)}),
        "run": run,
    }
    how = ("jobs", "launch", "-n") if job.bucket else ("launch", "-c")
    submit = ("sky", *how, str(task["name"]), str(job.output))
    return Launch(f"{job.about(submit)}\n{_dump(task)}", submit, _notes(job))


def _places(job: Job, places: dict[str, str]) -> dict[str, str]:
    values = " ".join(
        [*(f"--set {path}={_shell(place)}" for path, place in places.items()), said(job.values)]
    )
    processes = '"$SKYPILOT_NUM_GPUS_PER_NODE"' if job.gpus else "1"
    return {"NAME": _run_name(job), "VALUES": values, "PROCESSES": processes, "PORT": str(PORT)}


def _run_name(job: Job) -> str:
    return f"{job.name}-sky-{job.stamp}"


def _resources(job: Job) -> dict[str, Any]:
    if not job.gpus:
        return {"cpus": f"{job.cores}+"}
    return {"accelerators": f"{job.card}:{job.gpus}"} | ({"cpus": f"{job.cpus}+"} if job.cpus else {})


def _plain(name: str) -> str:
    """A file's name of letters, digits, dots and hyphens, with the ending that tells its form."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def _shell(text: str) -> str:
    """A word for the shell, in which a leading ~ means the home folder."""
    return f'"$HOME/{text[2:]}"' if text.startswith("~/") else shlex.quote(text)


class _Dumper(yaml.SafeDumper):
    """Writes scripts as blocks, so that they can be read."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def _dump(task: dict[str, Any]) -> str:
    return yaml.dump(task, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _notes(job: Job) -> tuple[str, ...]:
    where = (
        "The run folder lies on the first machine; copy it before the machines are given back: "
        f"`rsync -a ollama-tune-{job.name}:.local/share/ollama-tune/runs/{_run_name(job)} .`"
    )
    if job.bucket:
        where = (
            "For spot machines add `--use-spot` to the command. The run folder is kept in the bucket, after "
            f"each checkpoint and at the end, as {_run_name(job)}.tar: with rows of the data."
        )
    return (
        where,
        "A model that needs a key: add `--secret HF_TOKEN` to the command, never to the file.",
    )
