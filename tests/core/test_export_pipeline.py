from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export import pipeline
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.merge import Adapter
from ollama_tune.core.export.pipeline import run_export
from ollama_tune.core.export.reference import ReferenceAnswer
from ollama_tune.core.export.values import ExportStopped, Verification
from ollama_tune.core.export.verify import compute_reference
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder, create_run
from tests.core.export_parts import build_adapter, build_llama
from tests.ollama_double import Faults, OllamaDouble

LIMIT = 12
Events = list[tuple[str, dict[str, Any]]]


class Trained:
    """What a finished training leaves: base, data, adapter, and the stored answers to held-out prompts."""

    def __init__(self, folder: Path) -> None:
        self.base = build_llama(folder / "base")
        self.adapter = build_adapter(self.base, folder / "adapter")
        self.data = folder / "birds.jsonl"
        turns = [(f"Bird {i}?", f"It is {i}.") for i in range(12)]
        rows = [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in turns
        ]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.chat = ChatFormat.from_folder(self.base)
        held_out = [(Message("user", question),) for question, _ in turns]
        answers = compute_reference(self.base, self.adapter, self.chat, held_out, LIMIT)
        self.reference = {"prompts": [stored(answer) for answer in answers]}


def stored(answer: ReferenceAnswer) -> dict[str, Any]:
    positions = [
        {"index": p.index, "ids": list(p.logprobs), "logprobs": list(p.logprobs.values())}
        for p in answer.positions
    ]
    return {
        "prompt_ids": list(answer.prompt_ids),
        "answer_ids": list(answer.answer_ids),
        "text": answer.text,
        "positions": positions,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def make_run(trained: Trained) -> Callable[..., RunFolder]:
    """A run whose training is over."""

    def make(**changes: Any) -> RunFolder:
        values = {
            "model.source": str(trained.base),
            "data.path": str(trained.data),
            "data.validation_split": 0.3,
            "evaluation.max_new_tokens": LIMIT,
            "export.name": "birds:v1",
            "export.type": "f16",
        }
        folder = create_run(Settings().with_values(values | changes), "birds")
        shutil.copytree(trained.adapter, folder.adapter)
        (folder.path / "reference.json").write_text(json.dumps(trained.reference))
        return folder

    return make


def export(folder: RunFolder, stopped: Callable[[], bool] = lambda: False) -> tuple[Verification, Events]:
    events: Events = []
    return run_export(folder, lambda kind, **data: events.append((kind, data)), stopped), events


def files(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.export.iterdir())


def check(verification: Verification, name: str) -> Any:
    (found,) = [check for check in verification.checks if check.name == name]
    return found


def test_a_run_becomes_a_proved_file_with_commands(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    found, events = export(folder)
    assert found.verdict in ("pass", "warn")
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]
    assert found.file == "birds-v1-f16.gguf"
    assert (folder.export / found.file).stat().st_size == found.bytes
    assert Verification.from_dict(json.loads((folder.export / "verification.json").read_text())) == found
    assert events[-1] == ("verification", found.to_dict())
    for place in found.files.values():
        assert (folder.path / place).is_file()
    assert found.commands == (
        f"ollama create birds:v1 -f {folder.export / 'Modelfile'}",
        "ollama run birds:v1",
    )
    assert 'PARAMETER stop "<|im_end|>"' in (folder.export / "Modelfile").read_text()
    assert "PARAMETER num_ctx 512" in (folder.export / "Modelfile").read_text()
    left = check(found, "ollama")
    assert (left.verdict, found.ollama_name) == ("skipped", None)
    assert left.text.startswith("No Ollama answers at http://127.0.0.1:9")
    phases = [data["name"] for kind, data in events if kind == "phase"]
    assert phases == ["preparing", "writing", "verifying"]
    last = {data["name"]: data for kind, data in events if kind == "progress"}
    assert last["writing"]["done"] == last["writing"]["total"] > 190_000
    assert last["verifying"]["done"] == last["verifying"]["total"]


def test_an_export_asked_for_later_wins_and_replaces_only_its_own_file(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run()
    export(folder)
    folder.export_request_path.write_text("name: birds\ntype: q8_0\npush: false\n")
    found, _ = export(folder)
    assert found.file == "birds-q8_0.gguf"
    assert files(folder) == ["Modelfile", "birds-q8_0.gguf", "birds-v1-f16.gguf", "verification.json"]
    assert check(found, "ollama").figure == "not asked for"
    assert found.commands[1] == "ollama run birds"
    first = (found.sha256, found.bytes)
    again, _ = export(folder)
    assert (again.sha256, again.bytes) == first


def answers_by_llama_cpp(chat: ChatFormat) -> Callable[[Path, dict[str, Any]], tuple[str, str]]:
    """What a real Ollama does: its llama-server renders the template in the file and answers."""

    def answer(path: Path, body: dict[str, Any]) -> tuple[str, str]:
        with LlamaServer(path, 256) as llama:
            ids = llama.tokenize(llama.render(body["messages"]), as_prompt=True)
            found = llama.complete(ids, body["options"]["num_predict"])
        kept = [i for i in found.ids if i not in chat.stop_ids]
        return chat.decode(kept), "stop" if found.ended else "length"

    return answer


def ending_reference(folder: RunFolder, trained: Trained, text: str) -> None:
    """The stored answers, where the first held-out prompt was answered with `text` and ended there."""
    first = pipeline._held_out(pipeline._prepare(folder))[0]
    ended = ReferenceAnswer(trained.chat.prompt_ids(first), trained.chat.encode(text)[0][:4], text, True, ())
    prompts = [stored(ended), *trained.reference["prompts"]]
    (folder.path / "reference.json").write_text(json.dumps({"prompts": prompts}))


def test_ollama_gets_the_file_and_answers_like_the_tuned_model(
    make_run: Callable[..., RunFolder], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    with OllamaDouble(answer=answers_by_llama_cpp(trained.chat)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        found, events = export(folder)
        assert found.ollama_name == "birds:v1"
        assert check(found, "ollama").verdict == "pass"
        assert list(server.state.models) == ["birds:v1"]
        model = server.state.models["birds:v1"]
        assert model.digest == f"sha256:{found.sha256}"
        assert model.parameters == {"stop": ["<|im_end|>"], "num_ctx": 512}
        assert server.state.blob(model.digest).read_bytes() == (folder.export / found.file).read_bytes()
        assert server.state.loaded == set()
    assert found.commands == ("ollama run birds:v1",)
    phases = list(dict.fromkeys(data["name"] for kind, data in events if kind == "phase"))
    assert phases == ["preparing", "writing", "verifying", "uploading", "creating", "asking"]
    assert all(kind != "warning" for kind, _ in events)


@pytest.mark.parametrize(
    ("answer", "verdict", "figure"),
    [(("It is 3.", "stop"), "pass", "answer equal"), (("It is 4.", "stop"), "warn", "answer differs")],
)
def test_ollamas_answer_is_compared_with_the_tuned_models(
    make_run: Callable[..., RunFolder],
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[str, str],
    verdict: str,
    figure: str,
) -> None:
    folder = make_run()
    ending_reference(folder, trained, "It is 3.")
    with OllamaDouble(answer=lambda path, body: answer) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        found, _ = export(folder)
        (asked,) = server.asked("POST", "/api/chat")
    assert (check(found, "ollama").verdict, check(found, "ollama").figure) == (verdict, figure)
    assert asked.body["messages"][0]["content"].startswith("Bird ")
    assert found.ollama_name == "birds:v1"


def test_an_answer_that_never_ends_gets_no_name(
    make_run: Callable[..., RunFolder], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    ending_reference(folder, trained, "It is 3.")
    with OllamaDouble(answer=lambda path, body: ("It is 3. It is 3.", "length")) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        found, events = export(folder)
        assert server.state.models == {}
    assert check(found, "ollama").verdict == "warn"
    assert "does not end its answer" in next(data["what"] for kind, data in events if kind == "warning")
    assert found.ollama_name is None
    assert found.file in files(folder)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(forbidden=True), "403"),
        (Faults(broken=(500, "boom")), "500"),
        (Faults(die_mid_upload=9), "closed the connection"),
        (Faults(create_error="unsupported architecture"), "unsupported architecture"),
        (Faults(chat_error="llama runner terminated"), "llama runner terminated"),
    ],
    ids=["403", "500", "dies", "create fails", "load fails"],
)
def test_an_ollama_that_fails_costs_a_clear_word_and_no_file(
    make_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, faults: Faults, words: str
) -> None:
    folder = make_run()
    with OllamaDouble(faults=faults) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        found, events = export(folder)
        assert server.state.models == {}
    told = check(found, "ollama")
    assert words in told.text
    assert told.verdict in ("warn", "skipped")
    assert (told.verdict == "warn") == any(kind == "warning" for kind, _ in events)
    assert found.ollama_name is None
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]
    assert len(found.commands) == 2


def test_a_failed_proof_says_so_in_the_name_and_reaches_no_ollama(
    make_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    right = pipeline.export_gguf
    monkeypatch.setattr(
        pipeline, "export_gguf", lambda base, adapter, *rest, **named: right(base, None, *rest, **named)
    )
    events: Events = []
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(
            TuneError, match=r"failed its proof \(tensors, adapter, .*birds-v1-f16\.failed\.gguf"
        ):
            run_export(folder, lambda kind, **data: events.append((kind, data)), lambda: False)
        assert server.state.requests == []
    assert files(folder) == ["birds-v1-f16.failed.gguf", "verification.json"]
    kind, report = events[-1]
    assert (kind, report["verdict"], report["ollama_name"]) == ("verification", "fail", None)
    assert report["commands"] == []
    monkeypatch.setattr(pipeline, "export_gguf", right)
    found, _ = export(folder)
    assert found.verdict != "fail"
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]


@pytest.mark.parametrize(("name", "error"), [("null", "no name"), ("bad name!", "may not contain")])
def test_a_name_is_checked_before_any_work(make_run: Callable[..., RunFolder], name: str, error: str) -> None:
    folder = make_run()
    folder.export_request_path.write_text(f"name: {name}\n")
    with pytest.raises(UsageError, match=error):
        export(folder)
    assert not folder.export.exists()


def test_a_run_without_an_adapter_is_told(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    shutil.rmtree(folder.adapter)
    with pytest.raises(TuneError, match="no finished adapter"):
        export(folder)


def test_a_stop_while_proving_leaves_nothing(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    phases: list[str] = []

    def emit(kind: str, **data: Any) -> None:
        if kind == "phase":
            phases.append(data["name"])

    with pytest.raises(ExportStopped):
        run_export(folder, emit, lambda: "verifying" in phases)
    assert files(folder) == []


def test_a_stop_while_sending_keeps_the_proved_file(
    make_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    phases: list[str] = []
    told: list[dict[str, Any]] = []

    def emit(kind: str, **data: Any) -> None:
        if kind == "phase":
            phases.append(data["name"])
        if kind == "verification":
            told.append(data)

    with OllamaDouble(faults=Faults(stall_mid_upload=True)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        started = 0.0

        def stopped() -> bool:
            nonlocal started
            started = started or (time.monotonic() if "uploading" in phases else 0.0)
            return bool(started)

        with pytest.raises(ExportStopped):
            run_export(folder, emit, stopped)
        assert time.monotonic() - started < 1.0
    assert "birds-v1-f16.gguf" in files(folder)
    assert json.loads((folder.export / "verification.json").read_text()) == told[0]
    assert (len(told), told[0]["ollama_name"]) == (1, None)


def test_leftovers_of_a_killed_export_are_cleared(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    folder.export.mkdir()
    (folder.export / "birds-v1-q8_0.unverified.gguf").write_bytes(b"half")
    (folder.export / ".birds-v1-f16.unverified.gguf.abc.part").write_bytes(b"half")
    export(folder)
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]


def test_lost_data_does_not_hinder_the_proof(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    folder.settings().with_value("data.path", str(folder.path / "gone.jsonl")).save(folder.settings_path)
    (folder.path / "reference.json").unlink()
    found, _ = export(folder)
    assert found.verdict in ("pass", "warn")
    assert "At 42 places of 7 answers" in check(found, "probabilities").text


def test_the_adapter_in_the_run_is_the_one_that_is_proved(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    found, _ = export(folder)
    count = len(Adapter(folder.adapter).modules)
    assert f"All {count} adapted tensors" in check(found, "adapter").text
