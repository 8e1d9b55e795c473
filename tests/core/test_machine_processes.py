"""Who holds memory, in sentences."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollama_tune.core.machine.processes import holders, process_name, ram_holders
from ollama_tune.core.machine.values import GpuProcess, Machine, OllamaModel, OllamaStatus
from tests.cases import GIB, machine

URL = "http://127.0.0.1:11434"


def box(*processes: GpuProcess, **gpu: Any) -> Machine:
    return machine(gpu=24, processes=processes, **gpu)


def serving(box: Machine, *models: OllamaModel, local: bool = True) -> Machine:
    return replace(box, ollama=OllamaStatus(URL, "0.34.4", "", local, models))


def test_each_program_is_a_sentence_with_its_size() -> None:
    found = holders(
        box(
            GpuProcess(7, "python3", 5 * GIB), GpuProcess(8, "llama-server", GIB), GpuProcess(9, "Xorg", 4096)
        )
    )
    assert found == [
        "python3 (process 7) holds 5.0 GiB of the GPU.",
        "Ollama's llama-server (process 8) holds 1.0 GiB of the GPU.",
    ]


def test_what_the_driver_does_not_tell_is_said_so() -> None:
    (hidden,) = holders(box(GpuProcess(4711, "", None)))
    assert hidden == (
        "A program outside of what can be seen from here (process 4711) holds an unknown part of the GPU."
    )
    (windows,) = holders(box(processes_known=False, free=21 * GIB))
    assert windows == "3.0 GiB of the GPU are taken; the driver does not tell here by which programs."
    assert holders(box(processes_known=False, free=24 * GIB)) == []


def test_several_gpus_are_told_apart_and_shared_memory_is_named() -> None:
    one = box(GpuProcess(7, "python3", GIB)).gpu.gpus[0]
    two = replace(one, index=1, unified=True)
    both = machine()
    both = replace(both, gpu=replace(both.gpu, gpus=(one, two)))
    assert holders(both) == [
        "python3 (process 7) holds 1.0 GiB of GPU 0.",
        "python3 (process 7) holds 1.0 GiB of GPU 1 (the computer's own memory).",
    ]


def test_models_that_ollama_keeps_loaded_are_named_with_both_kinds_of_memory() -> None:
    models = (OllamaModel("llama3:8b", 6 * GIB, 4 * GIB), OllamaModel("all-minilm", GIB, 0))
    assert holders(serving(machine(), *models)) == [
        "Ollama keeps llama3:8b loaded: 4.0 GiB of GPU memory and 2.0 GiB of RAM.",
        "Ollama keeps all-minilm loaded: 1.0 GiB of RAM.",
    ]
    assert holders(serving(machine(), *models, local=False)) == [], "another host's memory is not this box's"


def test_the_programs_that_hold_most_ram_are_named() -> None:
    code = "held = bytearray(300 * 2**20); print(len(held), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        lines = ram_holders(least=250 * 2**20, most=100)
        assert len(ram_holders(least=1, most=2)) == 2
    finally:
        child.communicate(b"\n")
    (line,) = [line for line in lines if f"(process {child.pid})" in line]
    size = re.search(r"holds (\d+\.\d) MiB of RAM\.$", line)
    assert size is not None
    assert 300 <= float(size[1]) < 350
    assert not any(f"process {os.getpid()})" in line for line in ram_holders(least=1, most=10_000))


def test_nothing_held_is_nothing_said() -> None:
    assert holders(machine()) == holders(serving(box())) == []


def test_a_name_is_the_program_without_its_arguments() -> None:
    secret = "token-hf_abc"
    child = subprocess.Popen([sys.executable, "-c", "input()", secret], stdin=subprocess.PIPE)
    try:
        name = process_name(child.pid)
    finally:
        child.communicate(b"\n")
    assert name == Path(sys.executable).name
    assert secret not in name
    assert process_name(child.pid) == ""


def test_control_characters_of_a_name_stay_harmless() -> None:
    (line,) = holders(box(GpuProcess(7, "evil\x1b[2J", GIB)))
    assert "\x1b" not in line
