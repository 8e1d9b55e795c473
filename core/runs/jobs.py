"""A job on a cluster: what is asked of it, and the file that starts it with SLURM, Ray or SkyPilot.

The engines do their own work: they find machines, start processes and restart them. A file only names the
training worker, which is the same one everywhere, and holds no password and no key.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import UsageError
from ollama_tune.core.paths import asset
from ollama_tune.core.plan.gpus import rows_a_step
from ollama_tune.core.plan.settings import BUNDLED, Settings, release
from ollama_tune.core.text import one_line

CPUS_A_GPU = 8
CPUS_WITHOUT = 4
FOR_CPU = (
    "This run.yaml trains on the CPU (training.device: cpu), so the GPUs would idle. Plan it for them: "
    '`ollama-tune plan ... --gpu "H100" --output run.yaml`, or leave device and compute_dtype out of it.'
)
FOR_GPU = "This run.yaml trains on a GPU (training.device: cuda), and with --gpus 0 the job asks for none."
_PLACE = re.compile(r"@([A-Z]+)@")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,:/+-]*")
_BUCKET = re.compile(r"[a-z0-9]+://[A-Za-z0-9][A-Za-z0-9._/-]*")
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d\d?(:\d\d){0,2}")


@dataclass(frozen=True)
class Job:
    """What is asked for: the run.yaml with its settings, the machines, and what the cluster wants to know.

    `output` is where the job's file will be, `folder` where its processes start. `gpus` are those of a
    machine; 0 means one process a machine on the CPU. `card` is the GPU's name as the cluster calls it.
    `stamp` makes the run's name one of its own. `environment` is what the job's processes must find, such as
    OLLAMA_TUNE_HOME; `install` is what pip installs on machines that are new, `bucket` where the run folder
    is kept when such machines are taken away. `values` are settings that the job's run has in place of the
    file's, by their dotted paths.
    """

    file: Path
    settings: Settings
    output: Path
    folder: Path
    python: str
    nodes: int = 1
    gpus: int = 1
    cpus: int = 0
    card: str = ""
    time: str = ""
    partition: str = ""
    account: str = ""
    install: str = ""
    bucket: str = ""
    stamp: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Processes on a machine: one a GPU."""
        return max(self.gpus, 1)

    @property
    def cores(self) -> int:
        """Cores of a machine that are asked for."""
        return self.cpus or (self.gpus * CPUS_A_GPU or CPUS_WITHOUT)

    @property
    def name(self) -> str:
        """The run's name so far: that of the exported model, else of the base model."""
        label = self.settings.export.name or Path(self.settings.model.source).name
        return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")[:40] or "run"

    def check(self) -> None:
        """Raise `UsageError` for words that no cluster takes, which could say something else to a shell."""
        for name in ("card", "partition", "account"):
            value = getattr(self, name)
            if value and not _WORD.fullmatch(value):
                raise UsageError(f"--{name} {one_line(value, 60)!r} is no name.", "Use letters and digits.")
        if self.bucket and not _BUCKET.fullmatch(self.bucket):
            what = f"--bucket {one_line(self.bucket, 60)!r} is no address of a bucket."
            raise UsageError(what, "Write it as s3://NAME, gs://NAME or r2://NAME.")
        if self.time and not _TIME.fullmatch(self.time):
            what = f"--time {one_line(self.time, 40)!r} is no length of time."
            raise UsageError(what, "Write 90 (minutes), 12:00:00 or 2-00:00:00.")

    def about(self, submit: Sequence[str]) -> str:
        """The comment at the top of a file, with the command that submits it."""
        machines = "1 machine" if self.nodes == 1 else f"{self.nodes} machines"
        devices = f"{self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else "the CPU"
        each = " each" if self.nodes > 1 else ""
        return (
            f"# Written by ollama-tune {release()}: trains {one_line(self.file.name, 80)} on {machines} with "
            f"{devices}{each}.\n# Submit it with: {one_line(shlex.join(submit), 200)}"
        )

    def remarks(self) -> list[str]:
        """What does not suit the machines: another device than theirs, too few rows a step."""
        world, training = self.nodes * self.processes, self.settings.training
        rows, found = rows_a_step(training), []
        if "device" in training.model_fields_set and (training.device == "cuda") != bool(self.gpus):
            found.append(FOR_CPU if self.gpus else FOR_GPU)
        if rows < world:
            found.append(
                f"A step has {rows} rows for {world} processes, so {world - rows} of them wait. Rows a step "
                "are training.batch_size x training.gradient_accumulation_steps."
            )
        return found


@dataclass(frozen=True)
class Launch:
    """The file that starts a job: its text, the words of the command that submits it, and remarks."""

    text: str
    submit: tuple[str, ...]
    notes: tuple[str, ...] = ()


def command_line(words: Sequence[str]) -> str:
    """The words of a command as they are typed."""
    return shlex.join(words)


def fill(template: str, values: Mapping[str, str]) -> str:
    """A file of `assets/launch` with its places filled; values are shell words or whole lines already."""
    text = asset(f"launch/{template}").read_text(encoding="utf-8")
    return _PLACE.sub(lambda place: values[place.group(1)], text)


def said(values: Mapping[str, Any]) -> str:
    """Settings as the words of `cluster begin`."""
    return " ".join(f"--set {shlex.quote(f'{path}={json.dumps(value)}')}" for path, value in values.items())


def own_files(settings: Settings) -> dict[str, Path]:
    """The model and the data that lie on this machine, by the setting that names them."""
    named = {path: settings.get(path) for path in ("model.source", "data.path")}
    found = {path: Path(value).expanduser().absolute() for path, value in named.items() if value != BUNDLED}
    return {path: place for path, place in found.items() if place.exists()}


def requirement() -> str:
    """What pip installs to get this very ollama-tune: its address, or its name and version.

    Raises `UsageError` where it was installed from a folder, which other machines do not have.
    """
    told = next(filter(None, (d.read_text("direct_url.json") for d in distributions(name="ollama-tune"))), "")
    source = json.loads(told or "{}")
    url = re.sub(r"//[^/@]*@", "//", str(source.get("url", "")))
    if not url:
        return f"ollama-tune=={release()}"
    if url.startswith("file:"):
        raise UsageError(
            "This ollama-tune was installed from a folder, which new machines do not have.",
            "Say --install with a wheel (`python -m build --wheel` makes one), an address or a name for pip.",
        )
    version_control = source.get("vcs_info")
    if version_control:
        return f"ollama-tune @ {version_control['vcs']}+{url}@{version_control['commit_id']}"
    return f"ollama-tune @ {url}"
