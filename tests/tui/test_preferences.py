"""Pairs of answers on the screen: both answers told apart, and figures of preferences beside the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message, Row
from ollama_tune.core.evaluate.compare import compare
from ollama_tune.core.plan.settings import Settings
from ollama_tune.tui import review_words
from ollama_tune.tui.data_cli import data
from ollama_tune.tui.data_tasks import render_row
from ollama_tune.tui.follow import Follower
from ollama_tune.tui.plain.training import rate_lines
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.training_lines import _losses
from ollama_tune.tui.widgets.rendered import REJECTED, marked
from tests.tiny import build_tokenizer

from .run_logs import Log, make_run

PAIR = {"prompt": "Is it old?", "chosen": "Yes, old.", "rejected": "No, blue."}
STEP = {"epoch": 0.1, "learning_rate": 1e-4, "gradient_norm": 1.0, "useful_tokens": 90, "seconds": 0.5}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tokenizer(folder)
    return folder


def run(*arguments: str) -> str:
    done = CliRunner().invoke(data, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_row_shows_both_answers_told_apart(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIR) + "\n")
    assert "  assistant  Yes, old.\n  rejected   No, blue." in run(str(path))
    said = run(str(path), "--model", str(tokenizer), "--row", "1")
    better, worse = said.split("tokens with the worse answer; what is to become less likely")
    assert "⟦Yes, old." in better and "⟦No, blue." in worse and "⟦" not in worse.partition("⟦No")[0][20:]
    row = json.loads(run(str(path), "--model", str(tokenizer), "--row", "1", "--json"))["row"]
    assert row["messages"][-1]["content"] == "Yes, old." and row["rejected"][-1]["content"] == "No, blue."


def test_the_preview_marks_the_worse_answer_otherwise(tokenizer: Path) -> None:
    asked = Message("user", PAIR["prompt"])
    sides = [(asked, Message("assistant", PAIR[name])) for name in ("chosen", "rejected")]
    shown = render_row(ChatFormat.from_folder(tokenizer), Row(sides[0], 1, rejected=sides[1]))
    assert shown.rejected is not None and len(shown.examples) == 1
    styled = [shown.rejected.text[s.start : s.end] for s in marked(shown.rejected, learned=REJECTED).spans]
    assert "".join(styled).startswith("No, blue.")
    assert render_row(ChatFormat.from_folder(tokenizer), Row(sides[0], 1)).rejected is None


def pairs_log() -> Any:
    folder = make_run()
    log = Log(folder)
    log("start", stage="train", device="cpu", pid=7, path="fast", path_reason="Known.")
    for step, (accuracy, margin) in enumerate([(0.5, 0.0), (0.75, 0.25)], 1):
        figures = {"reward_accuracy": accuracy, "reward_margin": margin}
        log("step", step=step, total_steps=2, loss=0.69, **STEP, **figures)
    log("evaluation", step=0, loss=0.6931, exact_match=0.0, rows=4, model="base")
    log("evaluation", step=2, loss=0.5, exact_match=0.0, rows=4, model="tuned", **figures)
    return folder


def test_preferences_stand_beside_the_loss_and_no_answer_is_called_wrong() -> None:
    folder, lines = pairs_log(), list[str]()
    follower = Follower(lines.append)
    for event in folder.events():
        follower.show(event)
    tuned = [line.partition(": ")[2] for line in lines if "tuned model" in line]
    assert tuned == ["loss 0.5000, the better answer is preferred in 75% of pairs (margin 0.25)"]
    assert not any("exactly right" in line for line in lines)
    view = RunView()
    view.fold(folder.events())
    assert view.pairs and view.before is None and view.after is None
    assert "preferred 75% of pairs (margin 0.25)" in _losses(view).plain
    assert compare(folder.events()).preferred == 0.75
    assert rate_lines(folder) == [
        "Of the held-out pairs 75.0% have a better answer that gained more than the worse one."
    ]


def test_the_review_says_what_is_learned_and_counts_pairs() -> None:
    training = Settings().with_values({"training.objective": "dpo", "training.beta": 0.3}).training
    assert "8 pairs a step" in review_words._schedule(training)
    assert "DPO, beta 0.3" in review_words._preferences(training)
