"""The doctor's own machinery and its checks of the box, each against a box that really is like that."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_tune.core import doctor, paths
from ollama_tune.core.machine import doctor_box, doctor_links, gpus, ollama
from ollama_tune.core.machine.doctor import Check, Part, Trial, fail, ok, warn
from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.core.runs import doctor as runs_doctor
from tests.nvml_double import GIB, Device, Nvml, error
from tests.ollama_double import Model, OllamaDouble
from tests.small_disk import small_disk

TROUBLE = """
import ctypes, os, signal, sys, time
from ollama_tune.core.machine.doctor import ok, fail
def good(): print("noise of a library"); return [ok("fine")]
def two(): return [ok("first", "one"), fail("second", "mend it")]
def segfault(): ctypes.string_at(0)
def hang(): time.sleep(600)
def deaf(): signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)
def leave(): print("last words", file=sys.stderr, flush=True); os._exit(3)
def trouble(): raise ImportError("cannot import name 'x'\\nfrom y")
def pid(): return [ok(str(os.getpid()))]
"""


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of checks that go wrong, which the doctor's process can import."""
    (tmp_path / "trouble").mkdir()
    (tmp_path / "trouble/bad_checks.py").write_text(TROUBLE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "trouble"))


def tried(*names: str, limit: float = 60.0, needs: str = "") -> list[Check]:
    trials = [Trial("Group", name, f"bad_checks:{name}", limit, "do this", needs) for name in names]
    part = Part(trials)
    try:
        return list(part.checks(lambda trial: None))
    finally:
        part.stop()


@pytest.mark.usefixtures("trouble")
def test_a_crash_is_a_line_and_the_rest_is_tried_in_a_new_process() -> None:
    before, crash, after = tried("good", "segfault", "two")[:3]
    assert before == Check("ok", "fine", "", "good", "Group")
    assert crash == Check("fail", "crashed with SIGSEGV", "do this", "segfault", "Group")
    assert (after.name, after.found) == ("one", "first")


@pytest.mark.usefixtures("trouble")
def test_what_does_not_answer_is_killed_at_its_limit() -> None:
    first, hung, last = tried("good", "hang", "good", limit=1.0)
    assert (hung.state, hung.found) == ("fail", "no answer within 1 s")
    assert first.state == last.state == "ok"


@pytest.mark.usefixtures("trouble")
def test_an_exit_and_an_error_are_told_with_their_last_words() -> None:
    gone, raised = tried("leave", "trouble")
    assert gone.found == "ended its process with status 3 (last words)"
    assert raised.found == "ImportError: cannot import name 'x' from y"


@pytest.mark.usefixtures("trouble")
def test_what_needs_something_broken_is_not_tried() -> None:
    trials = [
        Trial("G", "torch", "bad_checks:segfault", fix="again"),
        Trial("G", "fast path", "bad_checks:hang", needs="torch"),
        Trial("G", "AdamW", "bad_checks:hang", needs="fast path"),
    ]
    _, skipped, also = Part(trials).checks(lambda trial: None)
    assert (skipped.state, skipped.found) == ("warn", "not tried, for torch does not work here")
    assert also.state == "warn"


@pytest.mark.usefixtures("trouble")
def test_an_end_before_its_time_leaves_no_process_behind() -> None:
    trials = [Trial("G", "pid", "bad_checks:pid"), Trial("G", "deaf", "bad_checks:deaf", 60.0)]
    checks = doctor.examine(parts=[trials])
    pid = int(next(checks).found)
    assert Path(f"/proc/{pid}").exists()
    checks.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{pid}").exists()


def test_every_trial_names_a_function_that_is_there_and_what_to_do() -> None:
    for trial in (trial for part in doctor.WHOLE for trial in part):
        module, _, function = trial.target.partition(":")
        place = Path(doctor.__file__).parents[0] / f"{module.split('core.')[1].replace('.', '/')}.py"
        assert f"def {function}(" in place.read_text(), trial.target
        assert trial.fix and trial.limit <= 60
    names = [trial.name for trial in doctor.TORCH_TRIALS]
    assert {trial.needs for trial in doctor.TORCH_TRIALS} <= {"", *names}


# Versions


