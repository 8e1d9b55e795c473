"""The product as a user meets it: the built wheel in a real terminal, key by key."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ollama_tune.core.runs.events import read_events
from tests.terminal import Terminal
from tests.tiny import build_model

ROWS = 48
PATIENCE = 400


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def environment(installed: dict[str, str], home: Path) -> dict[str, str]:
    kept = {name: installed[name] for name in ("PATH", "PYTHONPATH")}
    return kept | {
        "HOME": str(home.parent),
        "OLLAMA_TUNE_HOME": str(home),
        "OLLAMA_HOST": "127.0.0.1:9",
        "HF_HOME": str(home.parent / "hf"),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def material(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny model folder and a data file of short chats."""
    model = build_model(tmp_path / "tiny-chat")
    data = tmp_path / "chats.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is bird {n} blue?"},
                {"role": "assistant", "content": "yes"},
            ]
        }
        for n in range(ROWS)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, data


def run_folder(home: Path) -> Path:
    (folder,) = (home / "data" / "runs").glob("*/run.yaml")
    return folder.parent


def answer_setup(terminal: Terminal, model: Path, data: Path) -> None:
    """From the first frame to the Review step: two answers typed, an Enter reads each; else Enter alone."""
    terminal.wait("This machine")
    terminal.wait("CPU")
    terminal.press("enter")
    terminal.wait("Step 2 of 9")
    terminal.wait("can be tuned")
    terminal.press("tab", "ctrl+u", str(model))
    terminal.press("enter")
    terminal.wait("tiny-chat can be tuned")
    terminal.press("enter")
    terminal.wait("Step 3 of 9")
    terminal.wait("500 rows")
    terminal.press("ctrl+u", str(data), "enter")
    terminal.wait(f"✓ {ROWS} rows")
    terminal.press("enter")
    terminal.wait("Step 4 of 9")
    terminal.wait("fits")
    terminal.press("enter")
    terminal.wait("Step 5 of 9")
    terminal.wait("ollama-tune run")


def start_training(terminal: Terminal) -> None:
    terminal.press("enter")
    terminal.wait("Step 6 of 9")


def test_from_the_first_frame_to_a_proved_export(
    environment: dict[str, str], home: Path, material: tuple[Path, Path]
) -> None:
    """Three answers are typed: which model, which data, what to call it; all else is Enter."""
    with Terminal(["ollama-tune"], environment, columns=100, lines=30) as terminal:
        answer_setup(terminal, *material)
        start_training(terminal)
        folder = run_folder(home)
        terminal.wait(lambda _: (folder / "adapter" / "adapter_model.safetensors").exists(), PATIENCE)
        terminal.wait("✓ Finished")
        terminal.press("enter")
        terminal.wait("Step 7 of 9")
        terminal.wait("Ask both models")
        terminal.press("f5")
        terminal.wait("Is bird")
        terminal.press("enter")
        terminal.wait(lambda screen: len(re.findall(r"✓|✗", screen.split("Step 7")[1])) >= 8)
        terminal.press("enter")
        terminal.wait("Step 8 of 9")
        terminal.wait("chats")
        terminal.press("ctrl+u", "birds")
        terminal.wait("ollama run birds")
        terminal.press("enter")
        terminal.wait(lambda _: (folder / "export" / "verification.json").exists(), PATIENCE)
        terminal.wait("Proved")
        terminal.press("enter")
        terminal.wait("Step 9 of 9")
        terminal.wait("ollama create birds")
        terminal.press("q")
        assert terminal.finish() == 0
    verification = json.loads((folder / "export" / "verification.json").read_text())
    assert verification["verdict"] in ("pass", "warn")
    (gguf,) = (folder / "export").glob("*.gguf")
    assert gguf.read_bytes()[:4] == b"GGUF"
    assert "shards" not in (folder / "stdout.log").read_text(), "bars of libraries are no news"
    assert [event.n for event in read_events(folder / "events.jsonl")] == list(
        range(len(read_events(folder / "events.jsonl")))
    )


def test_a_closed_window_leaves_the_run_going_and_attach_shows_it(
    environment: dict[str, str], home: Path, material: tuple[Path, Path]
) -> None:
    model, data = material
    file = home.parent / "run.yaml"
    plan = ["ollama-tune", "plan", "--model", str(model), "--data", str(data), "--output", str(file)]
    changes = ["--set", "training.epochs=400", "--set", "training.batch_size=1", "--set", "evaluation.rows=0"]
    subprocess.run([*plan, *changes], env=environment, check=True, capture_output=True)
    subprocess.run(
        ["ollama-tune", "run", str(file), "--detach"], env=environment, check=True, capture_output=True
    )
    folder = run_folder(home)
    pids = []
    for ending in (signal.SIGHUP, signal.SIGKILL, signal.SIGTERM):
        with Terminal(["ollama-tune", "attach"], environment) as terminal:
            terminal.wait(re.compile(r"step \d").search)  # type: ignore[arg-type]
            pids.append(json.loads((folder / "worker.json").read_text())["pid"])
            terminal.process.send_signal(ending)
            terminal.finish()
            if ending != signal.SIGKILL:
                assert b"\x1b[?1049l" in terminal.raw[-4000:], "the normal screen is back"
        time.sleep(0.2)
    assert len(set(pids)) == 1
    os.kill(pids[0], 0)
    with Terminal(["ollama-tune"], environment) as terminal:
        terminal.wait("Step 6 of 9")
        terminal.press("d")
        terminal.finish()
        assert b"ollama-tune attach" in terminal.raw[-2000:]
    stopped = subprocess.run(
        ["ollama-tune", "stop"], env=environment, check=True, capture_output=True, text=True
    )
    assert "stopped" in stopped.stdout
    assert (folder / "checkpoints").is_dir()


def test_a_killed_wizard_reopens_where_it_was(
    environment: dict[str, str], home: Path, material: tuple[Path, Path]
) -> None:
    with Terminal(["ollama-tune"], environment) as terminal:
        answer_setup(terminal, *material)
        terminal.pump(1.0)
        terminal.process.send_signal(signal.SIGKILL)
        terminal.finish()
    with Terminal(["ollama-tune"], environment) as terminal:
        terminal.wait("Step 5 of 9")
        terminal.wait("tiny-chat")
        assert "chats.jsonl" in terminal.text
        assert not (home / "data" / "runs").exists() or not list((home / "data" / "runs").iterdir())
