"""`ask` and `chat`: the models of a run on the command line, through the real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune.core.runs.folder import RunFolder, create_run
from tests import told as outputs
from tests.loud import publish_loud_adapter
from tests.terminal import Terminal

from .conftest import write_rows
from .run_logs import Log, make_run

TUNE = [sys.executable, "-m", "ollama_tune.tui"]


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose adapter changes what the model says, without the time a training takes."""
    place = tmp_path_factory.mktemp("ask")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(place))
        values = {
            "model.source": str(tiny_model),
            "data.path": str(write_rows(place / "rows.jsonl")),
            "evaluation.max_new_tokens": 6,
        }
        folder = create_run(make_run().settings().with_values(values), "asked")
    publish_loud_adapter(folder, tiny_model)
    Log(folder).trained()
    return folder


def home(run: RunFolder) -> dict[str, str]:
    return {**os.environ, "OLLAMA_TUNE_HOME": str(run.path.parents[2]), "OMP_NUM_THREADS": "1"}


def tune(run: RunFolder, *arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TUNE, *arguments],
        capture_output=True,
        text=True,
        input=typed or "",
        env=home(run),
        timeout=300,
        check=False,
    )


def test_a_question_from_standard_input_is_answered_by_both_models_as_one_object(run: RunFolder) -> None:
    done = tune(run, "ask", run.name, "-", "--base", "--json", "--system", "Be brief.", typed="sky?\n")
    told = outputs.told("ask", done.stdout)
    assert done.returncode == 0 and (told["question"], told["system"]) == ("sky?", "Be brief.")
    assert list(told["answers"]) == ["base", "tuned"]
    assert told["answers"]["base"]["text"] != told["answers"]["tuned"]["text"]
    plain = tune(run, "ask", run.name, "sky?", "--system", "Be brief.")
    assert plain.stdout == told["answers"]["tuned"]["text"] + "\n" and plain.returncode == 0
    assert plain.stderr == "! The answer was cut off.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ask", "asked", "hi", "--temperature", "hot"), "--temperature: This must be a number from 0 to 5"),
        (("ask", "asked", "hi", "--max-tokens", "0"), "--max-tokens: This must be a whole number from 1"),
        (("ask", "asked", "  "), "There is no question."),
        (("ask", "nowhere", "hi"), "There is no run called"),
        (("chat", "asked"), "A chat needs a terminal. Without one use `ollama-tune ask"),
    ],
)
def test_what_cannot_be_asked_is_told_with_status_2(
    run: RunFolder, arguments: tuple[str, ...], words: str
) -> None:
    named = [run.name if argument == "asked" else argument for argument in arguments]
    done = tune(run, *named)
    assert done.returncode == 2 and words in done.stderr and not done.stdout
    if "hot" in arguments:
        told = json.loads(tune(run, *named, "--json").stdout)
        assert told["outcome"] == "error" and words in told["what"]


def test_a_chat_of_programs_answers_each_line_and_remembers_the_one_before(run: RunFolder) -> None:
    done = tune(run, "chat", run.name, "--json", typed="sky?\nand?\n\n/new\nsky?\n")
    first, second, again = outputs.told("chat", done.stdout)
    assert done.returncode == 0 and [turn["question"] for turn in (first, second, again)] == [
        "sky?",
        "and?",
        "sky?",
    ]
    tuned = [turn["answers"]["tuned"] for turn in (first, second, again)]
    assert tuned[0]["text"] == tuned[2]["text"] and tuned[0]["prompt"] == tuned[2]["prompt"]
    assert tuned[1]["prompt"] > tuned[0]["prompt"], "the second question follows the first one's answer"


def test_a_chat_goes_on_until_it_is_left_and_ctrl_c_ends_an_answer(run: RunFolder) -> None:
    command = [*TUNE, "chat", run.name, "--base", "--max-tokens", "400"]
    with Terminal(command, home(run), columns=200, lines=100) as terminal:
        terminal.wait("/bye or Ctrl+D ends")
        for text, count in (("sky?", 1), ("and?", 2)):
            terminal.press(*text, "enter", "ctrl+c", pause=0.05)
            terminal.wait(lambda _, count=count: terminal.raw.count(b"Tuned model:") == count)  # type: ignore[misc]
            terminal.wait(lambda shown: shown.rstrip().endswith("›"))
        assert b"! The answer was" in terminal.raw
        terminal.press(*"/new", "enter", pause=0)
        terminal.wait("A new conversation.")
        terminal.press(*"/bye", "enter", pause=0)
        assert terminal.finish() == 0
