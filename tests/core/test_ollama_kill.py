"""A process killed on its way to Ollama leaves nothing under the final name, and a second try works."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ollama_tune.core.export.ollama import OllamaClient
from ollama_tune.core.export.publish import Recipe, publish
from tests.ollama_double import Faults, OllamaDouble
from tests.ollama_engine import WordEngine
from tests.ollama_files import digest_of, write_gguf

CHILD = """
import sys, time
from pathlib import Path
from ollama_tune.core.export.ollama import OllamaClient
from ollama_tune.core.export.publish import Recipe, publish

url, file, digest = sys.argv[1:]
with OllamaClient(url) as client:
    print("ready", flush=True)
    sys.stdin.read(1)
    def check(name):
        client.chat(name, [{"role": "user", "content": "x"}])
        time.sleep(0.3)
    publish(client, "mine", Path(file), digest, Recipe({"num_ctx": 512}), check=check)
"""
PIECE_SECONDS, SILENCE = 0.02, 0.3


@pytest.fixture
def server() -> Iterator[OllamaDouble]:
    faults = Faults(slow_upload=PIECE_SECONDS, create_silence=SILENCE)
    with OllamaDouble(engine=WordEngine(), faults=faults) as server:
        yield server


def start(server: OllamaDouble, file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, server.url, str(file), digest_of(file)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def go(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.write(b"x")
    child.stdin.flush()


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


def sizes(folder: Path) -> list[int]:
    """Bytes of the uploads under way; one may be finished and gone in between."""
    found = []
    for path in folder.glob("tmp*"):
        with contextlib.suppress(FileNotFoundError):
            found.append(path.stat().st_size)
    return found


def wait_for(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_killed_hand_over_leaves_the_old_model_and_a_second_try_succeeds(
    server: OllamaDouble, tmp_path: Path
) -> None:
    old, new = (write_gguf(tmp_path / f"{size}.gguf", size) for size in (50_000, 1_500_000))
    with OllamaClient(server.url) as client:
        publish(client, "mine", old, digest_of(old), Recipe())
        kept, blob = server.state.models["mine:latest"], server.state.blob(digest_of(new))
        halfway = list[Callable[[], object]](
            (
                lambda: server.asked("HEAD", f"/api/blobs/{digest_of(new)}"),
                lambda: blob.exists() or any(size > 600_000 for size in sizes(server.state.folder)),
                lambda: any(
                    "mine:latest-unf" in str(r.body) for r in server.asked("POST", "/api/create")[1:]
                ),
                lambda: server.asked("POST", "/api/chat"),
            )
        )
        for condition in halfway:
            child = start(server, new)
            try:
                go(child)
                wait_for(condition)
            finally:
                end(child)
            time.sleep(SILENCE + 0.1)
            assert server.state.models["mine:latest"] is kept
            assert not blob.exists() or blob.read_bytes() == new.read_bytes()
        publish(client, "mine", new, digest_of(new), Recipe())
    assert {name: model.digest for name, model in server.state.models.items()} == {
        "mine:latest": digest_of(new)
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_leaves_either_no_model_or_the_whole_one(
    seed: int, server: OllamaDouble, tmp_path: Path
) -> None:
    new = write_gguf(tmp_path / "new.gguf", 500_000)
    child = start(server, new)
    go(child)
    time.sleep(random.Random(seed).uniform(0.0, 500_000 / 65536 * PIECE_SECONDS + SILENCE + 0.5))
    end(child)
    time.sleep(SILENCE)
    named = server.state.models.get("mine:latest")
    assert named is None or server.state.blob(named.digest).read_bytes() == new.read_bytes()
    with OllamaClient(server.url) as client:
        publish(client, "mine", new, digest_of(new), Recipe({"num_ctx": 512}))
        assert client.has_blob(digest_of(new))
    assert list(server.state.models) == ["mine:latest"]
    assert server.state.models["mine:latest"].digest == digest_of(new)
