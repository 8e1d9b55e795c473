"""CPU, memory and disk, with control groups of both versions laid out as the kernel does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ollama_tune.core.machine.host import pids_are_ours, read_disk, read_host, read_memory
from ollama_tune.core.machine.probe import probe_machine

MIB = 1 << 20
V1_UNLIMITED = 9223372036854771712


def write(root: Path, files: dict[str, str | int]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_this_machine_is_described() -> None:
    host = read_host()
    assert host.cpu
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert 0 < host.ram_available <= host.ram_total <= psutil.virtual_memory().total
    assert host.system.startswith(os.uname().sysname)


def test_the_cpu_name_comes_from_the_kernel(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast   CPU 9000\x1b[2J @ 5GHz"})
    assert read_host(tmp_path).cpu == "Fast CPU 9000␛[2J @ 5GHz"


@pytest.mark.parametrize(
    ("flags", "unit"),
    [("fpu avx512f avx512_bf16 amx_bf16", "AMX"), ("avx512_bf16 avx2", "AVX-512"), ("avx2 amx_int8", "")],
)
def test_units_for_bfloat16_come_from_the_kernel(flags: str, unit: str, tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": f"processor\t: 0\nmodel name\t: CPU\nflags\t\t: {flags}\n"})
    assert read_host(tmp_path).bfloat16 == unit


def test_units_of_another_system_are_not_known(tmp_path: Path) -> None:
    assert read_host(tmp_path).bfloat16 == ""


def namespace(root: Path, name: str) -> None:
    link = root / "proc/self/ns/pid"
    link.parent.mkdir(parents=True)
    link.symlink_to(name)


def test_a_container_is_told_by_its_process_ids_or_its_mark(tmp_path: Path) -> None:
    plain, boxed, marked = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    namespace(plain, "pid:[4026531836]")
    namespace(boxed, "pid:[4026532301]")
    namespace(marked, "pid:[4026531836]")
    write(marked, {"run/.containerenv": ""})
    assert [read_host(root).inside for root in (plain, boxed, marked)] == ["", "container", "container"]
    assert [pids_are_ours(root) for root in (plain, boxed, marked)] == [True, False, True]


def test_linux_in_windows_is_told_by_its_kernel(tmp_path: Path) -> None:
    namespace(tmp_path, "pid:[4026532301]")
    write(tmp_path, {"proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2"})
    assert read_host(tmp_path).inside == "WSL2"


def test_a_version_2_memory_limit_is_respected_and_file_cache_counts_as_free(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": 512 * MIB,
            "sys/fs/cgroup/memory.current": 300 * MIB,
            "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {100 * MIB}\nactive_file 7",
        },
    )
    assert read_memory(tmp_path) == (312 * MIB, 512 * MIB)


def test_the_tightest_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job.scope",
            "sys/fs/cgroup/memory.max": "max",
            "sys/fs/cgroup/user.slice/memory.max": 256 * MIB,
            "sys/fs/cgroup/user.slice/memory.current": 6 * MIB,
            "sys/fs/cgroup/user.slice/job.scope/memory.max": 400 * MIB,
        },
    )
    assert read_memory(tmp_path) == (250 * MIB, 256 * MIB)


def test_a_version_1_limit_is_found_when_the_path_is_the_hosts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 128 * MIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 64 * MIB,
            "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {32 * MIB}",
        },
    )
    assert read_memory(tmp_path) == (96 * MIB, 128 * MIB)


def test_a_version_1_group_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_UNLIMITED,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 64 * MIB,
        },
    )
    assert read_memory(tmp_path)[1] == psutil.virtual_memory().total


def test_a_limit_that_is_used_up_leaves_nothing(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": 100 * MIB,
            "sys/fs/cgroup/memory.current": 120 * MIB,
        },
    )
    assert read_memory(tmp_path)[0] == 0


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"},
        {
            "proc/self/cgroup": "1:cpu,cpuacct:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": 100000,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
        },
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"},
    ],
)
def test_a_cpu_quota_limits_the_cores_rounded_down_but_never_to_none(
    files: dict[str, str | int], tmp_path: Path
) -> None:
    assert read_host(write(tmp_path, files)).cores == 1


@pytest.mark.parametrize("text", ["max 100000", "-1 100000", "", "100000 0", "nonsense"])
def test_no_quota_leaves_all_cores(text: str, tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": text})
    assert read_host(tmp_path).cores == len(os.sched_getaffinity(0))


def test_affinity_limits_the_cores() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from ollama_tune.core.machine.host import read_host; print(read_host().cores)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "1"


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_its_parents(tmp_path: Path) -> None:
    wanted = tmp_path / "not" / "yet" / "made"
    disk = read_disk(wanted)
    assert disk.path == str(wanted)
    assert disk.total == read_disk(tmp_path).total > 0
    assert not wanted.exists()


def test_the_disk_below_a_file_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_disk(tmp_path / "file" / "x").total == read_disk(tmp_path).total


def test_the_whole_box_is_probed_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from ollama_tune.core.machine.probe import probe_machine\n"
        "machine = probe_machine(); assert machine.host.cores and machine.disk.total\n"
        "print([name for name in ('torch', 'transformers', 'textual') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
    assert probe_machine(tmp_path / "x").disk.path == str(tmp_path / "x")
