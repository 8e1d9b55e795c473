"""A run in plain lines."""

from __future__ import annotations

import pytest

from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.follow import Follower

from .run_logs import NASTY, Clock, Log, make_run


def lines_of(folder: RunFolder) -> list[str]:
    lines: list[str] = []
    follower = Follower(lines.append)
    for event in folder.events():
        follower.show(event)
    return lines


def test_the_path_its_reason_and_the_time_to_the_first_step_are_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_run()
    log = Log(folder, Clock(monkeypatch))
    log.start().phase("Loading the model.", seconds=1.3).step(1, 200, 3.0).step(2, 200, 2.9)
    lines = lines_of(folder)
    assert lines.count("fast path: This project knows the family.") == 1
    assert [line for line in lines if "first step" in line] == ["  first step done 1.8 s after the start"]


def test_a_path_that_is_known_only_after_the_download_is_told_then() -> None:
    folder = make_run()
    log = Log(folder)
    log("start", stage="train", device="cpu", pid=7, path=None, path_reason=None)
    log("data", path="general", path_reason="No code of our own for gpt2.")
    assert lines_of(folder)[1:] == ["general path: No code of our own for gpt2."]


def test_an_evaluation_says_how_long_nothing_was_better_and_which_is_the_best() -> None:
    folder = make_run()
    log = Log(folder)
    told = {"exact_match": None, "rows": 48, "model": "tuned", "patience": 3}
    log("evaluation", step=10, loss=1.5, best_step=10, best_loss=1.5, without_better=0, **told)
    log("evaluation", step=20, loss=1.6, best_step=10, best_loss=1.5, without_better=1, **told)
    log.evaluation(0, 3.1, 0.02, "base")
    assert lines_of(folder) == [
        "  held-out rows, tuned model: loss 1.5000, the best so far",
        "  held-out rows, tuned model: loss 1.6000, 1 of 3 evaluations no better",
        "  held-out rows, base model: loss 3.1000, 2.0% of 48 held-out answers exactly right",
    ]


def test_answers_in_between_stand_beside_what_was_wanted_and_do_nothing() -> None:
    folder = make_run()
    log = Log(folder)
    log.samples(step=2)
    log("sample", step=20, prompt="p", reference=NASTY, base=None, tuned=NASTY, cut=True)
    lines = lines_of(folder)
    assert lines[0] == "  answer at step 2: T2   (wanted: T2 B1)"
    assert "…   (wanted: [/foo] [bold]x␛[2J" in lines[3]
    assert not any(c in lines[3] for c in "\x1b\x07\u202e")


def test_waiting_going_on_and_steps_that_were_not_finite_are_told() -> None:
    folder = make_run()
    log = Log(folder)
    log("paused", step=30, reason="disk", what="The disk is full.", fix="Free some space.")
    log("continued", step=30, seconds=2.0)
    log("warning", what="The loss of step 31 is not a number.", fix="The step is left out.")
    assert lines_of(folder) == [
        "! The disk is full. Free some space.",
        "Going on at step 30.",
        "! The loss of step 31 is not a number. The step is left out.",
    ]


def test_the_end_names_the_best_step_and_its_loss_and_the_share_of_the_card_stands_with_the_speed() -> None:
    folder = make_run()
    log = Log(folder)
    figures = {"epoch": 1.0, "learning_rate": 1e-4, "gradient_norm": 1.0, "supervised_tokens": 50}
    figures |= {"useful_tokens": 100, "seconds": 0.1, "cpu_seconds": 0.1, "mfu": 0.414}
    log("step", step=120, total_steps=120, loss=0.5, **figures)
    log("done", stage="train", steps=120, best_step=100, best_loss=0.41)
    first, last = lines_of(folder)
    assert "1,000 tokens/s   MFU 41%   0 s left" in first
    assert last == (
        "Training ended after 120 steps; the best state is that of step 100, held-out loss 0.4100."
    )


def test_the_coach_is_told_when_its_verdict_turns_and_not_again() -> None:
    folder = make_run()
    log = Log(folder)
    log.training(150)
    lines = lines_of(folder)
    told = [line for line in lines if line.startswith(("✓ ", "· ", "! "))]
    assert len(told) == 1 and told[0].startswith("✓ Falling well")
    assert lines.index(told[0]) == 1 + next(
        n for n, line in enumerate(lines) if line.startswith("  held-out rows, tuned model")
    )


def test_a_follower_that_begins_later_knows_what_was_before() -> None:
    folder = make_run()
    Log(folder).training(150)
    events, lines = folder.events(), []
    seen = next(event.n for event in reversed(events) if event.kind == "evaluation")
    follower = Follower(lines.append, before=events[:seen])
    for event in events[seen:]:
        follower.show(event)
    assert sum(line.startswith("✓ Falling well") for line in lines) == 1
