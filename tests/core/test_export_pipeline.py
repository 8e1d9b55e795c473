"""An export from the request to the report: events, files, Ollama, other forms, a stop."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export import pipeline
from ollama_tune.core.export.about import digest_of
from ollama_tune.core.export.header import read_header
from ollama_tune.core.export.merge import Adapter
from ollama_tune.core.export.pipeline import run_export
from ollama_tune.core.export.values import ExportStopped, Verification
from ollama_tune.core.runs.folder import RunFolder
from tests.core.export_asked import Events, ask, check, export, files, names
from tests.core.export_parts import load
from tests.core.export_trained import Trained, make_run
from tests.ollama_double import OllamaDouble
from tests.ollama_state import Faults, Model


@pytest.fixture
def folder(trained: Trained) -> RunFolder:
    return make_run(trained)


def test_a_run_becomes_a_proved_file_with_commands(folder: RunFolder) -> None:
    found, events = export(folder)
    assert found.verdict == "pass"
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]
    assert found.file == "birds-v1-f16.gguf"
    assert (folder.export / found.file).stat().st_size == found.bytes
    assert digest_of(folder.export / found.file) == found.sha256
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
    assert names(events, "phase") == ["preparing", "probing", "writing", "verifying"]
    last = {data["name"]: data for kind, data in events if kind == "progress"}
    assert last["writing"]["done"] == last["writing"]["total"] > 190_000
    assert last["verifying"]["done"] == last["verifying"]["total"]


def test_the_report_says_what_was_proved_and_by_what(folder: RunFolder, trained: Trained) -> None:
    found, _ = export(folder)
    about = found.about
    assert about["base"]["source"] == about["base"]["folder"] == str(trained.base)
    assert about["adapter_sha256"] == digest_of(folder.adapter / "adapter_model.safetensors")
    assert (about["name"], about["type"], about["importance"]) == ("birds:v1", "f16", False)
    assert about["reference"] == "stored by the training"
    assert {"ollama-tune", "gguf", "xllamacpp", "transformers", "peft"} <= about["versions"].keys()
    figures = check(found, "probabilities").data
    assert 0 <= figures["kl"] < figures["kl_passes_below"] < figures["kl_fails_from"]
    assert all(check.data for check in found.checks if check.verdict != "skipped")


def test_a_report_of_another_version_is_read(folder: RunFolder) -> None:
    found, _ = export(folder)
    tree = found.to_dict()
    old = {name: tree[name] for name in ("verdict", "file", "sha256", "bytes", "type")}
    old["checks"] = [{n: c[n] for n in ("name", "verdict", "figure", "text")} for c in tree["checks"]]
    assert Verification.from_dict(old).checks[0].text == found.checks[0].text
    new = tree | {"tomorrow": 1, "checks": [check | {"colour": "red"} for check in tree["checks"]]}
    assert Verification.from_dict(new) == found


def test_an_export_asked_for_later_wins_and_replaces_only_its_own_file(folder: RunFolder) -> None:
    export(folder)
    first = (folder.export / "birds-v1-f16.gguf").stat()
    ask(folder, name="birds", type="q8_0", push=False)
    found, _ = export(folder)
    assert found.file == "birds-q8_0.gguf"
    assert files(folder) == ["Modelfile", "birds-q8_0.gguf", "birds-v1-f16.gguf", "verification.json"]
    assert (folder.export / "birds-v1-f16.gguf").stat() == first
    assert check(found, "ollama").figure == "not asked for"
    assert found.commands[1] == "ollama run birds"
    again, _ = export(folder)
    assert (again.sha256, again.bytes) == (found.sha256, found.bytes)


def test_ollama_gets_the_file_and_proves_it_too(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        found, events = export(folder)
        assert found.verdict == "pass"
        assert found.ollama_name == "birds:v1"
        assert list(server.state.models) == ["birds:v1"]
        model = server.state.models["birds:v1"]
        assert model.digest == f"sha256:{found.sha256}"
        assert model.parameters == {"stop": ["<|im_end|>"], "num_ctx": 512}
        assert server.state.running() == set()
    assert found.commands[0] == "ollama run birds:v1"
    phases = ["preparing", "probing", "writing", "verifying", "uploading", "creating", "asking"]
    assert names(events, "phase") == phases
    assert "warning" not in dict(events)


def test_a_model_of_that_name_is_told_before_the_work(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.state.models["birds:v1"] = Model("sha256:0", {}, {})
        _, events = export(folder)
    kinds = [(kind, data.get("name")) for kind, data in events]
    told = next(data["what"] for kind, data in events if kind == "warning")
    assert "birds:v1 exists" in told
    assert kinds.index(("warning", None)) < kinds.index(("phase", "probing"))


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(forbidden=True), "403"),
        (Faults(create_error="unsupported architecture"), "unsupported architecture"),
    ],
    ids=["403", "create fails"],
)
def test_an_ollama_that_fails_costs_a_clear_word_and_no_file(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, faults: Faults, words: str
) -> None:
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


@pytest.mark.parametrize(
    "double",
    [
        {"faults": Faults(chat_error="llama runner terminated")},
        {"answer": lambda path, body: ("No: yes it is. No: yes it is.", "length")},
    ],
    ids=["does not load", "never ends"],
)
def test_a_model_that_fails_inside_ollama_is_no_success(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, double: dict[str, Any]
) -> None:
    events: Events = []
    with OllamaDouble(**double) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(TuneError, match="file is proved and kept, but the model in Ollama failed"):
            run_export(folder, lambda kind, **data: events.append((kind, data)), lambda: False)
        assert server.state.models == {}
    report = json.loads((folder.export / "verification.json").read_text())
    assert (report["verdict"], report["ollama_name"]) == ("fail", None)
    assert events[-1] == ("verification", report)
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]


def test_a_failed_proof_says_so_in_the_name_and_sends_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = pipeline.export_gguf
    monkeypatch.setattr(
        pipeline, "export_gguf", lambda base, adapter, *rest, **named: right(base, None, *rest, **named)
    )
    ask(folder, also=["adapter"])
    events: Events = []
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(
            TuneError, match=r"failed its proof \(tensors, adapter, .*birds-v1-f16\.failed\.gguf"
        ):
            run_export(folder, lambda kind, **data: events.append((kind, data)), lambda: False)
        assert server.asked("POST", "/api/blobs") == server.asked("POST", "/api/create") == []
    assert files(folder) == ["birds-v1-f16.failed.gguf", "verification.json"]
    kind, report = events[-1]
    assert (kind, report["verdict"], report["ollama_name"]) == ("verification", "fail", None)
    assert report["commands"] == []
    monkeypatch.setattr(pipeline, "export_gguf", right)
    ask(folder)
    assert export(folder)[0].verdict == "pass"
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]


@pytest.mark.parametrize(("name", "error"), [("null", "no name"), ("bad name!", "may not contain")])
def test_a_name_is_checked_before_any_work(folder: RunFolder, name: str, error: str) -> None:
    folder.export_request_path.write_text(f"name: {name}\n")
    with pytest.raises(UsageError, match=error):
        export(folder)
    assert not folder.export.exists()


def test_a_run_without_an_adapter_is_told(folder: RunFolder) -> None:
    shutil.rmtree(folder.adapter)
    with pytest.raises(TuneError, match="no tuned model"):
        export(folder)


def test_a_full_disk_is_told_before_any_work(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    events: Events = []
    with pytest.raises(TuneError, match=r"are free, .* are needed"):
        run_export(folder, lambda kind, **data: events.append((kind, data)), lambda: False)
    assert names(events, "phase") == ["preparing"]
    assert files(folder) == []


FORMS = ["merged", "adapter", "adapter_gguf"]


def test_other_forms_are_written_after_the_proof(folder: RunFolder, trained: Trained) -> None:
    ask(folder, also=FORMS)
    found, events = export(folder)
    assert found.verdict == "pass"
    assert names(events, "phase")[-1] == "outputs"
    written = [folder.path / found.files[form] for form in FORMS]
    assert [path.name for path in written] == ["birds-v1-merged", "birds-v1-adapter", "birds-v1-adapter.gguf"]
    assert load(written[0]) is not None
    assert Adapter(written[1]).modules == Adapter(trained.adapter).modules
    assert read_header(written[2]).fields["general.type"] == "adapter"


def test_a_form_that_cannot_be_written_costs_a_warning(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollama_tune.core.export import outputs

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_merged_folder", full)
    ask(folder, also=FORMS)
    found, events = export(folder)
    assert (found.verdict, check(found, "merged").figure) == ("warn", "not written")
    assert "No space left" in next(data["what"] for kind, data in events if kind == "warning")
    assert found.files.keys() >= {"gguf", "adapter", "adapter_gguf"}
    assert "birds-v1-f16.gguf" in files(folder)


@pytest.mark.parametrize("phase", ["preparing", "probing", "writing", "verifying", "outputs", "uploading"])
def test_a_stop_is_obeyed_at_the_first_look_in_every_phase(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    ask(folder, also=["merged"])
    phases: list[str] = []
    told: list[dict[str, Any]] = []
    asked = 0

    def emit(kind: str, **data: Any) -> None:
        if kind == "phase":
            phases.append(data["name"])
        if kind == "verification":
            told.append(data)

    def stopped() -> bool:
        nonlocal asked
        asked += phase in phases
        return phase in phases

    with OllamaDouble(faults=Faults(stall_mid_upload=True)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(ExportStopped):
            run_export(folder, emit, stopped)
        assert asked == 1, "the first answer is obeyed"
        assert server.state.models == {}
    assert phases[-1] == phase
    if phase in ("outputs", "uploading"):
        assert "birds-v1-f16.gguf" in files(folder)
        assert json.loads((folder.export / "verification.json").read_text()) == told[0]
        assert (len(told), told[0]["ollama_name"]) == (1, None)
    else:
        assert (files(folder), told) == ([], [])


def test_leftovers_of_a_killed_export_are_cleared(folder: RunFolder) -> None:
    folder.export.mkdir()
    (folder.export / "birds-v1-q8_0.unverified.gguf").write_bytes(b"half")
    (folder.export / ".birds-v1-q4_0.unverified.gguf.abc.part").write_bytes(b"half")
    (folder.export / ".birds-v1-merged.abc.part").mkdir()
    export(folder)
    assert files(folder) == ["Modelfile", "birds-v1-f16.gguf", "verification.json"]


def test_the_adapter_in_the_run_is_the_one_that_is_proved(folder: RunFolder) -> None:
    found, _ = export(folder)
    count = len(Adapter(folder.adapter).modules)
    assert f"All {count} adapted tensors" in check(found, "adapter").text
