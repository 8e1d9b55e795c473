"""The plain wizard around a run: watching, leaving, going on, trying, exporting, and every way to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from ollama_tune.core.machine.values import Machine
from ollama_tune.core.runs import control
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui import follow
from ollama_tune.tui.plain.training import in_sentence
from ollama_tune.tui.state import WizardState, load_answers
from tests.tui.conftest import Corner, cpu_machine
from tests.tui.plain_talk import ESCAPE, INTERRUPT, converse
from tests.tui.run_logs import CHECKS, NASTY, Log, alive, make_run

ENTER = ""
SETUP = ["r", "x", ENTER, "all", ENTER, ENTER, "c", "9", "2", ENTER, "yes", ENTER, "x", "b", "1", ENTER]
SETUP += ["7", "2", "1", "0", "2", "more", "r 1", ENTER, "w"]
"""Answers that lead to every question before a run, some of them wrong."""


def at(step: int, folder: RunFolder) -> None:
    WizardState(step=step, run=folder.name).save()


@pytest.fixture
def exported(trained: tuple[RunFolder, Log]) -> RunFolder:
    folder, log = trained
    log.exported()
    folder.export.mkdir()
    proof = {
        "verdict": "warn",
        "checks": CHECKS,
        "file": "kitchen-q8_0.gguf",
        "sha256": "0123456789abcdef" * 4,
    }
    proof |= {"bytes": 5 << 20, "type": "q8_0", "ollama_name": "kitchen"}
    (folder.export / "verification.json").write_text(json.dumps(proof))
    return folder


# Every way to end


@pytest.mark.parametrize("count", range(len(SETUP) + 1))
def test_the_end_of_the_input_and_ctrl_c_at_every_question_of_the_setup(corner: Corner, count: int) -> None:
    corner.answers().save()
    status, text = converse(*SETUP[:count])
    assert status == 2
    last = text.rstrip().splitlines()[-2]
    assert last.startswith("Error: The input ended before this was answered: ")
    question = last.removeprefix("Error: The input ended before this was answered: ").rstrip(".")
    step = load_answers().step
    corner.answers().save()
    status, text = converse(*SETUP[:count], INTERRUPT)
    assert status == 130
    assert text.rstrip().splitlines()[-2].startswith(question), "the same question, left by Ctrl+C"
    assert text.rstrip().splitlines()[-1].startswith("Your answers are kept.")
    assert load_answers().step == step


@pytest.mark.parametrize("step", [6, 7, 8, 9])
def test_after_a_run_too(exported: RunFolder, step: int) -> None:
    questions = {6: "Training is done", 7: "Question", 8: "Export", 9: "Done"}
    for typed, person, status in (([], False, 2), ([], True, 0), (["q"], False, 0), ([INTERRUPT], True, 130)):
        at(step, exported)
        ended, text = converse(*typed, person=person)
        assert ended == status
        assert questions[step] in text.splitlines()[-3] or questions[step] in text
        assert load_answers().step == step


def test_the_runs_made_so_far_are_listed(trained: tuple[RunFolder, Log]) -> None:
    _, text = converse("l", "q", probe=cpu_machine)
    assert f"{trained[0].name}: finished, step 200 of 200, model bundled." in text


# Watching


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Whoever follows a run presses Ctrl+C at the first wait."""
    pressed: list[int] = []

    def sleep(_seconds: float) -> None:
        pressed.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "time", SimpleNamespace(sleep=sleep, monotonic=follow.time.monotonic))
    yield pressed
    assert pressed


def test_a_run_that_is_going_is_offered_and_ctrl_c_leaves_it_alone(ctrl_c: list[int]) -> None:
    folder = make_run()
    Log(folder).training(30)
    with alive(folder):
        status, text = converse(ENTER, ENTER)
        assert status == 0
        assert f"A run is going: {folder.name}, step 30 of 200." in text
        assert "Step 30 of 200 so far." in text
        assert text.count(f"{folder.name} goes on without this window.") == 2
        assert f"ollama-tune attach {folder.name} shows it again." in text
        assert not folder.stop_path.exists() and not folder.pause_path.exists()


def test_a_run_that_is_going_may_be_left_for_the_wizard() -> None:
    folder = make_run()
    Log(folder).training(3)
    with alive(folder):
        status, text = converse("no", "q", probe=cpu_machine)
    assert status == 0 and "Step 1 of 9: This machine." in text


def test_stop_asks_and_says_no_by_default_and_pause_waits(ctrl_c: list[int]) -> None:
    folder = make_run()
    Log(folder).training(30)
    with alive(folder):
        converse(ENTER, "s", ENTER, ENTER)
        assert not folder.stop_path.exists()
        converse(ENTER, "x", "w", "p", ENTER)
        assert folder.pause_path.exists()
        control.continue_run(folder)
        _, text = converse(ENTER, "s", "yes", ENTER)
        assert folder.stop_path.exists()
    assert "It then finishes its step, writes a checkpoint and ends." in text
    assert len(ctrl_c) == 6


def test_the_end_of_the_input_never_stops_a_run(ctrl_c: list[int]) -> None:
    folder = make_run()
    Log(folder).training(30)
    with alive(folder):
        status, text = converse(ENTER)
        assert status == 2 and "What now." in text
        assert f"ollama-tune attach {folder.name} shows it again." in text
        assert not folder.stop_path.exists()


