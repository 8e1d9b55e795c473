"""The Try-it conversation through its real child process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_tune.core.evaluate.asking import Asking, Sampling
from ollama_tune.core.evaluate.chat import message_of
from ollama_tune.core.evaluate.choose import chooser
from ollama_tune.core.evaluate.client import ChatProcess
from ollama_tune.core.evaluate.conversation import Conversation, HeldOut, Result
from ollama_tune.core.evaluate.loading import load_engine
from ollama_tune.core.runs.chat import run_chat
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.launch import NICE
from ollama_tune.core.train.general import make_general
from tests.core.train_parts import make_run, wait_for, write_rows
from tests.loud import publish_loud_adapter
from tests.tiny import build_model

QUESTION = {"role": "user", "content": "What is the colour of the sky?"}


CONTEXT = 20_000  # so many that no answer ends before it is stopped


def reading(model: Path, tokens: int) -> Path:
    """The model with another context length."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": tokens}))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that has an adapter, without the time a training takes."""
    place = tmp_path_factory.mktemp("chat")
    model_folder = reading(build_model(place / "model"), CONTEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(place / "home"))
        run = make_run(model_folder, write_rows(place / "rows.jsonl"))
    return publish_loud_adapter(run, model_folder)


@pytest.fixture(scope="module")
def chat(folder: RunFolder) -> Iterator[ChatProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        process = ChatProcess(folder)
    yield process
    process.close()
    assert not process.alive


def both(*turns: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return {"base": list(turns), "tuned": list(turns)}


def upto(tokens: int, **sampling: Any) -> Asking:
    return Asking(Sampling(**sampling), tokens)


def collect(chat: ChatProcess, enough: int, seconds: float = 60.0) -> list[dict[str, Any]]:
    """Messages until `enough` answers have ended or failed."""
    found: list[dict[str, Any]] = []

    def ended() -> bool:
        found.extend(chat.poll())
        return sum("end" in message or "error" in message for message in found) >= enough

    wait_for(ended, seconds)
    return found


def text(messages: list[dict[str, Any]], model: str) -> str:
    return "".join(m["text"] for m in messages if m.get("model") == model and "text" in m)


def test_base_and_tuned_model_answer_one_after_the_other(chat: ChatProcess) -> None:
    number = chat.ask(both(QUESTION), upto(12))
    messages = collect(chat, 2)
    assert messages[0] == {"ready": True}
    prompts = [message for message in messages if "prompt" in message]
    assert [message["dropped"] for message in prompts] == [0, 0]
    answers = messages[1:]
    assert {message["id"] for message in answers} == {number}
    models = [message["model"] for message in answers]
    assert models == sorted(models) and set(models) == {"base", "tuned"}
    ends = [message for message in answers if "end" in message]
    assert [end["end"] for end in ends] == ["length", "length"]
    assert all(end["tokens"] == 12 and end["seconds"] > 0 for end in ends)
    assert text(answers, "base") != text(answers, "tuned")
    assert chat.alive and os.getpriority(os.PRIO_PROCESS, chat._process.pid) >= NICE


def test_the_fast_engine_is_taken_where_it_can_be_and_both_give_the_same_answers(folder: RunFolder) -> None:
    settings = folder.settings()
    base, adapter = Path(settings.model.source), folder.adapter
    fast = load_engine(base, adapter, settings.training)
    general = load_engine(base, adapter, settings.training.model_copy(update={"path": "general"}))
    assert type(fast).__name__ == "FastEngine" and type(general).__name__ == "GeneralEngine"
    asked = {"prompts": [[1, 40, 41, 42, 2]], "max_new_tokens": 8, "tuned": True, "stop_ids": [2]}
    assert fast.decode(**asked) == general.decode(**asked)
    sampling = Sampling(0.9, top_p=0.95, top_k=50, seed=4)
    drawn = [engine.decode(**asked, choose=chooser(sampling)) for engine in (fast, general)]
    assert drawn[0] == drawn[1] != fast.decode(**asked)


def test_an_adapter_that_the_fast_path_does_not_compute_is_asked_by_peft(
    folder: RunFolder, tmp_path: Path
) -> None:
    settings = folder.settings()
    base = Path(settings.model.source)
    training = settings.training.model_copy(update={"dora": True, "path": "auto"})
    make_general(base, training, str(base), "").write_adapter(tmp_path)
    assert type(load_engine(base, tmp_path, training)).__name__ == "GeneralEngine"


def test_one_seed_gives_one_answer(chat: ChatProcess) -> None:
    answers = []
    for seed in (1, 1, 2):
        chat.ask(both(QUESTION), upto(12, temperature=1.0, seed=seed))
        answers.append(text(collect(chat, 2), "tuned"))
    assert answers[0] == answers[1] != answers[2]


def test_cancelling_ends_both_answers_and_the_next_question_is_answered(chat: ChatProcess) -> None:
    chat.ask(both(QUESTION), upto(8000))
    waiting: list[dict[str, Any]] = []

    def begun() -> bool:
        waiting.extend(chat.poll())
        return bool(waiting)

    wait_for(begun)
    chat.cancel()
    ends = [message for message in waiting + collect(chat, 2) if "end" in message]
    assert {end["end"] for end in ends} == {"cancelled"}
    chat.ask(both(QUESTION), upto(3))
    assert [m["end"] for m in collect(chat, 2) if "end" in m] == ["length", "length"]


def test_a_conversation_the_template_refuses_is_told_and_the_process_goes_on(chat: ChatProcess) -> None:
    number = chat.ask({"base": []}, upto(-5))
    (problem,) = collect(chat, 1)
    assert problem["id"] == number
    assert problem["error"]["what"].endswith(".") and problem["error"]["fix"].endswith(".")
    chat.ask(both(QUESTION), upto(3))
    assert len(collect(chat, 2)) >= 4


def test_a_conversation_longer_than_the_context_is_refused(chat: ChatProcess) -> None:
    long = {"role": "user", "content": "sky " * 50_000}
    for _ in range(5):
        chat.ask(both(long), upto(1))
    chat.poll()
    problems = collect(chat, 5)
    assert all("the model reads at most 20,000" in problem["error"]["what"] for problem in problems)


def test_a_question_cancelled_before_its_turn_is_not_computed(chat: ChatProcess) -> None:
    chat.ask(both(QUESTION), upto(8000))
    late = chat.ask(both(QUESTION), upto(8000))
    chat.cancel()
    ends = [message for message in collect(chat, 4) if "end" in message]
    assert [end["end"] for end in ends] == ["cancelled"] * 4
    assert [end["tokens"] for end in ends if end["id"] == late] == [0, 0]


def test_several_questions_are_answered_at_once_as_each_is_alone(chat: ChatProcess) -> None:
    texts = ("What is the colour of the sky?", "Yes?", "Birds fly over the old harbour, no?")
    questions = [HeldOut(({"role": "user", "content": text},), text, "blue") for text in texts]
    alone: list[str] = []
    for question in questions:
        chat.ask({"tuned": list(question.messages)}, upto(12))
        alone.append(text(collect(chat, 1), "tuned"))
    results = [Result(question) for question in questions]
    number = chat.ask_several(questions, upto(12))
    told = collect(chat, 8)
    assert {message["id"] for message in told} == {number}
    for message in told:
        if "row" in message:
            results[message["row"]].take(message)
    assert [result.answers["tuned"].text for result in results] == alone
    assert [result.answers["base"].text for result in results] != alone
    assert all(result.judged("tuned") for result in results)
    ends = [message for message in told if "row" not in message]
    assert [(end["model"], end["tokens"]) for end in ends] == [("base", 36), ("tuned", 36)]


def test_several_questions_end_with_what_there_is(chat: ChatProcess) -> None:
    question = HeldOut((QUESTION,), "q", "r")
    long = HeldOut(({"role": "user", "content": "sky " * 50_000},), "long", "r")
    chat.ask_several([question, long], upto(8000))
    told: list[dict[str, Any]] = []

    def begun() -> bool:
        told.extend(chat.poll())
        return bool(told)

    wait_for(begun)
    chat.cancel()
    told += collect(chat, 4 - len(told))
    rows = {(message["row"], message["model"]): message["end"] for message in told if "row" in message}
    assert rows == {(1, "base"): "long", (0, "base"): "cancelled"}
    result = Result(question)
    result.take(next(message for message in told if message.get("end") == "cancelled"))
    assert result.judged("base") is None


def test_each_model_is_told_its_own_answers(chat: ChatProcess, folder: RunFolder) -> None:
    """The second turn gets exactly the prompt of a conversation with the answers of the first."""
    talk = Conversation()
    for question in ("What is the colour of the sky?", "And of birds?"):
        talk.ask(question)
        chat.ask(**talk.request(), asking=upto(6))
        for message in collect(chat, 2):
            talk.turns[-1].answers[message["model"]].take(message)
    first = talk.turns[0].answers
    assert first["base"].text != first["tuned"].text
    form = run_chat(folder, Path(folder.settings().model.source))
    for model, answer in talk.turns[1].answers.items():
        turns = [message_of(turn) for turn in talk.messages(model)]
        assert turns[1].content == first[model].text
        assert answer.prompt == len(form.prompt_ids(turns)) and answer.dropped == 0


def test_a_run_without_an_adapter_is_told_in_a_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path, write_rows(tmp_path / "rows.jsonl"))
    chat = ChatProcess(run)
    messages = collect(chat, 1)
    assert "no tuned model yet" in messages[0]["error"]["what"]
    wait_for(lambda: not chat.alive)
    time.sleep(0.1)
    assert chat.poll() == []
    chat.close()


def test_a_killed_process_is_told_once(folder: RunFolder) -> None:
    chat = ChatProcess(folder)
    os.kill(chat._process.pid, signal.SIGKILL)
    (message,) = collect(chat, 1)
    assert "has ended" in message["error"]["what"] and "chat.log" in message["error"]["fix"]
    assert not chat.alive
    chat.close()


INTERFACE = """
import sys, time
from pathlib import Path
from ollama_tune.core.evaluate.chat import message_of
from ollama_tune.core.evaluate.client import ChatProcess
from ollama_tune.core.runs.chat import run_chat
from ollama_tune.core.runs.folder import RunFolder
chat = ChatProcess(RunFolder(Path(sys.argv[1])))
print(chat._process.pid, "torch" in sys.modules, flush=True)
time.sleep(60)
"""


def test_it_ends_with_the_interface_that_started_it_and_that_needs_no_torch(folder: RunFolder) -> None:
    command = [sys.executable, "-c", INTERFACE, str(folder.path)]
    interface = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert interface.stdout is not None
    pid, torch_loaded = interface.stdout.readline().split()
    interface.stdout.close()
    assert torch_loaded == b"False"
    child = psutil.Process(int(pid))
    interface.kill()
    interface.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
