from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.values import ExportStopped
from tests.core.export_parts import PROMPT, build_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return export_gguf(build_llama(folder / "base"), None, folder / "model.gguf", "f16").path


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "ollama_tune.core.export.llama" in p.cmdline()]


def test_it_answers_and_leaves_no_process(model: Path) -> None:
    with LlamaServer(model, 128) as llama:
        assert len(children()) == 1
        assert llama.tokenize("<|im_start|>user\n") == (1, *llama.tokenize("user\n"))
        assert llama.render([{"role": "user", "content": "x"}]).endswith("<|im_start|>assistant\n")
        answer = llama.complete(PROMPT, 5)
        assert len(answer.ids) == 5 or answer.ended
        top = llama.top(PROMPT, 10, 70)
        assert len(top) == 10
        assert max(top, key=top.__getitem__) == answer.ids[0]
    assert children() == []


def test_nobody_without_the_key_is_answered(model: Path) -> None:
    with LlamaServer(model, 128):
        (connection,) = [c for c in children()[0].net_connections() if c.status == psutil.CONN_LISTEN]
        assert connection.laddr.ip == "127.0.0.1"
        url = f"http://127.0.0.1:{connection.laddr.port}/completion"
        answer = httpx.post(url, json={"prompt": [1], "n_predict": 1}, trust_env=False)
    assert answer.status_code == 401


@pytest.mark.parametrize("damage", ["magic", "cut", "numbers"])
def test_a_file_that_does_not_load_is_told_with_llama_cpps_reason(
    model: Path, tmp_path: Path, damage: str
) -> None:
    data = bytearray(model.read_bytes())
    if damage == "magic":
        data[:4] = b"GGML"
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[-4:] = b"\x00\x00\xc0\x7f"
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with pytest.raises(TuneError, match="cannot load") as caught:
        LlamaServer(path, 128)
    assert "load" in caught.value.details
    assert children() == []


def test_a_server_that_dies_is_an_error_and_not_a_hang(model: Path) -> None:
    with LlamaServer(model, 128) as llama:
        children()[0].kill()
        with pytest.raises(TuneError, match="no usable answer to /tokenize"):
            llama.tokenize("x")


def test_an_answer_that_is_none_is_an_error(model: Path) -> None:
    with LlamaServer(model, 16) as llama, pytest.raises(TuneError, match="no usable answer to /completion"):
        llama.complete(PROMPT * 20, 5)


def test_a_stop_while_it_loads_is_obeyed(model: Path) -> None:
    with pytest.raises(ExportStopped):
        LlamaServer(model, 128, lambda: True)
    assert children() == []


def test_a_stop_during_a_long_answer_is_obeyed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, answered, waited = threading.Event(), threading.Event(), list[bool]()

    def slow(*_: object, **__: object) -> None:
        began.set()
        waited.append(answered.wait(60))

    with (
        pytest.raises(ExportStopped),
        LlamaServer(model, 128, began.is_set) as llama,
    ):
        monkeypatch.setattr(httpx.Client, "post", slow)
        llama.complete(PROMPT, 100)
    assert waited == [] and children() == []
    answered.set()


PARENT = """
import sys, time
from pathlib import Path
from ollama_tune.core.export.llama import LlamaServer
llama = LlamaServer(Path(sys.argv[1]), 128)
print(llama._process.pid, flush=True)
time.sleep(60)
"""


def test_it_ends_when_its_parent_is_killed(model: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(model)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=300)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_only_one_line_reaches_standard_output(model: Path) -> None:
    command = [sys.executable, "-m", "ollama_tune.core.export.llama", str(model), "128"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"key\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["url"].startswith("http://127.0.0.1:")
        child.stdin.close()
        assert child.stdout.read() == b""
    assert child.returncode == 0
