"""A job for Ray: Ray Train finds the machines, starts a process a GPU, and starts all anew when one died.

Each of these processes starts the training worker as a child, which takes its rank from the usual variables:
Ray runs a function in a thread, and a worker listens to signals, which only a process of its own can.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.runs import cluster
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.jobs import Job, Launch, fill
from ollama_tune.core.runs.launch import TRACKS

DASHBOARD = "http://127.0.0.1:8265"
"""Where `ray job submit` finds a cluster that was reached by a tunnel or on its head machine."""
FAILURES = 3
"""So often Ray starts all processes anew after one of them, or a machine, died."""


@dataclass(frozen=True)
class RayJob:
    """What the generated file holds: the run.yaml, the run's name, processes in all and what each needs.

    `folder` is where paths of the run.yaml start, `card` the GPU's name as Ray calls it, `environment` what
    every process finds, `values` are settings in place of the file's. So often as `failures` says all start
    anew after one of them died.
    """

    file: str
    folder: str
    name: str
    processes: int
    gpu: bool = True
    cpus: int = 1
    card: str = ""
    failures: int = FAILURES
    environment: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def ray(job: Job) -> Launch:
    """The Python file for `ray job submit`. Every machine must see it, the run folder, model and data."""
    asked = RayJob(
        file=str(job.file),
        folder=str(job.folder),
        name=f"{job.name}-ray-{job.stamp}",
        processes=job.nodes * job.processes,
        gpu=job.gpus > 0,
        cpus=max(job.cores // job.processes, 1),
        card=job.card,
        environment={"PYTHONUNBUFFERED": "1", TRACKS: "yes", **job.environment},
        values=dict(job.values),
    )
    submit = ("ray", "job", "submit", "--address", DASHBOARD, "--", "python", str(job.output))
    lines = [f"            {each.name}={getattr(asked, each.name)!r}," for each in fields(asked)]
    made = "\n".join(["RayJob(", *lines, "        )"])
    text = fill("ray.txt", {"COMMENT": job.about(submit), "JOB": made})
    return Launch(text, submit, _notes())


def _notes() -> tuple[str, ...]:
    return (
        "Every machine needs ollama-tune (`pip install 'ollama-tune[ray]'`), and must see the run folder, "
        "the model and the data.",
        "The command is given on the head machine; elsewhere change its --address.",
    )


def run(job: RayJob) -> None:
    """Train as a job of a Ray cluster, or on this machine where there is none; ends with the run's status."""
    os.environ.update(job.environment)
    sys.exit(int(_trainer(job).fit().return_value))


def _part(name: str) -> Any:
    """A module of Ray, which is installed on its clusters only."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        fix = "Install it with `pip install 'ollama-tune[ray]'`."
        raise TuneError("Ray Train is not installed here.", fix) from error


def _trainer(job: RayJob) -> Any:
    ray, train, torch = (_part(name) for name in ("ray", "ray.train", "ray.train.torch"))
    if not ray.is_initialized():
        ray.init(runtime_env={"env_vars": dict(job.environment)})
    resources = {"CPU": job.cpus} | ({"GPU": 1} if job.gpu else {})
    return torch.TorchTrainer(
        work,
        train_loop_config={
            "file": job.file,
            "folder": job.folder,
            "name": job.name,
            "values": dict(job.values),
        },
        torch_config=torch.TorchConfig(backend="gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=job.processes,
            use_gpu=job.gpu,
            resources_per_worker=resources,
            accelerator_type=job.card or None,
        ),
        run_config=train.RunConfig(
            name=job.name,
            storage_path=str(cluster.folder_of(job.name).path.parent.parent / "ray"),
            failure_config=train.FailureConfig(max_failures=job.failures),
        ),
    )


def work(config: dict[str, Any]) -> int:
    """One of Ray's processes: prepare the run, then be its worker until that ends; returns its status.

    A worker that says why it ended (status 0 or 1) has ended for good; one that died makes Ray begin again,
    and the run goes on from its last checkpoint.
    """
    context = _part("ray.train").get_context()
    told = _told(context.get_world_rank(), config)
    if told["stage"] == cluster.NOTHING:
        return 0
    folder = cluster.folder_of(config["name"])
    if not folder.settings_path.exists():
        raise TuneError(
            f"This machine does not see {folder.path}.", "Set OLLAMA_TUNE_HOME to a shared folder."
        )
    ranks = {
        "RANK": context.get_world_rank(),
        "LOCAL_RANK": context.get_local_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "MASTER_ADDR": told["address"],
        "MASTER_PORT": told["port"],
    }
    status = _child(folder, told["stage"], {name: str(value) for name, value in ranks.items()})
    if status < 0 or status > 1:
        raise RuntimeError(f"The worker of rank {ranks['RANK']} ended with status {status}.")
    return status


def _told(rank: int, config: dict[str, Any]) -> dict[str, Any]:
    """What the first process finds, told to all: the stage, and where the workers meet."""
    found: dict[str, Any] = {}
    if rank == 0:
        os.chdir(config["folder"])
        folder, stage = cluster.begin(Path(config["file"]), config["name"], config["values"])
        with contextlib.closing(socket.create_server(("", 0))) as free:
            found = {"address": _part("ray.util").get_node_ip_address(), "port": free.getsockname()[1]}
        found["stage"] = stage
        print(f"Run folder: {folder.path}")
    told: dict[str, Any] = _part("ray.train.collective").broadcast_from_rank_zero(found)
    return told


def _child(folder: RunFolder, stage: str, ranks: dict[str, str]) -> int:
    """The worker in a process of its own, which gets SIGTERM when this one dies; returns its status."""
    command = [sys.executable, "-m", "ollama_tune.core.runs.cluster", "child", str(os.getpid())]
    command += [str(folder.path), "--stage", stage]
    with folder.log_path.open("ab") as log:
        worker = subprocess.Popen(command, env={**os.environ, **ranks}, stdout=log, stderr=subprocess.STDOUT)
    return worker.wait()
