"""The whole wizard with nothing but real parts, from the first screen to a model in Ollama.

A tiny model is trained by a real warm worker, asked in a real process, exported, proved by llama.cpp,
and pushed to a server that speaks Ollama's protocol and answers through llama.cpp from the pushed file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.runs.folder import list_runs
from ollama_tune.tui.app import Start, TuneApp
from ollama_tune.tui.screens.done import DoneScreen
from ollama_tune.tui.screens.export import ExportScreen
from ollama_tune.tui.screens.review import ReviewScreen
from ollama_tune.tui.screens.training import TrainingScreen
from ollama_tune.tui.screens.try_it import TryItScreen
from ollama_tune.tui.state import WizardState
from ollama_tune.tui.widgets.answer import AnswerPane
from tests.ollama_double import OllamaDouble
from tests.tiny import build_model
from tests.tui.conftest import write_rows
from tests.tui.run_logs import until, until_text

CHANGED = {
    "training.rank": 4,
    "training.alpha": 8,
    "training.learning_rate": 5e-3,
    "training.epochs": 2.0,
    "training.batch_size": 8,
    "evaluation.rows": 4,
    "evaluation.max_new_tokens": 12,
}


def llama_answers(chat: ChatFormat) -> Callable[[Path, dict[str, Any]], tuple[str, str]]:
    """What Ollama does with a chat: the file's own template, its own tokens, greedy words."""

    def answer(gguf: Path, body: dict[str, Any]) -> tuple[str, str]:
        with LlamaServer(gguf, 512) as llama:
            ids = llama.tokenize(llama.render(body["messages"]), as_prompt=True)
            found = llama.complete(ids, int(body["options"]["num_predict"]))
        words = [i for i in found.ids if i not in chat.stop_ids]
        return chat.decode(words), "stop" if found.ended else "length"

    return answer


async def test_from_the_first_screen_to_a_model_in_ollama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = build_model(tmp_path / "tiny"), write_rows(tmp_path / "rows.jsonl")
    with OllamaDouble(answer=llama_answers(ChatFormat.from_folder(model))) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        app = TuneApp(Start(WizardState(model=str(model), data=str(rows), changed=CHANGED)))
        async with app.run_test(size=(120, 40)) as pilot:
            await _set_up(app, pilot)
            await _train(app, pilot)
            await _try(app, pilot)
            await _export(app, pilot)
        (name,) = server.state.models
        assert name.endswith("tiny-rows:latest")
    (folder,) = list_runs()
    proof = json.loads((folder.export / "verification.json").read_text())
    verdicts = {check["name"]: check["verdict"] for check in proof["checks"]}
    assert proof["verdict"] in ("pass", "warn") and verdicts["ollama"] in ("pass", "warn")
    assert verdicts["tensors"] == verdicts["tokens"] == verdicts["chat"] == "pass"
    assert [event.n for event in folder.events()] == list(range(len(folder.events())))


async def _set_up(app: TuneApp, pilot: Pilot[Any]) -> None:
    """Enter is all it takes: everything that can be answered is answered."""
    for step, text in enumerate(("Ollama", "can be tuned", "40 rows", "fits", "ollama-tune run"), start=1):
        await until_text(pilot, f"Step {step} of 9", text)
        if not isinstance(app.screen, ReviewScreen):
            await pilot.press("enter")
    await until(pilot, lambda: app._warm is not None)
    await pilot.press("enter")


async def _train(app: TuneApp, pilot: Pilot[Any]) -> None:
    await until_text(pilot, "✓ Finished after", "◆", "tokens/s")
    assert isinstance(app.screen, TrainingScreen)
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(app.screen, TryItScreen))


async def _try(app: TuneApp, pilot: Pilot[Any]) -> None:
    """Ask a held-out question; the process ends when the screen is left, and comes back with it."""
    screen = app.screen
    assert isinstance(screen, TryItScreen)
    await until_text(pilot, "F5 Held-out")
    await pilot.press("f5")
    await until_text(pilot, "What is the colour of bird")
    await pilot.press("enter")
    await until_text(pilot, "Wanted", "is blue.")
    base, tuned = screen.query_one("#base", AnswerPane), screen.query_one("#tuned", AnswerPane)
    await until(pilot, lambda: "wanted" in str(tuned.border_subtitle))
    assert "tokens" in str(base.border_subtitle)
    chat = screen._chat
    assert chat is not None and chat.alive
    await pilot.press("enter")
    await until(pilot, lambda: not chat.alive and isinstance(app.screen, ExportScreen))


async def _export(app: TuneApp, pilot: Pilot[Any]) -> None:
    await until_text(pilot, "tiny-rows", "0.34.4")
    await pilot.press("enter")
    await until_text(pilot, "✓ Exported.", "Proved", "✓ ollama")
    await pilot.press("enter")
    await until_text(pilot, "ollama run tiny-rows")
    assert isinstance(app.screen, DoneScreen)
