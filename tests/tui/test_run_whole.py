"""The second half of the wizard with nothing but real parts: a tiny model is trained, asked and exported."""

from __future__ import annotations

from pathlib import Path

from textual.pilot import Pilot

from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.core.runs.launch import start
from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.screens.done import DoneScreen
from ollama_tune.tui.screens.export import ExportScreen
from ollama_tune.tui.screens.training import TrainingScreen
from ollama_tune.tui.screens.try_it import TryItScreen
from ollama_tune.tui.widgets.answer import AnswerPane

from .conftest import write_rows
from .run_logs import open_app, screen_text, until, until_text


def tiny_run(model: Path, rows: Path) -> RunFolder:
    settings = Settings().with_values(
        {
            "model.source": str(model),
            "data.path": str(rows),
            "data.validation_split": 0.2,
            "training.rank": 4,
            "training.alpha": 8,
            "training.learning_rate": 5e-3,
            "training.epochs": 2.0,
            "training.batch_size": 8,
            "training.gradient_accumulation_steps": 1,
            "evaluation.rows": 4,
            "evaluation.max_new_tokens": 12,
        }
    )
    return create_run(settings, "tiny")


async def test_watch_try_export_and_done(tiny_model: Path, tmp_path: Path) -> None:
    folder = tiny_run(tiny_model, write_rows(tmp_path / "rows.jsonl"))
    start(folder, "train")
    app = open_app(folder)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_text(pilot, "✓ Finished after 8 steps", seconds=120)
        assert isinstance(app.screen, TrainingScreen)
        assert "◆" in screen_text(app) and "tokens/s" in screen_text(app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, TryItScreen))
        await _try(app, pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ExportScreen))
        await until_text(pilot, "tiny-rows", "No Ollama answers")
        await pilot.press("enter")
        await until_text(pilot, "✓ Exported.", seconds=120)
        assert "Proved" in screen_text(app) or "ot proved" in screen_text(app)
        await pilot.press("enter")
        await until_text(
            pilot, "ollama run tiny-rows", "ollama create tiny-rows", "export/tiny-rows-q8_0.gguf"
        )
        assert isinstance(app.screen, DoneScreen)
        await pilot.press("c")
        await until_text(pilot, "clipboard; also in")
        assert (folder.export / "commands.txt").read_text().startswith("ollama create tiny-rows")
    assert list(folder.export.glob("*.gguf"))


async def _try(app: TuneApp, pilot: Pilot[int]) -> None:
    """Ask a held-out question; the process ends when the screen is left, and comes back with it."""
    screen = app.screen
    assert isinstance(screen, TryItScreen)
    await until_text(pilot, "F5 A held-out question")
    await pilot.press("f5")
    await until_text(pilot, "What is the colour of bird")
    await pilot.press("enter")
    await until_text(pilot, "Wanted", "is blue.")
    base, tuned = screen.query_one("#base", AnswerPane), screen.query_one("#tuned", AnswerPane)
    await until(pilot, lambda: "wanted" in str(tuned.border_subtitle), 120)
    assert "tokens" in str(base.border_subtitle)
    chat = screen._chat
    assert chat is not None and chat.alive
    await pilot.press("enter")
    await until(pilot, lambda: not chat.alive)
    await pilot.press("escape")
    await until(pilot, lambda: app.screen is screen and screen._chat is not None)