def test_a_run_is_followed_in_sentences_with_what_its_losses_mean(capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_run()
    log = Log(folder).training(120)
    log("warning", what=f"Odd {NASTY}", fix="Look.")
    log("error", what="The disk is full.", fix="Free some space.")
    at(6, folder)
    with alive(folder):
        pass
    status, text = converse("b", "q", probe=cpu_machine)
    assert status == 0
    assert f"Warning: The run {folder.name} ended at step 120 of 200: failed.\nThe disk is full." in text
    assert "Enter goes on from the last checkpoint" in text and ESCAPE not in text


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("  step    12 of 100   loss 1.2   900 tokens/s", "step 12 of 100, loss 1.2, 900 tokens/s"),
        ("  ✓ tokens      86 of 86      all the same", "✓ tokens, 86 of 86, all the same"),
        ("  reading_data: 32 of 500 rows", "reading data: 32 of 500 rows"),
    ],
)
def test_columns_become_sentences(line: str, sentence: str) -> None:
    assert in_sentence(line) == sentence


# After the training


def test_a_trained_run_says_what_it_learned(trained: tuple[RunFolder, Log]) -> None:
    at(6, trained[0])
    _, text = converse("q")
    assert "OK: The run " in text and " is trained: 200 steps; loss on the held-out rows 0.4100." in text
    assert "Of 48 held-out questions, 2.0% were answered exactly right before, 95.8% after." in text


def test_how_to_ask_is_checked_and_kept_with_the_run(trained: tuple[RunFolder, Log]) -> None:
    at(7, trained[0])
    _, text = converse("o", "Be short.", "9", "0.5", *[ENTER] * 4, "o", "b", "q")
    assert "Error: This must be a number from 0 to 5" in text
    assert text.count("System prompt: Be short.. Words: temperature 0.5, seed 7.") == 1
    kept = json.loads((trained[0].path / "try-it.json").read_text())
    assert (kept["system"], kept["temperature"]) == ("Be short.", 0.5)


def test_the_export_asks_name_and_type_and_checks_them(trained: tuple[RunFolder, Log]) -> None:
    at(8, trained[0])
    answers = ["two words", "mine", "4", "8", "more", "no", "Be kind.", "no", "merged, x", "merged", "q"]
    _, text = converse(*answers, probe=cpu_machine)
    assert "Error: The model in an Ollama name may not contain a space." in text
    assert "1. f16, 5.6 MiB, not known if it runs here; lost: nothing to speak of. Recommended: " in text or (
        "1. f16, 5.6 MiB, runs here; lost: nothing to speak of. Recommended: " in text
    )
    assert "4. Another type: all are read out." in text and "9. q4_0" in text
    assert "Warning: No Ollama answers at" in text
    assert "Error: Type some of merged, adapter, adapter_gguf, or none." in text


@pytest.mark.usefixtures("ollama")
def test_a_model_that_ollama_has_is_replaced_only_after_a_yes(trained: tuple[RunFolder, Log]) -> None:
    at(8, trained[0])
    _, text = converse("taken", ENTER, ENTER, ENTER, "free", "q", probe=cpu_machine)
    assert "Ollama has a model of this name already." in text
    assert "Replace taken in Ollama [no]: \nName in Ollama [taken]: free\n" in text
    assert not trained[0].export_request_path.exists()


def test_an_export_that_is_done_is_said_and_its_proof_read_out(exported: RunFolder) -> None:
    at(8, exported)
    _, text = converse("p", ENTER, "q")
    assert "OK: This run is exported already.\nVerdict: proved with remarks" in text
    assert "Warning: answers, 7 of 8 equal, Greedy answers" in text
    assert "OK: kitchen is in Ollama. Talk to it with:\n  ollama run kitchen" in text
    assert "before, not right: I am happy to help you with that." in text
    assert "after, right: T2 B1" in text
    assert f"Everything is in the folder {exported.path}" in text


def test_a_new_run_begins_at_the_first_step(exported: RunFolder) -> None:
    def machine() -> Machine:
        return cpu_machine()

    at(9, exported)
    _, text = converse("x", "n", "q", probe=machine)
    assert "Error: Press Enter, or type n." in text and "Step 1 of 9" in text
    assert load_answers() == WizardState()


def test_an_error_of_a_step_is_told_and_the_step_can_be_tried_again(
    trained: tuple[RunFolder, Log], corner: Corner
) -> None:
    corner.answers(4, data=str(corner.home / "gone.jsonl")).save()
    status, text = converse(ENTER, "b", "b", "q")
    assert status == 0
    assert text.count("gone.jsonl") >= 2 and "Try again [yes]" in text
    assert "Step 3 of 9" in text and "Step 2 of 9" in text


def test_ctrl_c_ends_slow_work_and_not_the_conversation(corner: Corner) -> None:
    looks: list[int] = []

    def machine() -> Machine:
        looks.append(1)
        if len(looks) == 1:
            raise KeyboardInterrupt
        return cpu_machine()

    status, text = converse(ENTER, ENTER, "q", probe=machine)
    assert status == 0
    assert "\n\nError: That was stopped. It can be tried again; q quits.\nTry again [yes]: " in text
    assert "Step 2 of 9" in text
