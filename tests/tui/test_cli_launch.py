"""`ollama-tune launch`: writes one file, says how it is submitted, and does nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.cli import cli
from ollama_tune.tui.launch_cli import EPILOG
from tests import told as outputs


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    (tmp_path / "run.yaml").write_text("export: {name: kitchen}\n")
    return tmp_path


def launch(*words: str) -> Result:
    return CliRunner().invoke(cli, ["launch", "run.yaml", *words], catch_exceptions=True)


@pytest.mark.parametrize(
    ("engine", "words", "name", "submit"),
    [
        ("slurm", (), "run.slurm.sh", ["sbatch"]),
        ("ray", (), "run.ray.py", ["ray", "job", "submit"]),
        ("skypilot", ("--card", "L4", "--install", "ollama-tune"), "run.sky.yaml", ["sky", "launch"]),
    ],
)
def test_a_file_is_written_beside_the_run_yaml(
    engine: str, words: tuple[str, ...], name: str, submit: list[str], here: Path
) -> None:
    found = launch("--on", engine, "--nodes", "2", "--gpus", "4", *words, "--json")
    assert found.exit_code == 0, found.output
    told: dict[str, Any] = outputs.told("launch", found.stdout)
    assert set(told) == {"outcome", "engine", "output", "submit", "processes", "notes"}
    assert (told["outcome"], told["engine"], told["processes"]) == ("ok", engine, 8)
    assert told["submit"][: len(submit)] == submit and str(here / name) in told["submit"]
    text = (here / name).read_text()
    assert "2 machines with 4 GPUs each" in text.splitlines()[0 if engine != "slurm" else 1]
    assert "kitchen" in text
    assert engine == "skypilot" or str(here / "home") in text, "the job finds the same folders"
    assert sorted(path.name for path in here.iterdir() if path.name != "home") == sorted(["run.yaml", name])


def test_the_examples_of_the_help_work(here: Path) -> None:
    lines = [line.split() for line in EPILOG.splitlines() if line.startswith("  ollama-tune launch")]
    assert {line[line.index("--on") + 1] for line in lines} == {"slurm", "ray", "skypilot"}
    for line in lines:
        assert CliRunner().invoke(cli, line[1:]).exit_code == 0
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == [
        "job.ray.py",
        "run.sky.yaml",
        "run.slurm.sh",
        "run.yaml",
        "spot.yaml",
    ]


def test_words_for_people_name_the_file_and_the_command(here: Path) -> None:
    found = launch("--on", "slurm", "--nodes", "3")
    assert "Written: run.slurm.sh" in found.output and f"sbatch {here}/run.slurm.sh" in found.output
    assert "! The run folder" in found.output


def test_a_file_that_is_there_stays_unless_force_is_said(here: Path) -> None:
    (here / "mine").write_text("mine")
    (here / "link").symlink_to(here / "nowhere")
    for name in ("mine", "link"):
        found = launch("--on", "slurm", "--output", name)
        assert isinstance(found.exception, UsageError) and "--force" in found.exception.fix
    assert (here / "mine").read_text() == "mine" and not (here / "nowhere").exists()
    assert launch("--on", "slurm", "-o", "mine", "--force").exit_code == 0
    assert (here / "mine").read_text().startswith("#!/bin/bash")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--on", "ray", "--partition", "gpu"), "--partition"),
        (("--on", "skypilot", "--card", "L4", "--time", "90"), "--time"),
        (("--on", "slurm", "--install", "x"), "--install"),
        (("--on", "slurm", "--partition", "a b"), "--partition"),
        (("--on", "skypilot"), "which GPU"),
        (("--on", "slurm", "-o", "run.yaml"), "is there already"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(
    words: tuple[str, ...], said: str, here: Path
) -> None:
    found = launch(*words)
    assert isinstance(found.exception, UsageError) and said in str(found.exception)
    assert [path.name for path in here.glob("run*")] == ["run.yaml"]


def test_mistakes_in_the_run_yaml_are_told_before_the_queue(here: Path) -> None:
    (here / "run.yaml").write_text("training: {rnk: 3}\n")
    found = launch("--on", "slurm")
    assert isinstance(found.exception, TuneError) and "training.rank" in str(found.exception)
    assert not (here / "run.slurm.sh").exists()


def test_a_wheel_on_this_machine_goes_along(here: Path) -> None:
    (here / "ollama_tune-1.whl").write_bytes(b"")
    assert launch("--on", "skypilot", "--card", "L4", "--install", "ollama_tune-1.whl").exit_code == 0
    task = yaml.safe_load((here / "run.sky.yaml").read_text())
    assert task["file_mounts"]["~/ollama-tune/ollama_tune-1.whl"] == str(here / "ollama_tune-1.whl")
    assert '"$HOME/ollama-tune/ollama_tune-1.whl"' in task["setup"]


@pytest.mark.parametrize("words", [(), ("--tensorboard",)])
def test_a_file_that_leaves_the_device_open_is_not_said_to_train_on_the_cpu(
    words: tuple[str, ...], here: Path
) -> None:
    (here / "run.yaml").write_text("training: {epochs: 1}\n")
    assert "trains on the CPU" not in launch("--on", "slurm", "--gpus", "8", *words).output
    (here / "run.yaml").write_text("training: {device: cpu}\n")
    assert "trains on the CPU" in launch("--on", "slurm", "--gpus", "8", *words, "--force").output
