"""The doctor looks at folders, disks, locks and file systems, each one that really is like that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune.core import paths
from ollama_tune.core.machine import doctor_folders
from tests.small_disk import small_disk


def test_our_folders_are_written_to_and_nothing_stays() -> None:
    made = [*doctor_folders.state(), *doctor_folders.cache(), *doctor_folders.lock()]
    assert [check.state for check in made] == ["ok"] * 3
    assert "(OLLAMA_TUNE_HOME)" in made[0].found
    assert [path for path in paths.data_dir().parent.rglob("*") if "doctor" in path.name] == []


def test_the_origin_of_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "state_dir", lambda: tmp_path)
    monkeypatch.delenv("OLLAMA_TUNE_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert "(XDG_STATE_HOME)" in next(doctor_folders.state()).found
    monkeypatch.delenv("XDG_STATE_HOME")
    assert "(default)" in next(doctor_folders.state()).found


def test_a_home_that_cannot_be_made_or_written_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "file"))
    for check in (*doctor_folders.runs(), *doctor_folders.lock()):
        assert check.state == "fail" and "OLLAMA_TUNE_HOME" in check.fix
    sealed = Path("/proc/self")  # not even root may write there
    monkeypatch.setattr(paths, "runs_dir", lambda: sealed)
    monkeypatch.setattr(paths, "state_dir", lambda: sealed)
    (state,), (lock,) = doctor_folders.state(), doctor_folders.lock()
    assert "cannot be written to" in state.found and "flock fails" in lock.found


def test_a_full_disk_is_a_fault_and_a_small_one_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.setenv("OLLAMA_TUNE_HOME", str(disk.path))
        (small,) = doctor_folders.runs()
        disk.fill()
        (full,) = doctor_folders.runs()
    assert (small.state, "little for a model" in small.found) == ("warn", True)
    assert (full.state, "is full" in full.found) == ("fail", True)


def test_a_missing_temporary_folder_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    assert next(doctor_folders.temporary()).state in ("ok", "warn")
    monkeypatch.setattr(doctor_folders.tempfile, "gettempdir", none)
    (check,) = doctor_folders.temporary()
    assert check.state == "fail" and "TMPDIR" in check.fix


def test_a_lock_that_keeps_nobody_out_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_folders.fcntl, "flock", lambda descriptor, what: None)
    (check,) = doctor_folders.lock()
    assert (check.state, "keeps nobody out" in check.found) == ("fail", True)


def test_a_lock_held_by_another_process_is_seen(tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys; lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert not doctor_folders._another_gets(path)
        with pytest.raises(BlockingIOError):
            doctor_folders._fight(path)
        assert holder.stdin is not None
        holder.stdin.close()
    (path).touch()
    assert doctor_folders._another_gets(path) and doctor_folders._fight(path) == ""


MOUNTS = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 21 0:40 / /home rw,relatime shared:2 master:3 - nfs4 server:/home rw,vers=4.2,local_lock=none
41 40 0:41 / /home/my\040disk rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/var", "ext4"), ("/home/ada/runs", "nfs4"), ("/home/my disk/x", "xfs"), ("/homes", "ext4")],
)
def test_the_file_system_of_a_folder_is_known(place: str, kind: str) -> None:
    assert doctor_folders.file_system(Path(place), MOUNTS) == kind
    assert doctor_folders.file_system(Path(place), "") == ""


def test_runs_on_nfs_are_a_fault_even_where_locks_seem_to_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_folders, "MOUNTS", tmp_path / "mountinfo")
    (tmp_path / "mountinfo").write_text("21 1 8:1 / / rw - nfs4 server:/ rw\n")
    (check,) = doctor_folders.lock()
    assert check.state == "fail" and "nfs4" in check.found and "OLLAMA_TUNE_HOME" in check.fix


def test_a_settings_file_that_is_ignored_is_told() -> None:
    assert [check.state for check in doctor_folders.config()] == ["ok", "ok"]
    (paths.config_dir() / "config.toml").write_text("theme = [")
    _, check = doctor_folders.config()
    assert (check.name, check.state) == ("config.toml", "warn")


def test_the_hub_cache_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing there yet" in next(doctor_folders.hub_cache()).found
    (tmp_path / "hf-home/hub/models--a--b").mkdir(parents=True)
    found = next(doctor_folders.hub_cache()).found
    assert "(HF_HOME), 1 model," in found
