"""The exit status of every way in which a command can end: a script sees nothing else."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ollama_tune.core.errors import BusyError
from ollama_tune.core.machine.doctor import Check
from ollama_tune.core.machine.unload import Unloaded
from ollama_tune.core.machine.values import OllamaModel
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui import chat_cli, control_cli, doctor_cli, exporting
from ollama_tune.tui import cli as cli_module
from ollama_tune.tui.cli import main
from ollama_tune.tui.shell import Terminated
from tests import told as outputs
from tests.tui.run_logs import CHECKS, Log, make_run

SIGNALS = [(KeyboardInterrupt, 130), (Terminated, 143)]
ERROR = {"what": "The data is gone.", "fix": "Put it back.", "details": ""}
PROOF = {"file": "x.gguf", "sha256": "0" * 64, "bytes": 9, "type": "q8_0"}


def tune(patch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The status of a command, computed in this process."""
    patch.setattr(sys, "argv", ["ollama-tune", *arguments])
    return main()


def proof(verdict: str) -> dict[str, Any]:
    return {"verdict": verdict, "checks": [CHECKS[0] | {"verdict": verdict}], **PROOF}


ENDS: dict[str, tuple[Callable[[Log], object] | None, int]] = {
    "not started": (None, 0),
    "finished": (lambda log: log("done", stage="train", steps=2, best_step=2, best_loss=1.0), 0),
    "stopped": (lambda log: log("stopped", stage="train", step=2, reason="request", resumable=True), 0),
    "failed": (lambda log: log("error", **ERROR), 1),
    "crashed": (lambda log: None, 1),
}


