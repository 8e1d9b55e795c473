"""The hand-over to Ollama: the model in the strict double, run by a real llama.cpp, must prove itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.export import order, preflight
from ollama_tune.core.export.values import ExportStopped
from tests.core.export_asked import check
from tests.core.handover_parts import Made, Serve, ended, verdicts
from tests.ollama_double import Faults
from tests.ollama_engine import LlamaEngine
from tests.ollama_state import Reply


@pytest.mark.parametrize("version", ["0.30.0-rc2", "0.34.0", "0.34.1", "0.40.0"])
def test_the_model_in_ollama_is_proved_to_be_the_tuned_one(version: str, made: Made, serve: Serve) -> None:
    server = serve(version=version, engine=None)
    found, events = made.give()
    assert verdicts(found) == ("pass", "pass", "pass", "pass")
    assert check(found, "ollama answer").figure == "4 of 4 equal"
    assert check(found, "ollama prompt").data == {
        "texts": 11,
        "texts_unlike": 0,
        "counts": 8,
        "counts_unlike": 0,
    }
    assert (found.ollama_name, list(server.state.models)) == ("birds:latest", ["birds:latest"])
    model = server.state.models["birds:latest"]
    assert model.parameters == {"num_ctx": 512, "stop": ["<|im_end|>"]}
    assert (model.template, model.system) == (None, "")
    assert (model.digest == f"sha256:{found.sha256}") is (version in ("0.34.1", "0.40.0"))
    assert server.state.running() == set()
    assert found.commands[0] == "ollama run birds"
    assert found.commands[1:] == ("ollama signin", "ollama cp birds USER/birds", "ollama push USER/birds")
    assert {kind for kind, _ in events} == {"phase", "progress"}
    asking = [data for kind, data in events if kind == "progress" and data["name"] == "asking"]
    assert asking[-1]["done"] == asking[-1]["total"] == 11


@pytest.mark.parametrize("version", ["0.5.5", "0.11.4", "0.24.0"])
def test_before_0_30_a_go_template_is_sent_and_checked(version: str, made: Made, serve: Serve) -> None:
    server = serve(version=version)
    found, _ = made.give()
    assert verdicts(found) == ("pass", "pass", "pass", "pass")
    assert str(server.state.models["birds:latest"].template).count("{{ range .Messages }}") == 1
    shown = check(found, "ollama prompt")
    assert shown.data["texts"] == (11 if version == "0.24.0" else 0)
    assert shown.data["counts"] == 8
    assert ("does not show the texts" in shown.text) is (version != "0.24.0")


def test_a_template_that_has_no_go_form_asks_for_a_newer_ollama(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollama_tune.core.export import gotemplate

    monkeypatch.setattr(gotemplate, "go_template", lambda chat: "It moves the texts.")
    server = serve(version="0.24.0")
    found, events = made.give()
    told = check(found, "ollama")
    assert (told.verdict, told.figure) == ("warn", "not made")
    assert "It moves the texts" in told.text
    assert "Update Ollama to 0.30" in told.text
    assert events[-1][0] == "warning"
    assert not server.asked("POST", "/api/blobs")


def test_an_ollama_before_0_5_5_is_refused_by_name(made: Made, serve: Serve) -> None:
    server = serve(version="0.5.4")
    found, _ = made.give()
    assert "Ollama 0.5.4 is too old" in check(found, "ollama").text
    assert not server.asked("POST", "/api")


# failures of the model: no name


def test_a_prompt_with_a_token_too_many_gets_no_name(made: Made, serve: Serve) -> None:
    """As by two BOS tokens: the text is right, the tokens are not."""
    server = serve(lambda reply: replace(reply, prompt_tokens=reply.prompt_tokens + 1))
    found, events = made.give()
    wrong = check(found, "ollama prompt")
    assert (wrong.verdict, found.verdict, found.ollama_name) == ("fail", "fail", None)
    assert "tokens for" in wrong.text
    assert (server.state.models, server.state.running()) == ({}, set())
    assert found.commands == ()
    assert "older" in check(found, "ollama").text
    assert events[-1][0] == "warning"


def test_another_prompt_than_the_trainings_gets_no_name(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    render = LlamaEngine.render
    monkeypatch.setattr(LlamaEngine, "render", lambda *rest: render(*rest) + "\n")
    found, _ = made.give()
    wrong = check(found, "ollama prompt")
    assert (wrong.verdict, found.ollama_name, server.state.models) == ("fail", None, {})
    assert wrong.data["texts_unlike"] == 11
    assert r"'sistant\n\n' for 'sistant\n'" in wrong.text


def test_a_shape_that_is_not_in_the_data_is_a_remark_only(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    render = LlamaEngine.render

    def spoil(engine: LlamaEngine, gguf: Path, turns: Any, variables: Any) -> str:
        text = render(engine, gguf, turns, variables)
        return text.replace("system", "developer") if turns[0]["role"] == "system" else text

    monkeypatch.setattr(LlamaEngine, "render", spoil)
    found, _ = made.give()
    assert check(found, "ollama prompt").verdict == "warn"
    assert "some shapes" in check(found, "ollama prompt").text
    assert found.ollama_name == "birds:latest"


def test_answers_that_never_end_get_no_name(made: Made, serve: Serve) -> None:
    serve()
    known = [ended(answer, answer.text[:4]) for answer in made.reference]
    found, _ = made.give(reference=known)
    wrong = check(found, "ollama answer")
    assert (wrong.verdict, wrong.figure, found.ollama_name) == ("fail", "no end", None)
    assert "done_reason length" in wrong.text


def test_one_answer_without_an_end_among_many_is_a_remark(made: Made, serve: Serve) -> None:
    def twist(reply: Reply) -> Reply:
        seen.append(reply)
        return replace(reply, text="Yes.", reason="length" if len(seen) == 2 else "stop")

    seen: list[Reply] = []
    serve(twist)
    found, _ = made.give(reference=[ended(answer, "Yes.") for answer in made.reference])
    assert check(found, "ollama answer").verdict == "warn"
    assert "1 of the answers in Ollama do not end" in check(found, "ollama answer").text


def test_marks_of_the_template_in_an_answer_get_no_name(made: Made, serve: Serve) -> None:
    serve(lambda reply: replace(reply, text="Yes.<|im_start|>user", reason="stop"))
    found, _ = made.give(reference=[ended(answer, "Yes.") for answer in made.reference])
    wrong = check(found, "ollama answer")
    assert (wrong.verdict, wrong.figure, found.ollama_name) == ("fail", "marks in text", None)
    assert "<|im_start|>" in wrong.text


def test_a_model_that_does_not_load_gets_no_name_and_advice(made: Made, serve: Serve) -> None:
    server = serve(faults=Faults(chat_error="unknown model architecture: 'llama9'"))
    found, _ = made.give()
    wrong = check(found, "ollama")
    assert (wrong.verdict, wrong.figure, found.ollama_name) == ("fail", "does not load", None)
    assert "llama9" in wrong.text
    assert "Update Ollama" in wrong.text
    assert server.state.models == {}


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(lost_parameters=("stop",)), "another stop"),
        (Faults(lost_parameters=("num_ctx",)), "another num_ctx"),
        (Faults(more_parameters={"num_ctx": 2048}), "another num_ctx"),
        (Faults(other_system="You are a pirate."), "another system prompt"),
        (Faults(forgotten="birds:latest-unfinished"), "does not list"),
    ],
)
def test_a_setting_that_got_lost_gets_no_name(faults: Faults, words: str, made: Made, serve: Serve) -> None:
    serve(faults=faults)
    found, _ = made.give()
    wrong = check(found, "ollama settings")
    assert (wrong.verdict, found.ollama_name) == ("fail", None)
    assert words in wrong.text


def test_an_older_model_survives_a_failure(made: Made, serve: Serve) -> None:
    server = serve()
    made.give()
    before = server.state.models["birds:latest"]
    server.state.faults.chat_error = "boom"
    found, _ = made.give()
    assert found.verdict == "fail"
    assert server.state.models == {"birds:latest": before}


# system prompt, context, disk


def test_a_system_prompt_is_stored_only_where_it_was_asked_for(made: Made, serve: Serve) -> None:
    server = serve()
    found, _ = made.give(**{"export.system": "You know birds."})
    assert server.state.models["birds:latest"].system == "You know birds."
    assert verdicts(found)[0] == "pass"
    assert check(found, "ollama settings").verdict == "pass"
    rendered = [r.body for r in server.asked("POST", "/api/chat")]
    assert all(body["messages"][0]["content"] != "You know birds." for body in rendered)


def test_questions_that_leave_no_room_for_an_answer_are_not_asked(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.setattr(order, "OLLAMA_CONTEXT", 16)
    found, _ = made.give(**{"training.sequence_length": 16})
    assert server.state.models["birds:latest"].parameters["num_ctx"] == 16
    assert check(found, "ollama answer").figure == "not asked"


def test_too_little_room_is_told_before_anything_is_sent(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "free_space", lambda client: made.verification.bytes * 2 - 1)
    server = serve(version="0.33.0")
    found, _ = made.give()
    assert "twice the file" in check(found, "ollama").text
    assert not server.asked("POST", "/api/blobs")
    serve(version="0.34.1")
    assert made.give()[0].ollama_name == "birds:latest"


# nothing to do, trouble, stops


def test_no_wish_and_no_server_are_told_apart(made: Made) -> None:
    asked, _ = made.give(**{"export.push": False})
    silent, _ = made.give()
    assert check(asked, "ollama").figure == "not asked for"
    assert check(silent, "ollama").figure == "no answer"
    assert "ollama serve" in check(silent, "ollama").text
    assert asked.verdict == silent.verdict == "pass"


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(create_error="unsupported architecture"), "Update Ollama"),
        (Faults(create_without_success=True), "without saying that the model was made"),
        (Faults(die_mid_upload=99), "closed the connection"),
    ],
)
def test_a_server_in_trouble_costs_a_remark_and_no_file(
    faults: Faults,
    words: str,
    made: Made,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ollama_tune.core.export import upload

    monkeypatch.setattr(upload, "PAUSES", (0.01,))
    server = serve(faults=faults)
    found, events = made.give()
    assert (check(found, "ollama").verdict, found.verdict) == ("warn", "warn")
    assert words in check(found, "ollama").text
    assert events[-1][0] == "warning"
    assert server.state.models == {}


def test_a_stop_while_the_model_is_asked_leaves_nothing(made: Made, serve: Serve) -> None:
    server = serve()
    with pytest.raises(ExportStopped):
        made.give(stopped=lambda: bool(server.asked("POST", "/api/generate")))
    assert server.state.models == {}


def test_a_process_of_ollama_is_left_alone(made: Made, serve: Serve, tmp_path: Path) -> None:
    """Whatever happens, and whoever holds the memory: only the server's own interface is used."""
    path = tmp_path / "ollama"
    path.symlink_to(sys.executable)
    command = [str(path), "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    try:
        serve(faults=Faults(chat_error="model requires more system memory"))
        assert made.give()[0].verdict == "fail"
        serve()
        assert made.give()[0].ollama_name is not None
        assert process.poll() is None
    finally:
        process.communicate()
    assert process.returncode == 0


def test_the_checks_are_few_and_short_enough_for_the_card(made: Made, serve: Serve) -> None:
    serve()
    found, _ = made.give()
    for one in found.checks:
        assert len(one.name) <= 20
        assert len(one.figure) <= 20
        assert len(one.text) <= 300
        assert one.text.endswith(".")
