"""A SkyPilot job whose machine is taken away: its run goes on from what lies in the bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from ollama_tune.core.errors import UsageError
from ollama_tune.core.runs.skypilot import skypilot
from tests.core.cluster_parts import file, home, job
from tests.core.test_runs_cluster import shell
from tests.core.train_parts import wait_for

__all__ = ["file", "home"]

TAKEN_AWAY = """#!/bin/bash
case "$3" in begin)
  mkdir -p "$HOME/.local/share/ollama-tune/runs/$5/checkpoints"
  echo "all $HOME/.local/share/ollama-tune/runs/$5";;
*)
  run="${@: -3:1}"
  if [ -e "$run/checkpoints/2" ]; then echo done >> "$run/events"; exit "${STATUS-0}"; fi
  touch "$run/checkpoints/1" && mkdir "$run/checkpoints/2" && echo 2 > "$run/events"
  exec sleep 600;;
esac
"""
"""A worker that writes a checkpoint and hangs, and where there is one comes to its end."""


def cloud_machine(task: dict[str, Any], home: Path, bucket: Path, **more: str) -> subprocess.Popen[bytes]:
    """What SkyPilot does on a new machine: it puts the bucket into its place and runs the script."""
    python = home / "ollama-tune/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(TAKEN_AWAY)
    python.chmod(0o755)
    (home / "ollama-tune/bucket").symlink_to(bucket)
    known = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "192.0.2.7"}
    there = {"HOME": str(home), "PATH": os.environ["PATH"], **known, **more}
    return subprocess.Popen(["bash", "-c", task["run"]], env=there, start_new_session=True)


@pytest.mark.parametrize("status", ["0", "3"])
def test_a_machine_that_is_taken_away_leaves_its_run_in_the_bucket(
    status: str, file: Path, tmp_path: Path
) -> None:
    made = skypilot(job(file, gpus=0, install="ollama-tune", bucket="s3://mine"))
    task = yaml.safe_load(made.text)
    assert made.submit[:4] == ("sky", "jobs", "launch", "-n")
    assert task["file_mounts"]["~/ollama-tune/bucket"] == {"source": "s3://mine", "mode": "MOUNT_CACHED"}
    shell("#!/bin/bash\n" + task["run"], tmp_path / "run.sh")
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    first = cloud_machine(task, tmp_path / "one", bucket)
    wait_for(lambda: any(bucket.glob("*.tar")), 60)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    second = cloud_machine(task, tmp_path / "two", bucket, STATUS=status)
    assert second.wait(60) == int(status)
    (kept,) = bucket.iterdir()
    with tarfile.open(kept) as tar:
        events = tar.extractfile(f"{kept.stem}/events")
        assert events is not None and events.read() == b"2\ndone\n"
    assert kept.stem == "bundled-sky-20261122"


def test_only_the_first_machine_writes_to_the_bucket(file: Path, tmp_path: Path) -> None:
    task = yaml.safe_load(skypilot(job(file, gpus=0, install="x", bucket="s3://mine")).text)
    bucket, home = tmp_path / "bucket", tmp_path / "home"
    bucket.mkdir()
    (home / ".local/share/ollama-tune/runs/bundled-sky-20261122/checkpoints/2").mkdir(parents=True)
    assert cloud_machine(task, home, bucket, SKYPILOT_NODE_RANK="1").wait(60) == 0
    assert not list(bucket.iterdir())


@pytest.mark.parametrize("bucket", ["mine", "s3://", "s3://a b", "s3://x'; rm", "s3://$HOME"])
def test_what_is_no_address_of_a_bucket_is_refused(bucket: str, file: Path) -> None:
    with pytest.raises(UsageError, match="--bucket"):
        job(file, bucket=bucket).check()
