"""Questions to a model in Ollama: several at a time, answers in order, and an end that is heard at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.values import Message, Row
from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.material import Rows
from ollama_tune.core.evaluate.ollama_side import MOST, USUAL, ask, at_once, tasks_for
from ollama_tune.core.export.ollama import OllamaClient
from tests.core.test_export_ollama import push_and_create
from tests.core.train_parts import wait_for
from tests.ollama_double import OllamaDouble
from tests.ollama_engine import WordEngine
from tests.ollama_files import write_gguf

COUNT = 12
ROWS = Rows(
    tuple(Row((Message("user", f"Question {n}?"), Message("assistant", "yes")), n + 1) for n in range(COUNT)),
    COUNT,
    "rows.jsonl",
)
TASKS = tasks_for(ROWS, {"answers"}, 8).tasks


class Answers:
    """Answers with the question's own number; later questions are answered sooner."""

    def __init__(self) -> None:
        self.asked = self.now = self.most = 0
        self.together = 1
        """So many must be on their way at a time before any is answered."""
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def __call__(self, _gguf: Path, body: dict[str, Any]) -> tuple[str, str]:
        number = int(body["messages"][-1]["content"].split()[1].rstrip("?"))
        with self._lock:
            self.asked += 1
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.wait(300)
        wait_for(lambda: self.most >= self.together)
        time.sleep(0.02 * (COUNT - number) / COUNT)
        with self._lock:
            self.now -= 1
        return f"answer {number}", "stop" if number % 2 else "length"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    found = Answers()
    monkeypatch.delenv("OLLAMA_NUM_PARALLEL", raising=False)
    with OllamaDouble(engine=WordEngine(), answer=found) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with OllamaClient(server.url) as client:
            push_and_create(client, write_gguf(tmp_path / "model.gguf", 10_000), "birds")
        yield found
        found.gate.set()


@pytest.mark.parametrize(("said", "count"), [(None, USUAL), ("2", 2), ("1", 1)])
def test_a_few_questions_are_on_their_way_and_the_answers_keep_their_order(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, said: str | None, count: int
) -> None:
    if said is not None:
        monkeypatch.setenv("OLLAMA_NUM_PARALLEL", said)
    answers.together = count
    found = list(ask("birds", ROWS, TASKS))
    assert [(entry["row"], entry["text"]) for entry in found] == [(n, f"answer {n}") for n in range(COUNT)]
    assert [entry["end"] for entry in found] == ["length", "stop"] * (COUNT // 2)
    assert answers.asked == COUNT and answers.most == count


def test_how_many_are_asked_at_once_is_what_the_box_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for said, count in (("0", 1), ("900", MOST), ("many", USUAL), ("", USUAL)):
        monkeypatch.setenv("OLLAMA_NUM_PARALLEL", said)
        assert at_once() == count


def test_when_nobody_takes_the_answers_any_more_none_is_asked_and_none_waited_for(answers: Answers) -> None:
    taking = ask("birds", ROWS, TASKS)
    assert next(taking)["row"] == 0
    answers.gate.clear()
    taking.close()  # type: ignore[attr-defined]
    assert not answers.gate.is_set(), "what is on its way takes as long as the gate is shut"
    answers.gate.set()
    wait_for(lambda: not any(each.name.startswith("ThreadPool") for each in threading.enumerate()))
    assert answers.asked <= USUAL + 1


def test_an_interrupt_while_waiting_ends_it_at_once(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_self: Future[Any]) -> Any:
        wait_for(lambda: answers.asked)
        raise KeyboardInterrupt

    answers.gate.clear()
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(ask("birds", ROWS, TASKS))
    assert answers.asked <= USUAL


def test_an_error_of_one_question_is_told_once_and_ends_the_rest(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TuneError, match="the same command again"):
        list(ask("absent", ROWS, TASKS))
    assert answers.asked == 0
