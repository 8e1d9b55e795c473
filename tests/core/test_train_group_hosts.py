"""Two machines, each with a launcher of its own: one dies, one comes late, one has something else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import parse
from ollama_tune.core.runs import tracking
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.runs.launch import TRACKS
from ollama_tune.core.train import alike
from ollama_tune.core.train.checkpoint import newest
from ollama_tune.core.train.world import Alone
from tests.core.group_parts import Ranks
from tests.core.train_parts import make_run, wait_for, write_rows
from tests.ports import free_port


def started(folder: RunFolder, port: int) -> psutil.Process:
    """A machine's launcher, as `assets/docs/clusters.md` says, in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--max-restarts=0", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    command += ["-m", "ollama_tune.core.train.worker", str(folder.path), "--stage", "train"]
    with folder.log_path.open("ab") as log:
        own = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return psutil.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)


def test_a_machine_that_goes_off_ends_the_run_with_a_checkpoint_and_another_goes_on_alone(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    folder = make_run(model_folder, rows, training={"epochs": 40.0, "evaluation_interval": 10_000})
    port = free_port()
    first, second = started(folder, port), started(folder, port)
    wait_for(lambda: sum(event.kind == "step" for event in folder.events()) > 3)
    parts = {int(child.environ()["RANK"]): child for each in (first, second) for child in each.children()}
    lost = second if parts[1].ppid() == second.pid else first
    for process in (lost, parts[1]):
        process.kill()
    _, left = psutil.wait_procs([first, second, *parts.values()], timeout=300)
    assert not left, folder.log_tail()
    error, saved = folder.events()[-1], newest(folder)[0]
    assert error.kind == "error" and f"Rank 1 of 2 (counted from 0, process {parts[1].pid}" in error["what"]
    last = max(event["step"] for event in folder.events() if event.kind == "step")
    assert saved is not None and saved.state.step == last and folder.status().state is State.FAILED
    assert "kernels" not in folder.log_path.read_text(), "a remark of a library on what nobody uses"
    alone = Ranks(folder, 1)
    wait_for(lambda: any(e.kind == "step" and e["step"] > last for e in folder.events()))
    folder.stop_path.touch()
    assert alone.wait() == [0] and folder.events()[-1].kind == "stopped"


def test_a_machine_that_comes_late_is_waited_for_and_the_worker_of_a_job_sends_its_figures(
    model_folder: Path, tmp_path: Path
) -> None:
    told = {"tracking": {"to": ["tensorboard"]}, "training": {"epochs": 1.0}}
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"), **told)
    assert Ranks(folder, 2, fault="slow", **{TRACKS: "yes"}).wait() == [0, 0], folder.log_tail()
    assert folder.status().state is State.FINISHED
    sent = tracking.sent(folder, "tensorboard")
    last = max(event["step"] for event in folder.events() if event.kind == "step")
    assert sent.told is not None and sent.told["train/loss"] == last and not sent.problem


def test_a_machine_with_other_rows_is_told_by_name_before_anything_is_computed(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"), training={"epochs": 1.0})
    assert Ranks(folder, 3, fault="other rows").wait() == [1, 1, 1]
    error = folder.events()[-1]
    assert error.kind == "error" and "Rank 1 of 3 (counted from 0, on " in error["what"]
    assert "data.path" in f"{error['what']} {error['fix']}"
    assert not any(event.kind in ("step", "checkpoint") for event in folder.events())


class Met(Alone):
    """A group whose other ranks tell what rank 0 tells, but for some things."""

    def __init__(self, *others: dict[str, Any]) -> None:
        self.size, self._others = 1 + len(others), others

    def meet(self, name: str, value: str) -> list[str]:
        about = json.loads(value)
        return [value, *(json.dumps(about | other) for other in self._others)]


SETTINGS = parse({"training": {"device": "cuda", "compute_dtype": "bfloat16"}})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"the version of torch": "2.9.9"}, "the version of torch (2.9.9, and "),
        ({"training.learning_rate": 0.5}, "training.learning_rate (0.5, and "),
        ({"data.validation_split": 0.5}, "data.validation_split (0.5, and "),
        ({"gpu": "none"}, "has no GPU of its own"),
        ({"gpu": "GPU-1"}, "has the same GPU as rank 0"),
    ],
)
def test_what_is_not_the_same_on_a_machine_is_told_with_its_name(
    other: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alike, "_own_gpu", lambda settings: "GPU-1")
    told = {"host": "node2", "gpu": "GPU-2", **other}
    with pytest.raises(TuneError) as error:
        alike.same_start(Met({"gpu": "GPU-3"}, told), SETTINGS)
    assert "Rank 2 of 3 (counted from 0, on node2)" in error.value.what and words in error.value.what
    alike.same_start(Met({"gpu": "GPU-2"}), SETTINGS)


def test_files_may_lie_elsewhere_on_another_machine_but_must_be_the_same(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alike, "_own_gpu", lambda settings: "")
    alike.same_start(Met({"host": "node2"}), SETTINGS)
    assert not {"model.source", "data.path"} & set(alike._deciding(SETTINGS))
    alike.same_model(Met({"host": "node2"}), model_folder)
    with pytest.raises(TuneError, match=r"node2\) has something else .* model\.source"):
        alike.same_model(Met({"host": "node2", "model.source": "another"}), model_folder)


def test_a_process_without_a_gpu_of_its_own_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert alike._own_gpu(SETTINGS) == "none"
    assert alike._own_gpu(parse({"training": {"device": "cpu", "compute_dtype": "float32"}})) == ""
