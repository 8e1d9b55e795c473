"""What a logout ends, asked of doubles that speak as systemd's programs do."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ollama_tune.core.machine import logout
from ollama_tune.core.machine.logout import Logout, logout_remark, outlive_logout, read_logout, scope_prefix
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import control, doctor, launch
from ollama_tune.core.runs.folder import create_run
from tests.core.train_parts import wait_for
from tests.logind_double import Answers, Logind

Box = Callable[[Answers], Logind]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    yield lambda answers: Logind(tmp_path / "systemd", answers, monkeypatch)
    logout.known_logout.cache_clear()


@pytest.mark.parametrize(
    ("answers", "kills"),
    [
        (Answers(kill=False), False),
        (Answers(kill=True), True),
        (Answers(kill=True, spared=("root", "ada")), False),
        (Answers(kill=True, spared=("root",)), True),
        (Answers(kill=False, only=("ada", "bob")), True),
        (Answers(kill=True, only=("bob",)), False),
    ],
)
def test_the_lists_of_users_count_before_the_general_setting(box: Box, answers: Answers, kills: bool) -> None:
    box(answers)
    assert logout.kills_processes() is kills


def test_root_is_left_alone_where_nobody_is_spared_by_name(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box(Answers())
    monkeypatch.setattr(logout, "_user", lambda: "root")
    assert not logout.kills_processes()


def test_without_systemd_nothing_is_ended_and_nothing_is_asked(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = box(Answers())
    monkeypatch.setattr(logout, "BOOTED", Path("/nowhere"))
    assert read_logout() == Logout() and logout_remark() == "" and double.calls == []


def test_a_bus_that_hangs_or_a_program_that_is_missing_holds_nothing_up(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = box(Answers(hangs=True))
    monkeypatch.setattr(logout, "LIMIT", 0.3)
    assert read_logout() == Logout()
    double.set(Answers())
    monkeypatch.setenv("PATH", "/nowhere")
    assert read_logout() == Logout()


def test_a_remark_says_what_a_logout_does_and_changes_nothing(box: Box) -> None:
    double = box(Answers())
    assert "`loginctl enable-linger` prevents that" in logout_remark()
    assert not double.answers.linger
    double.set(Answers(linger=True))
    assert logout_remark() == ""
    double.set(Answers(bus=False))
    assert "`systemd-run --user` does not work here" in logout_remark()


def test_a_start_turns_lingering_on_without_a_password_or_says_that_it_cannot(box: Box) -> None:
    double = box(Answers(allowed=False))
    assert "enable-linger" in outlive_logout()
    double.set(Answers())
    assert outlive_logout() == "" and double.answers.linger


@pytest.mark.parametrize(
    ("answers", "state", "word"),
    [
        (Answers(kill=False), "ok", "does not end a run"),
        (Answers(linger=True), "ok", "a unit of its own"),
        (Answers(), "warn", "lingering is off"),
        (Answers(bus=False), "warn", "`systemd-run --user` does not work"),
    ],
)
def test_the_doctor_says_it_too(box: Box, answers: Answers, state: str, word: str) -> None:
    double = box(answers)
    (check,) = doctor.logout()
    assert (check.state, word in check.found) == (state, True)
    assert not double.answers.linger or answers.linger, "a look changes nothing"


def test_the_worker_runs_in_a_unit_of_its_own_under_the_pid_that_was_started(
    box: Box, tmp_path: Path
) -> None:
    double = box(Answers())
    (tmp_path / "model").mkdir()
    folder = create_run(Settings().with_value("model.source", str(tmp_path / "model")), "empty")
    launch.start(folder)
    process = folder.process()
    assert process is not None and os.getsid(process.pid) == process.pid
    assert psutil.Process(process.pid).environ()["IN_SCOPE"] == "yes"
    assert double.answers.linger
    assert any(call.startswith("systemd-run --user --scope --quiet --collect -- ") for call in double.calls)
    control.terminate(folder)
    wait_for(lambda: not folder.alive())


def test_nothing_is_put_before_a_command_where_no_logout_ends_it(box: Box) -> None:
    box(Answers(kill=False))
    assert scope_prefix() == ()


def test_an_account_without_a_name_is_asked_for_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_uid: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert logout._user() == str(os.getuid())