def test_the_installed_packages_are_in_the_ranges_of_their_metadata() -> None:
    found = {check.name: check for check in doctor_box.versions()}
    assert {check.state for check in found.values()} == {"ok"}
    assert set(doctor_box.SHOWN) < set(found)
    assert "built for" in found["torch"].found


@pytest.mark.parametrize(
    ("wanted", "state", "word"),
    [
        ("click>=8,<9", "ok", "8."),
        ("click>=99", "fail", "Install another"),
        ("click==7.0", "warn", "newer than what was tested"),
        ("click<8", "warn", "newer than what was tested"),
        ("no-such-package-here>=2", "fail", 'pip install "no-such-package-here>=2"'),
    ],
)
def test_a_package_outside_of_its_range_is_told(wanted: str, state: str, word: str) -> None:
    from packaging.requirements import Requirement

    check = doctor_box._installed(Requirement(wanted))
    assert check.state == state
    assert word in f"{check.found} {check.fix}"


def test_another_python_than_wanted_is_told() -> None:
    (check,) = doctor_box._python("3.9.1", ">=3.10")
    assert check.state == "fail" and list(doctor_box._python("3.12.1", ">=3.10")) == []


# GPUs


def looked(monkeypatch: pytest.MonkeyPatch, nvml: Nvml, torch: str = "2.13.0+cu130") -> list[Check]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "other_gpus", lambda torch: ())
    monkeypatch.setattr(gpus, "has_nvidia_card", lambda: False)
    report = read_gpus(nvml, torch)
    monkeypatch.setattr(gpus, "read_gpus", lambda: report)
    return list(doctor_box.gpus())


def test_a_gpu_is_shown_with_its_driver_and_one_that_is_half_taken_is_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, free, taken = looked(monkeypatch, Nvml(Device(), Device(free=GIB, uuid="GPU-2")))
    assert driver == ok("570.86.10, runs CUDA up to 13.0", "driver")
    assert (free.state, free.name) == ("ok", "GPU 0") and "capability 8.9" in free.found
    assert taken.state == "warn" and "probe" in taken.fix


@pytest.mark.parametrize(
    ("torch", "cuda", "word"),
    [("2.13.0+cpu", 13_000, "install its CUDA build"), ("2.13.0+cu130", 12_040, "update the driver")],
)
def test_a_pytorch_that_does_not_fit_the_driver_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, torch: str, cuda: int, word: str
) -> None:
    faults = [
        check for check in looked(monkeypatch, Nvml(Device(), cuda=cuda), torch) if check.state == "fail"
    ]
    assert [check.name for check in faults] == ["PyTorch"]
    assert word in faults[0].found or faults[0].fix.lower().startswith(word.lower())


def test_no_driver_is_no_fault_and_a_broken_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    (none,) = looked(monkeypatch, Nvml(init=error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)))
    assert none.state == "warn" and "no NVIDIA driver" in none.found
    (updated,) = looked(monkeypatch, Nvml(init=error(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)))
    assert "updated" in updated.found and "estart this machine" in f"{updated.found} {updated.fix}"


# Memory, limits, clock


