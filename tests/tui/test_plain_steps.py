"""The plain wizard from the machine to the review, on a fixed box, with answers that are piped in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ollama_tune.core.machine.values import Machine
from ollama_tune.core.plan import prepare
from ollama_tune.core.plan.settings import load
from ollama_tune.core.runs.folder import list_runs
from ollama_tune.tui.fields import FIELDS, FIRST, MORE
from ollama_tune.tui.plan_cli import plan
from ollama_tune.tui.state import load_answers
from tests.tui.conftest import Corner, cpu_machine, gpu_machine, make_base
from tests.tui.plain_talk import ESCAPE, converse

ENTER = ""
NASTY = "[/foo] [bold]x\x1b[2J\x1b]52;c;aGk=\x07 \u202eabc\u202c\r[red"


def test_enter_alone_leads_to_a_review_of_a_plan_that_fits(corner: Corner) -> None:
    """Rule 4: six times Enter, and the seventh would start it."""
    corner.answers().save()
    status, text = converse(*[ENTER] * 5, "q")
    assert status == 0
    for number, title in enumerate(("This machine", "Model", "Data", "Settings", "Review"), start=1):
        assert f"Step {number} of 9: {title}." in text
    assert "OK: tiny can be tuned." in text and "OK: 40 rows" in text and "OK: It fits" in text
    assert f"\n  ollama-tune run ~/{Path(os.environ['OLLAMA_TUNE_HOME']).name}/state/run.yaml" in text
    assert "Your answers are kept." in text
    assert not list_runs(), "nothing is started before the review is agreed to"
    assert load_answers().step == 5


def test_three_rows_are_read_out_with_what_is_learned(corner: Corner) -> None:
    corner.answers(3).save()
    _, text = converse(ENTER, "2", "q")
    assert (
        "Row 1, line 1:\n  Question: What is the colour of bird 0?\n  Answer, learned: Bird 0 is blue.\n"
        in text
    )
    exact = text[text.index("Data is good [go on]: 2") :]
    assert "  read: " in exact and "  learned: Bird 1 is blue." in exact


def test_every_recommended_value_has_its_reason_beside_it(corner: Corner) -> None:
    corner.answers(4).save()
    _, text = converse("more", "q")
    fields = [line for line in text.splitlines() if line[:1].isdigit()]
    assert len(fields) == len(FIRST + MORE)
    assert all("Why: " in line for line in fields)


def test_a_changed_value_says_what_is_recommended_and_r_restores_it(corner: Corner) -> None:
    corner.answers(4).save()
    _, text = converse("1", "0", "1.5", "2 0.001", "r 1", ENTER, "b", "q")
    assert "Error: This must be a number above 0" in text
    assert "1. Epochs, passes over all rows: 1.5. Changed. Recommended: 13. Why: " in text
    assert "2. Learning rate, size of a step: 0.001. Changed." in text
    restored = text[text.index("r 1\n") :]
    assert restored.startswith("r 1\n1. Epochs, passes over all rows: 13. Why: ")
    assert load_answers().changed == {"training.learning_rate": 0.001}


def test_a_word_can_be_chosen_by_its_number_or_by_itself(corner: Corner) -> None:
    corner.answers(4).save()
    dora = [*FIELDS].index("training.dora") + 1
    converse("7", "2", "6 4 bit (nf4)", f"{dora} yes", "q")
    changed = load_answers().changed
    assert changed["export.type"] == "f16" and changed["training.quantization"] == "nf4"
    assert changed["training.dora"] is True


def test_help_of_a_field_is_that_of_the_screens(corner: Corner) -> None:
    corner.answers(4).save()
    _, text = converse("2", "?", "b", "q")
    assert "How far the adapter moves at each step." in text


def test_a_folder_or_a_number_or_a_wrong_name_of_a_model(corner: Corner) -> None:
    _, text = converse(ENTER, "999", str(corner.home / "absent"), "1", "b", "~/tiny", "q")
    assert "Error: Type a number from 1 to" in text
    assert "absent" in text[text.index("absent\n") + 7 :], "the error names the folder"
    assert "OK: demo-model can be tuned." in text and "OK: tiny can be tuned." in text
    assert load_answers().model == str(corner.model)


def test_models_too_large_for_the_box_are_read_out_on_demand(corner: Corner) -> None:
    _, text = converse(ENTER, "all", "q")
    first, rest = text.split("Model [1, Bundled demo model]: all")
    assert "more are too much for this machine; all reads them out." in first
    assert "Llama-3.3-70B" not in first and "Llama-3.3-70B" in rest


def test_a_base_model_is_offered_a_chat_form(corner: Corner) -> None:
    make_base(corner.model)
    corner.answers(2).save()
    _, text = converse(ENTER, "no", ENTER, ENTER, "q")
    assert "Warning: This is a base model" in text and "Then choose another model" in text
    assert text.count("Take the form plain roles [yes]: ") == 2
    assert load_answers().template == "plain roles"


def test_what_a_file_leaves_open_is_asked_and_columns_can_be_said(corner: Corner) -> None:
    rows = corner.home / "table.csv"
    rows.write_text("xa,xb,xc\n" + "".join(f"{n},what is {n},it is number {n}\n" for n in range(30)))
    corner.answers(3).save()
    _, text = converse("~/table.csv", "3", "1", "2", "1", "1", "2", "2", ENTER, *[ENTER] * 2, "q")
    assert "Columns: question = xb, answer = xc." in text
    assert "Which column is the question, and which the answer?\n1. " in text
    assert "Column 1 of 3, xa. It holds: 0; 1" in text
    assert "Error: Say which column is the answer" in text
    assert "OK: 30 rows" in text and "Answer, learned: it is number 0" in text
    assert load_answers().changed["data.columns"] == {"question": "xb", "answer": "xc"}


def test_problems_are_numbered_explained_and_switched(corner: Corner) -> None:
    lines = corner.rows.read_text().splitlines()
    corner.rows.write_text("\n".join([*lines, lines[0], lines[0], "{broken"]) + "\n")
    corner.answers(3).save()
    _, text = converse(ENTER, "?1", "x99", "x2", "x1", "q")
    assert "Problem 1: " in text and "left out." in text and "What to do." in text
    assert "Error: Press Enter, or type a letter" in text
    assert "Error: There is no choice about this problem." in text
    assert "OK: 40 rows of 43" in text and "OK: 42 rows of 43" in text, "the rows are counted anew"
    assert load_answers().changed["data.include"] == ["duplicate"]


def test_hostile_rows_and_names_are_shown_harmlessly(corner: Corner) -> None:
    turn = {"role": "user", "content": NASTY}
    row = {"messages": [turn, {"role": "assistant", "content": NASTY}]}
    corner.rows.write_text((json.dumps(row) + "\n") * 1 + corner.rows.read_text())
    evil = corner.home / "m\x1b[2J\u202eevil"
    corner.model.rename(evil)
    corner.answers(1, model=str(evil)).save()
    status, text = converse(*[ENTER] * 3, "1", ENTER, ENTER, "q")
    assert status == 0 and "Step 5 of 9" in text
    assert ESCAPE not in text and "\x07" not in text and "\r" not in text and "\u202e" not in text
    assert "␛[2J" in text


def test_a_plan_that_does_not_fit_is_started_only_by_typing_the_word_twice(corner: Corner) -> None:
    corner.answers(5).save()

    def small() -> Machine:
        return cpu_machine(64 << 20)

    status, text = converse(ENTER, "yes", ENTER, "start", "no", "q", probe=small)
    assert status == 0
    assert "Warning: It does not fit" in text and "This plan does not fit." in text
    assert "out-of-memory" in text
    assert not list_runs()


def test_an_offer_is_taken_by_its_number(corner: Corner) -> None:
    changed = {"training.batch_size": 4096, "training.gradient_checkpointing": "none"}
    corner.answers(5, changed=changed).save()
    _, text = converse("1", "q", probe=lambda: cpu_machine(560 << 20))
    assert "Warning: It does not fit" in text and "Plans that would fit:\n1. " in text
    assert "OK: It fits" in text[text.index("Start the run: 1") :]


def test_a_gpu_box_is_described_and_ollama_can_be_unloaded(corner: Corner) -> None:
    _, text = converse("r", "x", "q", probe=gpu_machine)
    assert "Graphics card: Example RTX 24 GB, 20.0 GiB free of 24.0 GiB, driver 560.35" in text
    assert "u lets Ollama unload its models" in text and "In use: " in text
    assert "Error: Press Enter" in text


def test_the_answers_are_the_screens_answers(corner: Corner) -> None:
    """Rule 15: a person may change between lines and screens at any step."""
    corner.answers(4, changed={"training.rank": 4}).save()
    _, text = converse("1 2", ENTER, "q")
    assert "You were at step 4, Settings. Model: " in text
    assert load_answers() == corner.answers(5, changed={"training.rank": 4, "training.epochs": 2.0})


def test_run_yaml_is_written_beside_the_person(corner: Corner) -> None:
    corner.answers(5).save()
    converse("w", "w", "q")
    assert load(corner.home / "run.yaml") == load(corner.home / "run-2.yaml")


def test_flags_give_the_same_run_yaml_without_questions(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 14: what the wizard can do the command can do, and without a terminal it asks nothing."""
    corner.answers(5, changed={"training.epochs": 2.0, "export.name": "birds"}).save()
    converse("w", "q")
    monkeypatch.setattr(prepare, "probe_machine", cpu_machine)
    flags = [
        "--model",
        str(corner.model),
        "--data",
        "rows.jsonl",
        "--name",
        "birds",
        "--output",
        "flags.yaml",
    ]
    done = CliRunner().invoke(plan, [*flags, "--set", "training.epochs=2", "--no-simulation"])
    assert done.exit_code == 0, done.output
    assert load(corner.home / "flags.yaml") == load(corner.home / "run.yaml")


def test_a_name_that_ollama_refuses_is_told_before_anything_is_planned() -> None:
    done = CliRunner().invoke(plan, ["--name", "two words"])
    assert done.exit_code == 1 and "may not contain a space" in str(done.exception)


def test_plain_needs_no_textual_and_says_nothing_but_words(tmp_path: Path) -> None:
    """In a process of its own: what is imported, and every byte of what is said, in a C locale."""
    script = (
        "import sys\n"
        "from ollama_tune.tui.plain.wizard import run_plain\n"
        "status = run_plain(warm=False)\n"
        "heavy = {'textual', 'torch', 'transformers', 'rich'} & set(sys.modules)\n"
        "sys.stderr.write(' '.join(heavy))\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=b"\n" * 5,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "TERM": "dumb"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == b"rich" or done.stderr == b""
    text = done.stdout.decode("ascii")
    assert all(letter == "\n" or letter.isprintable() for letter in text)
    assert "Step 5 of 9: Review." in text
    assert text.rstrip().splitlines()[-2] == "Error: The input ended before this was answered: Start the run."