@pytest.mark.parametrize("way", ["--plain", "--json"])
@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_is_watched_hands_on_how_it_ended(
    end: str, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, (last, status) = make_run(), ENDS[end]
    if last is not None:
        last(Log(folder).start(2).step(1, 2, 2.0))
    assert tune(monkeypatch, "attach", folder.name, way) == status
    told = capsys.readouterr()
    assert (f"{folder.name}: {end}." in told.err + told.out) == (end != "finished")
    lines = len(folder.events()) + (end == "crashed")
    assert way == "--plain" or told.out.count("\n") == lines


@pytest.mark.parametrize("way", ["--plain", "--json"])
@pytest.mark.parametrize(("kind", "status"), SIGNALS)
def test_whoever_stops_watching_leaves_the_run_alone(
    kind: type[KeyboardInterrupt],
    status: int,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **_named: object) -> None:
        raise kind

    folder = make_run()
    monkeypatch.setattr("ollama_tune.tui.follow.follow", interrupted)
    assert tune(monkeypatch, "attach", folder.name, way) == status
    assert "goes on" in "".join(capsys.readouterr())
    assert not folder.stop_path.exists()


@pytest.mark.parametrize("way", ["", "--json"])
@pytest.mark.parametrize(("kind", "status"), SIGNALS)
def test_a_signal_before_anything_began_has_its_status(
    kind: type[KeyboardInterrupt], status: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise kind

    monkeypatch.setattr("ollama_tune.core.runs.folder.find_run", interrupted)
    assert tune(monkeypatch, "verify", *way.split()) == status


@pytest.mark.parametrize("way", ["", "--json"])
def test_a_run_that_another_process_holds_is_told_apart(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise BusyError("The run is already going.", "Watch it.")

    folder = make_run()
    monkeypatch.setattr("ollama_tune.core.runs.control.delete", busy)
    assert tune(monkeypatch, "delete", folder.name, "--yes", *way.split()) == 75


@pytest.mark.parametrize("way", ["", "--json"])
@pytest.mark.parametrize(("verdict", "status"), [("pass", 0), ("warn", 0), ("fail", 1)])
def test_verify_says_what_the_last_export_proved(
    verdict: str, status: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    folder.export.mkdir()
    (folder.export / "verification.json").write_text(json.dumps(proof(verdict)))
    assert tune(monkeypatch, "verify", folder.name, *way.split()) == status


EXPORTS: dict[str, tuple[Callable[[Log], object], int, str]] = {
    "proved": (lambda log: (log("verification", **proof("pass")), log("done", stage="export")), 0, ""),
    "remarks": (lambda log: (log("verification", **proof("warn")), log("done", stage="export")), 0, ""),
    "not proved": (
        lambda log: (log("verification", **proof("fail")), log("error", **ERROR)),
        1,
        "not_proved",
    ),
    "failed": (lambda log: log("error", **ERROR), 1, "failed"),
    "stopped": (lambda log: log("stopped", stage="export", step=0, reason="x"), 130, "interrupted"),
    "crashed": (lambda log: None, 1, "failed"),
}


def exported(monkeypatch: pytest.MonkeyPatch, write: Callable[[RunFolder], object]) -> RunFolder:
    """A run whose export is what `write` writes into its log."""
    folder = make_run(name="birds", push=False)
    known = SimpleNamespace(suggestion="birds", spec=None, error=None, recommended=None)
    known.obstacle, known.size = (lambda _: ""), (lambda _: 0)
    monkeypatch.setattr("ollama_tune.core.machine.probe.probe_machine", lambda: None)
    monkeypatch.setattr(exporting, "look", lambda *_: known)
    monkeypatch.setattr(exporting, "begin_export", lambda folder, *_: write(folder))
    return folder


@pytest.mark.parametrize("way", ["", "--json"])
@pytest.mark.parametrize("end", EXPORTS)
def test_only_a_proved_export_is_a_success(
    end: str, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last, status, code = EXPORTS[end]
    done = {"files": {}, "ollama_name": None, "commands": []}

    def write(folder: RunFolder) -> None:
        log = Log(folder).start(stage="export")
        last(lambda kind, **data: log(kind, **(data | done if kind == "done" else data)))  # type: ignore[arg-type]

    folder = exported(monkeypatch, write)
    assert tune(monkeypatch, "export", folder.name, *way.split()) == status
    if way:
        told = outputs.told("export", capsys.readouterr().out)
        assert (told["outcome"] == "error", told.get("code", "")) == (status > 0, code)


@pytest.mark.parametrize("way", ["", "--json"])
@pytest.mark.parametrize(("kind", "status"), SIGNALS)
def test_a_signal_while_an_export_is_watched_has_its_status(
    kind: type[KeyboardInterrupt], status: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **_named: object) -> None:
        raise kind

    folder = exported(monkeypatch, lambda folder: Log(folder).start(stage="export"))
    monkeypatch.setattr("ollama_tune.tui.follow.follow", interrupted)
    assert tune(monkeypatch, "export", folder.name, *way.split()) == status


@pytest.mark.parametrize("way", ["", "--json"])
@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_a_doctor_who_finds_a_fault_says_so(
    state: Any, status: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Check("ok", "It can be written."), Check(state, "It is so.", "Do this.", "lock", "Runs")]
    monkeypatch.setattr(doctor_cli, "all_checks", lambda *_: iter(found))
    assert tune(monkeypatch, "doctor", *way.split()) == status


@pytest.mark.parametrize("way", ["", "--json"])
@pytest.mark.parametrize("left", [(), (OllamaModel("a:latest", 9, 9),)], ids=["all gone", "one left"])
def test_a_probe_that_could_not_free_the_memory_says_so(
    left: tuple[OllamaModel, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ollama_tune.core.machine.unload.unload_loaded", lambda: Unloaded((), left, {}, 0))
    assert tune(monkeypatch, "probe", "--unload", *way.split()) == bool(left)


class Talk:
    """A conversation whose answers end as they are told to, or whose process is gone."""

    folder, system, alive = SimpleNamespace(name="run"), "", False

    def __init__(self, end: str) -> None:
        self.end = end

    def turn(self, question: str, _put: object) -> dict[str, Any]:
        if self.end == "gone":
            raise BusyError("The run is held by another.", "Try later.")
        return {"tuned": {"text": question, "end": self.end, "tokens": 1, "seconds": 0.1, "prompt": 1}}


def talking(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(chat_cli, "_opened", lambda *_: contextlib.nullcontext(Talk(end)))


@pytest.mark.parametrize("way", ["", "--json"])
@pytest.mark.parametrize(("end", "status"), [("stop", 0), ("length", 0), ("cancelled", 130), ("gone", 75)])
def test_an_answer_that_was_cut_off_is_no_whole_one(
    end: str, status: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking(monkeypatch, end)
    assert tune(monkeypatch, "ask", "run", "Well?", *way.split()) == status


def test_a_chat_whose_models_are_gone_ends_with_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    talking(monkeypatch, "gone")
    monkeypatch.setattr(chat_cli, "on_terminal", lambda: True)
    monkeypatch.setattr(chat_cli, "_typed", lambda: "Well?")
    assert tune(monkeypatch, "chat", "run") == 75


@pytest.mark.parametrize("status", [0, 1, 129])
def test_the_window_hands_on_its_status(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run()
    monkeypatch.setattr("ollama_tune.tui.app.run_app", lambda *_, **__: status)
    for module in (cli_module, control_cli):
        monkeypatch.setattr(module, "on_terminal", lambda: True)
        monkeypatch.setattr(module, "wants_plain", lambda: False)
    assert tune(monkeypatch) == tune(monkeypatch, "attach", folder.name) == status
    monkeypatch.setattr("ollama_tune.tui.plain.wizard.run_plain", lambda: status)
    assert tune(monkeypatch, "--plain") == status