def box(root: Path, *, limit: int | None = None, flags: str = "avx2 amx_bf16") -> Path:
    """The files of a Linux box with a control group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "proc/cpuinfo").write_text(f"model name\t: Example CPU\nflags\t\t: fpu {flags}\n")
    if limit is not None:
        (root / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (root / "sys/fs/cgroup/memory.current").write_text("0\n")
    return root


def test_a_container_with_less_memory_than_its_machine_is_told(tmp_path: Path) -> None:
    whole, limit = doctor_box.memory(box(tmp_path, limit=2 * GIB))
    assert (whole.state, limit.name) == ("warn", "limit")
    assert whole.found.endswith("of 2.0 GiB") and "this container may use 2.0 GiB of" in limit.found


def test_a_box_without_a_limit_has_one_line_of_memory() -> None:
    assert len([check for check in doctor_box.memory() if check.name == ""]) == 1


def test_a_cpu_without_wide_units_is_marked(tmp_path: Path) -> None:
    (fast,) = doctor_box.cpu(box(tmp_path / "fast"))
    (slow,) = doctor_box.cpu(box(tmp_path / "slow", flags="sse2"))
    assert fast.state == "ok" and "AMX for bfloat16" in fast.found
    assert slow.state == "warn" and "no AVX2" in slow.found


@pytest.mark.parametrize(("limit", "state"), [(64, "fail"), (500, "warn"), (4096, "ok")])
def test_a_small_limit_of_open_files_is_told(limit: int, state: str) -> None:
    code = (
        "import json; from ollama_tune.core.machine.doctor_box import open_files\n"
        "print(json.dumps([vars(check) for check in open_files()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096)),
    )
    (check,) = json.loads(done.stdout)
    assert check["state"] == state and (state == "ok" or "ulimit -n 4096" in check["fix"])


def test_a_small_shared_memory_and_a_wrong_clock_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "shm", "16m") as disk:
        (shm,) = doctor_box.shared_memory(disk.path)
    assert shm.state == "warn" and "--shm-size" in shm.fix
    (right,) = doctor_box.clock()
    monkeypatch.setattr(time, "time", lambda: 1e9)
    (wrong,) = doctor_box.clock()
    assert (right.state, wrong.state) == ("ok", "warn")


# Ollama, hub, runs


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaDouble]:
    with OllamaDouble() as double:
        digest = f"sha256:{1:064d}"
        double.state.blob(digest).write_bytes(b"GGUF" + bytes(1 << 20))
        double.state.models["llama3:8b"] = Model(digest, {}, {})
        double.state.loaded.add("llama3:8b")
        monkeypatch.setenv("OLLAMA_HOST", double.url)
        yield double


def test_a_server_is_shown_with_its_version_what_it_holds_and_its_store(
    server: OllamaDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    found = {check.name: check for check in doctor_links.ollama()}
    assert found["server"].state == "ok" and server.url in found["server"].found
    assert found["loaded"].state == "warn" and "llama3:8b" in found["loaded"].found
    assert str(tmp_path) in found["store"].found


def test_a_missing_and_an_old_server_are_told(server: OllamaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    status = ollama.read_ollama()
    old = type(status)(status.url, "0.4.9", "", True)
    with monkeypatch.context() as patch:
        patch.setattr(ollama, "read_ollama", lambda: old)
        assert "too old" in next(doctor_links.ollama()).found
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    (check,) = doctor_links.ollama()
    assert check.state == "warn" and "ollama serve" in check.fix


SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("place", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "file", "named file"])
def test_a_token_is_found_and_never_printed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "none" in next(doctor_links.hub()).found
    if "file" in place:
        file = tmp_path / ("mine" if place == "named file" else "hf-home/token")
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{SECRET}\n")
        if place == "named file":
            monkeypatch.setenv("HF_TOKEN_PATH", str(file))
    else:
        monkeypatch.setenv(place, SECRET)
    monkeypatch.setenv("https_proxy", f"http://ada:{SECRET}@proxy:1")
    checks = list(doctor_links.hub())
    assert checks[0].found.startswith("there, ")
    assert {check.name: check.found for check in checks}["proxy"] == "by HTTPS_PROXY"
    assert SECRET not in repr(checks)


def test_an_offline_wish_is_told_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {check.name: check for check in doctor_links.hub()}
    assert checks["offline"].state == "warn" and "HF_HUB_OFFLINE" in checks["offline"].found
    assert "was not asked" in next(doctor_links.hub_reach()).found


def test_the_hub_is_asked_without_the_token(server: OllamaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (check,) = doctor_links.hub_reach()
    assert check.state == "warn" and "127.0.0.1 does not answer" in check.found
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    (check,) = doctor_links.hub_reach()
    assert check == ok("127.0.0.1 answers")


def test_runs_that_are_going_are_named() -> None:
    import fcntl

    assert next(runs_doctor.going()).state == "ok"
    lock = paths.runs_dir() / "2026-01-01-0000-mine/lock"
    lock.parent.mkdir()
    held = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    (check,) = runs_doctor.going()
    os.close(held)
    assert check == warn("2026-01-01-0000-mine is going", check.fix)
    assert next(runs_doctor.going()).state == "ok"


def test_the_states_are_those_of_the_helpers() -> None:
    assert [make("x", "y").state for make in (warn, fail)] == ["warn", "fail"]
