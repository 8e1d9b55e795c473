"""`ollama-tune probe`: the machine in lines and as JSON, and Ollama's models let go."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pynvml
import pytest
from click.testing import CliRunner, Result

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.machine import gpus, processes, unload
from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.tui.probe_cli import probe
from tests.nvml_double import GIB, Device, Nvml, error, process
from tests.ollama_double import Faults, Model, OllamaDouble

TORCH = "2.13.0+cu130"


@pytest.fixture(autouse=True)
def _plain_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "other_gpus", lambda torch: ())
    monkeypatch.setattr(gpus, "has_nvidia_card", lambda: False)
    monkeypatch.setattr(gpus, "is_wsl", lambda: False)
    monkeypatch.setattr(gpus, "pids_are_ours", lambda: False)
    monkeypatch.setattr(unload, "POLL", 0.02)
    monkeypatch.setattr(unload, "CALM", 0.1)


def box(monkeypatch: pytest.MonkeyPatch, *devices: Device, torch: str = TORCH) -> None:
    """These GPUs, for every look at them."""
    failure = None if devices else error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    for room in ("probe", "unload"):
        monkeypatch.setattr(
            f"ollama_tune.core.machine.{room}.read_gpus",
            lambda: read_gpus(Nvml(*devices, init=failure), torch),
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaDouble]:
    with OllamaDouble(faults=Faults(unload_seconds=0.1)) as double:
        digest = f"sha256:{1:064d}"
        double.state.blob(digest).write_bytes(b"GGUF" + bytes(100 * 2**20))
        double.state.models["llama3:8b"] = Model(digest, {}, {})
        double.state.loaded.add("llama3:8b")
        monkeypatch.setenv("OLLAMA_HOST", double.url)
        yield double


@pytest.fixture(autouse=True)
def _quiet_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on the box of the test."""
    monkeypatch.setattr(processes, "ram_holders", lambda: ["big (process 7) holds 2.0 GiB of RAM."])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(probe, arguments)


def found(*arguments: str) -> dict[str, Any]:
    result = run("--json", *arguments)
    assert result.exception is None, result.output
    answer: dict[str, Any] = json.loads(result.output)
    return answer


def test_a_box_with_a_gpu_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, Device(compute=[process(4242, 3 * GIB)], display=1))
    result = run()
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[:4] == [
        "GPU 0    20.0 GiB free of 24.0 GiB, NVIDIA GeForce RTX 4090",
        "         drives a display, compute capability 8.9",
        "         3 % busy, 41 °C, 22 W now, at most 450 W",
        "driver   570.86.10, CUDA 13.0",
    ]
    assert "trains   on the GPU" in lines
    held = next(line for line in lines if line.startswith("held"))
    assert held.endswith("(process 4242) holds 3.0 GiB of the GPU.")
    assert any(re.match(r"base     \S+/\S+: trains in ", line) for line in lines)
    assert not set("✓✗!") & set(result.output)


def test_a_box_without_a_gpu_says_why_and_trains_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch)
    lines = run().output.splitlines()
    assert lines[0] == (
        "GPU      There is no NVIDIA driver here, so no GPU can be used; training works on the CPU."
    )
    assert "trains   on the CPU" in lines
    assert "held     big (process 7) holds 2.0 GiB of RAM." in lines


def test_the_json_has_the_keys_that_the_help_names(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, Device(compute=[process(4242, None)], capability=error(pynvml.NVML_ERROR_NOT_SUPPORTED)))
    answer = found()
    text = run("--help").output
    assert [key for key in answer if not re.search(rf"\b{key}\b", text)] == []
    (gpu,) = answer["gpus"]
    assert [key for key in gpu if not re.search(rf"\b{key}\b", text)] == []
    assert (answer["device"], answer["driver"], answer["cuda"]) == ("cuda", "570.86.10", "13.0")
    assert (gpu["total_bytes"], gpu["free_bytes"]) == (24 * GIB, 20 * GIB)
    assert (gpu["compute_capability"], gpu["power_limit_watts"]) == (None, 450.0)
    assert gpu["processes"] == [{"pid": 4242, "name": None, "bytes": None}]
    assert set(answer["base"]) == {"id", "reason"}
    assert answer["unloaded"] is None


def test_a_pytorch_that_cannot_use_the_gpu_is_said_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, Device(), torch="2.13.0+cpu")
    answer = found()
    assert (answer["device"], len(answer["gpus"])) == ("cpu", 1)
    assert "install its CUDA build" in answer["reason"]
    assert "install its CUDA build" in run().output


def test_loaded_models_are_shown_and_stay_without_being_asked(
    server: OllamaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    box(monkeypatch, Device())
    answer = found()
    size = 100 * 2**20 + 4
    assert answer["ollama"]["loaded"] == [{"name": "llama3:8b", "bytes": size, "gpu_bytes": size // 2}]
    assert answer["holders"] == ["Ollama keeps llama3:8b loaded: 50.0 MiB of GPU memory and 50.0 MiB of RAM."]
    assert server.state.running() == {"llama3:8b"}


def test_unload_lets_them_go_first(server: OllamaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, Device())
    answer = found("--unload")
    assert answer["unloaded"] == {"gone": ["llama3:8b"], "left": [], "gained_bytes": 0}
    assert (answer["ollama"]["loaded"], answer["holders"]) == ([], [])
    assert "unloaded nothing: Ollama held no model" in run("--unload").output


def test_a_model_that_stays_makes_the_command_fail(
    server: OllamaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    box(monkeypatch)
    server.state.faults.unload_seconds = 60
    monkeypatch.setattr(unload, "PATIENCE", 0.1)
    result = run("--unload")
    assert result.exit_code == 1
    assert "unloaded nothing; Ollama still holds llama3:8b" in result.output


def test_unload_without_a_server_or_with_anothers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch)
    absent = run("--unload").exception
    assert isinstance(absent, TuneError)
    assert absent.exit_code == 1
    monkeypatch.setenv("OLLAMA_HOST", "192.0.2.1")
    remote = run("--unload").exception
    assert isinstance(remote, UsageError)
    assert remote.exit_code == 2


def test_text_from_outside_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, Device(name="evil\x1b[2J"))
    assert "\x1b" not in run().output


def test_the_help_loads_neither_textual_nor_a_heavy_library() -> None:
    code = (
        "import sys\nfrom ollama_tune.tui.probe_cli import probe\n"
        "probe(['--help'], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'textual', 'pydantic', 'httpx'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"


def test_a_look_loads_neither_torch_nor_textual() -> None:
    code = (
        "import sys\nfrom ollama_tune.tui.probe_cli import probe\nprobe(['--json'], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'textual', 'peft'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"
