"""The light look at the box while a run is on it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pynvml
import pytest

from ollama_tune.core.machine import live
from ollama_tune.core.machine.live import BoxSampler, BoxWatch, GpuSensors, workers
from tests.nvml_double import GIB, Device, Nvml, error


def test_a_look_tells_processor_memory_disk_and_what_the_run_takes(tmp_path: Path) -> None:
    sampler = BoxSampler(tmp_path, os.getpid())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    box = sampler.read()
    assert box.run is not None and 0 < box.run <= box.cores + 0.5
    assert box.cpu is not None and 0 <= box.cpu <= 100
    assert 0 < box.ram_free <= box.ram_total
    assert box.disk_free == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.1)
    assert box.gpus == ()


def test_a_worker_that_is_gone_leaves_a_gap(tmp_path: Path) -> None:
    assert BoxSampler(tmp_path, 2**22 + 1).read().run is None
    assert BoxSampler(tmp_path).read().run is None


def test_what_all_processes_of_a_run_take_is_told(tmp_path: Path) -> None:
    """Of two under one launcher the first sleeps and the second works."""
    shell = ["sh", "-c", "sleep 60 & while :; do :; done & wait"]
    with subprocess.Popen(shell) as launcher:
        try:
            children = psutil.Process(launcher.pid).children
            assert within(lambda: sorted(child.name() for child in children()) == ["sh", "sleep"])
            pids = workers({"pid": 1, "launcher": launcher.pid})
            (idle,) = [pid for pid in pids if psutil.Process(pid).name() == "sleep"]
            sampler, alone = BoxSampler(tmp_path, *pids), BoxSampler(tmp_path, idle)
            (busy,) = [child for child in children() if child.pid != idle]
            before = busy.cpu_times().user
            assert within(lambda: busy.cpu_times().user > before + 0.05)
            assert (sampler.read().run or 0) > 0 == alone.read().run
        finally:
            for child in psutil.Process(launcher.pid).children():
                child.kill()
    assert workers({"pid": 7}) == [7] and workers({}) == []
    assert workers({"pid": 7, "launcher": launcher.pid}) == [7]


def test_gpus_are_opened_once_and_read_again_and_again() -> None:
    card = Device(utilization=97, temperature=71, power=285_000)
    nvml = Nvml(card, Device(uuid="GPU-2", free=2 * GIB))
    sensors = GpuSensors(nvml)
    shutdowns = nvml.shutdowns
    first, second = sensors.read()
    assert (first.utilization, first.temperature, first.power, first.power_limit) == (97, 71, 285.0, 450.0)
    assert (first.free, second.free) == (20 * GIB, 2 * GIB)
    card.utilization, card.free = 12, 5 * GIB
    assert (sensors.read()[0].utilization, sensors.read()[0].free) == (12, 5 * GIB)
    assert nvml.shutdowns == shutdowns, "it stays open between two looks"
    sensors.close()
    assert nvml.shutdowns == shutdowns + 1 and sensors.read() == ()


def test_what_a_card_does_not_tell_is_none_and_a_lost_card_is_no_error() -> None:
    silent = error(pynvml.NVML_ERROR_NOT_SUPPORTED)
    card = Device(utilization=silent, temperature=silent, power=silent, power_limit=silent)
    sensors = GpuSensors(Nvml(card))
    (gpu,) = sensors.read()
    assert (gpu.utilization, gpu.temperature, gpu.power, gpu.power_limit) == (None, None, None, None)
    card.lost = True
    (gpu,) = sensors.read()
    assert (gpu.name, gpu.total) == (card.name, 0)


def test_without_a_driver_there_are_no_gpus() -> None:
    sensors = GpuSensors(Nvml(init=error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)))
    assert sensors.read() == ()
    sensors.close()


def test_a_part_of_a_card_has_its_own_memory_and_the_cards_sensors() -> None:
    part = Device(uuid="MIG-1", name="MIG 1g", free=4 * GIB, total=5 * GIB)
    (gpu,) = GpuSensors(Nvml(Device(mig=1, parts={0: part}, temperature=66))).read()
    assert (gpu.mig, gpu.free, gpu.temperature) == (True, 4 * GIB, 66)


def test_a_watch_looks_by_itself_until_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SECONDS", 0.01)
    watch = BoxWatch(tmp_path, os.getpid())
    assert within(lambda: watch.latest is not None)
    watch.close()
    assert within(lambda: watch.latest is None)


def test_a_watch_that_meets_an_error_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> BoxSampler:
        raise RuntimeError("no such box")

    monkeypatch.setattr(live, "BoxSampler", broken)
    watch = BoxWatch(tmp_path)
    time.sleep(0.02)
    assert watch.latest is None
    watch.close()


def within(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()
