"""What scripts rely on: JSON and examples for every command, errors with codes, and what changes nothing.

One small run, the one that the page for agents describes, serves all examples.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.paths import asset
from ollama_tune.core.plan.refusal import SettingsError
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.tui.cli import cli, main
from ollama_tune.tui.commands import GROUPS
from ollama_tune.tui.demo import _report
from ollama_tune.tui.follow import Follower
from ollama_tune.tui.outputs import LINES, commands, output_schema
from ollama_tune.tui.printing import NotProved
from ollama_tune.tui.shell import CrashError, Interrupted, wants_json
from tests import told as outputs

CONTEXT = click.Context(cli)
NAMES = cli.list_commands(CONTEXT)
PAGE = asset("docs/agents.md")
EXAMPLES = re.compile(r"^\s*Examples:\n((?:[ \t]+\S.*\n?)+)", re.MULTILINE)
PAGE_JOB = "test_cli_contract.py::test_the_page_for_agents_describes_a_job_that_works"
PAGE_STEERS = "test_cli_contract.py::test_the_rest_of_the_page_steers_a_run"
ELSEWHERE = {
    "ask": "test_cli_chat.py::test_a_question_from_standard_input_is_answered_by_both_models_as_one_object",
    "chat": "test_cli_chat.py::test_a_chat_of_programs_answers_each_line_and_remembers_the_one_before",
    "delete": PAGE_STEERS,
    "demo": "../../Makefile::$(VENV)/bin/ollama-tune demo",
    "doctor": "test_doctor.py::test_the_quick_one_leaves_out_what_takes_seconds",
    "evaluate": "test_cli_evaluate.py::test_every_example_of_the_help_runs",
    "export": "test_cli_export.py::test_an_export_ends_with_one_object_and_verify_shows_it_again",
    "launch": "test_cli_launch.py::test_the_examples_of_the_help_work",
    "pause": PAGE_STEERS,
    "resume": PAGE_STEERS,
    "run": PAGE_JOB,
    "serve": "test_serve.py::test_a_browser_sees_the_wizard_and_its_keys_work",
    "stop": PAGE_STEERS,
    "track": "test_cli_tracking.py::test_a_tracker_that_is_not_installed_is_named_with_its_extra",
}
"""Commands that need minutes, a terminal, a server or another library, and the test that runs each (CI begins
with `make demo`). The examples of every other command are run here."""
NOT_LIVE = ("Qwen/", "--unload", "&&", "--trials", "1e-3 --json")
"""Marks of examples that need what is not here: a hub, models in an Ollama, hours."""


def command(name: str) -> click.Command:
    found = cli.get_command(CONTEXT, name)
    assert found is not None
    return found


def examples(name: str) -> list[str]:
    """The lines of a command's Examples block; a backslash joins two."""
    here = command(name)
    text = f"{here.help or ''}\n{here.epilog or ''}\n".replace("\b", "").replace("\\\n", " ")
    blocks = EXAMPLES.findall(text)
    return [" ".join(line.split()) for block in blocks for line in block.splitlines() if line.strip()]


def page_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


ALL = [(name, line) for name in NAMES for line in examples(name)]


@dataclass
class Box:
    """A folder with what examples name, and a run in it; `told` is what the page's commands printed."""

    folder: Path
    home: Path
    run: str = "RUN"
    told: dict[str, str] | None = None

    def start(self, line: str, patch: pytest.MonkeyPatch, *, status: int = 0) -> str:
        """Run a line as a shell would, in this process; returns what it printed on standard output."""
        words, given = self.words(line), io.StringIO()
        if "<" in words:
            given = io.StringIO((self.folder / words[words.index("<") + 1]).read_text())
        plain = words[: min([words.index(sign) for sign in ("<", ">", "|") if sign in words], default=None)]
        printed = io.StringIO()
        with patch.context() as inside:
            inside.chdir(self.folder)
            inside.setenv("OLLAMA_TUNE_HOME", str(self.home))
            inside.setattr(sys, "argv", plain)
            inside.setattr(sys, "stdin", given)
            inside.setattr(sys, "stdout", printed)
            found = main()
        assert found == status, f"{line} gave {found}: {printed.getvalue()[-400:]}"
        if "--json" in plain and words[1] in NAMES:
            outputs.told(words[1], printed.getvalue())
        return printed.getvalue()

    def words(self, line: str) -> list[str]:
        names = {"RUN": self.run, "OTHER": f"{self.run}-other"}
        return [names.get(word, re.sub("^~/", f"{self.folder}/", word)) for word in shlex.split(line)]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """The box after the first block of the page, with the files that examples name."""
    folder = tmp_path_factory.mktemp("box")
    box = Box(folder, folder / "home")
    rows = asset("data/tickets.jsonl").read_text(encoding="utf-8").splitlines()[:14]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "table.csv").write_text("".join(f"{a},{b}\n" for a, b in [("Frage", "Antwort"), *PAIRS]))
    (folder / "texts.csv").write_text("".join(f"{a},{b}\n" for a, b in [("text", "label"), *LABELLED]))
    (folder / "llamafactory.yaml").write_text("model_name_or_path: a/b\nstage: sft\nlora_rank: 8\n")
    (folder / "axolotl.yml").write_text("base_model: a/b\nadapter: lora\nsequence_len: 512\n")
    for name in ("model", "my-model", "Llama-3.1-8B"):
        shutil.copytree(asset("model"), folder / name)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {"OLLAMA_HOST": "127.0.0.1:9", "HF_HUB_OFFLINE": "1"}.items():
            patch.setenv(variable, value)
        box.told = {}
        for line in page_commands()[: page_commands().index("ollama-tune verify RUN --json") + 1]:
            if line.startswith("ollama-tune doctor"):
                continue  # its status is that of this box
            box.told[line.split()[1]] = box.start(line, patch)
            runs = list((box.home / "data" / "runs").glob("*"))
            box.run = runs[0].name if runs else box.run
    box.told["run.yaml"] = (folder / "run.yaml").read_text(encoding="utf-8")
    shutil.copytree(runs[0], runs[0].with_name(f"{box.run}-other"))
    yield box


PAIRS = [(f"What is {n} and {n}?", f"It is {2 * n}.") for n in range(12)]
LABELLED = [(f"This is text number {n} and long enough.", n % 2) for n in range(40)]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_json_and_has_examples(name: str) -> None:
    flags = [flag for parameter in command(name).params for flag in parameter.opts]
    assert "--json" in flags
    found = examples(name)
    assert found and all(f"ollama-tune {name}" in line for line in found)
    assert any("--json" in line for line in found) or name == "schema"


@pytest.mark.parametrize(("name", "line"), ALL, ids=[line for _, line in ALL])
def test_every_example_is_understood(name: str, line: str) -> None:
    for part in line.split("&&"):
        words = shlex.split(part)
        after = words[words.index("ollama-tune") + 1 :]
        plain = after[: min([after.index(sign) for sign in ("<", ">", "|") if sign in after], default=None)]
        assert plain[0] in NAMES
        with command(plain[0]).make_context(plain[0], plain[1:]) as context:
            assert context.params is not None


LIVELY = {
    line: name for name, line in ALL if name not in ELSEWHERE and not any(mark in line for mark in NOT_LIVE)
}


@pytest.mark.parametrize("line", LIVELY)
def test_the_examples_work(box: Box, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (box.folder / "run.yaml").write_text((box.told or {})["run.yaml"], encoding="utf-8")
    printed = box.start(line, monkeypatch)
    assert printed
    if "--json" in line:
        assert [json.loads(told) for told in (printed.splitlines() if LIVELY[line] in LINES else [printed])]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_an_example_that_a_test_runs(name: str) -> None:
    assert not isinstance(command(name), click.Group), "its subcommands want examples too"
    if name in ELSEWHERE:
        file, _, test = ELSEWHERE[name].partition("::")
        text = (Path(__file__).parent / file).read_text(encoding="utf-8")
        assert (f"def {test}(" if test.startswith("test_") else test) in text and name in text
    else:
        assert name in LIVELY.values()


def test_the_page_for_agents_describes_a_job_that_works(box: Box) -> None:
    told = box.told or {}
    assert json.loads(told["data"])["usable"] == 14
    plan = json.loads(told["plan"])
    assert plan["settings"]["export"]["name"] == "kitchen" and plan["memory"]["fits"] is True
    assert yaml.safe_load(told["run.yaml"]) == plan["settings"]
    events = [json.loads(line) for line in told["run"].splitlines()]
    assert [event["n"] for event in events] == list(range(len(events)))
    assert events[-1]["kind"] == "done" and events[-1]["stage"] == "export"
    assert events[0]["kind"] == "start" and events[0]["run"] == box.run
    assert json.loads(told["runs"])[0]["state"] == "finished"
    assert json.loads(told["verify"])["outcome"] in ("ok", "warn")


def test_events_have_the_fields_that_the_page_names(box: Box) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = {kind: re.findall(r"`(\w+)`(?! or| \()?", text) for kind, text in rows}
    for event in map(json.loads, (box.told or {})["run"].splitlines()):
        if event["kind"] in ("data", "step", "evaluation", "warning"):
            fields = [name for name in named[event["kind"]] if name not in ("base", "tuned")]
            assert set(fields) <= set(event)


def test_the_page_names_every_error_code_with_its_exit_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    kinds = (TuneError, NotProved, CrashError, UsageError, SettingsError, BusyError, Interrupted)
    assert [(kind.code, str(kind.exit_code)) for kind in kinds] == rows
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_the_rest_of_the_page_steers_a_run(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    steering = page_commands()[page_commands().index("ollama-tune verify RUN --json") + 1 :]
    assert [line.split()[1] for line in steering] == ["pause", "stop", "resume", "delete"]
    other = Box(box.folder, box.home, f"{box.run}-other")
    for line in steering[:3]:
        told = json.loads(other.start(line, monkeypatch, status=2))
        assert told["code"] == "usage" and other.run in told["what"], "the run is finished"
    spare = box.home / "data" / "runs" / "spare"
    shutil.copytree(box.home / "data" / "runs" / other.run, spare)
    told = json.loads(Box(box.folder, box.home, "spare").start(steering[3], monkeypatch))
    assert told["outcome"] == "ok" and told["freed_bytes"] > 0 and not spare.exists()


def test_attach_tells_the_events_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    told = (box.told or {})["run"]
    assert box.start("ollama-tune attach RUN --json", monkeypatch) == told
    assert "\x1b" not in box.start("ollama-tune attach RUN --plain", monkeypatch)


def files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder with what changes when it is written; but for what can be made again."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
        for path in sorted(folder.rglob("*"))
        if "cache" not in path.relative_to(folder).parts[:2]
    }


@pytest.mark.parametrize(
    "line",
    [
        "ollama-tune plan --model bundled --data rows.jsonl --name kitchen --json",
        "ollama-tune plan --model ./model --data rows.jsonl --set training.rank=4",
        "ollama-tune verify RUN --json",
        "ollama-tune verify RUN",
        "ollama-tune import axolotl.yml",
        "ollama-tune schema",
    ],
)
def test_what_only_tells_changes_no_file(box: Box, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(box.folder)
    box.start(line, monkeypatch)
    assert files(box.folder) == before


@pytest.mark.parametrize(
    ("line", "status", "code", "words"),
    [
        ("ollama-tune stop --jsn --json", 2, "usage", "--jsn"),
        ("ollama-tune frobnicate --json", 2, "usage", "frobnicate"),
        ("ollama-tune evalute RUN --json", 2, "usage", "Did you mean 'evaluate'?"),
        ("ollama-tune schema evalute --json", 2, "usage", "evalute"),
        ("ollama-tune delete RUN --json", 2, "usage", "nothing is asked"),
        ("ollama-tune verify nothing --json", 2, "usage", "nothing"),
        ("ollama-tune run absent.yaml --json", 2, "usage", "absent.yaml"),
        ("ollama-tune import rows.jsonl --json", 2, "usage", "rows.jsonl"),
        ("ollama-tune plan --set training.rnk=3 --json", 2, "settings", "training.rnk"),
        ("ollama-tune plan --set training.rank=0 --json", 2, "settings", "training.rank"),
        ("ollama-tune import axolotl.yml --output none/run.yaml --json", 1, "failed", "cannot be written"),
        ("ollama-tune plan --no-simulation --output none/run.yaml --json", 1, "failed", "cannot be written"),
        ("ollama-tune import axolotl.yml --output axolotl.yml --json", 2, "usage", "--output"),
        ("ollama-tune data absent.jsonl --json", 1, "failed", "absent.jsonl"),
        ("ollama-tune export RUN --type q4_k_m --name 'bad name' --json", 2, "settings", "name"),
    ],
)
def test_every_error_is_one_line_of_json_with_a_code(
    box: Box, line: str, status: int, code: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = box.start(line, monkeypatch, status=status)
    assert printed.count("\n") == 1
    told: dict[str, Any] = json.loads(printed)
    assert (told["outcome"], told["code"]) == ("error", code)
    assert words in told["what"] and told["fix"]
    assert set(told) - {"mistakes"} == {"outcome", "code", "what", "fix"}


def test_mistakes_in_a_file_are_told_one_by_one(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    (box.folder / "wrong.yaml").write_text("training:\n  rnk: 3\n  alpha: 0\n")
    told = json.loads(box.start("ollama-tune run wrong.yaml --json", monkeypatch, status=2))
    assert [(each["field"], each["line"]) for each in told["mistakes"]] == [
        ("training.rnk", 2),
        ("training.alpha", 3),
    ]
    assert "training.rank" in told["mistakes"][0]["fix"]


def test_a_crash_is_an_error_with_a_code_too(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Path:
        raise ZeroDivisionError("a data row")

    monkeypatch.setattr("ollama_tune.core.paths.runs_dir", broken)
    told = json.loads(box.start("ollama-tune paths --json", monkeypatch, status=1))
    assert told["code"] == "crashed" and "ZeroDivisionError" in told["what"]
    assert "data row" not in str(told) and "The report is in" in told["fix"]


def test_the_output_of_every_command_is_described() -> None:
    assert set(commands()) == set(NAMES) == {name for names in GROUPS.values() for name in names}
    assert set(LINES) < set(NAMES)
    with pytest.raises(UsageError, match="'evaluate'"):
        output_schema("evalute")


TOLD_ELSEWHERE = {"ask", "chat", "doctor", "evaluate", "export", "launch", "sweep", "tensorboard"}
"""Commands whose output their own tests hold against the schema."""


def test_every_output_is_held_against_its_schema() -> None:
    here = {line.split()[1] for line in (*LIVELY, *page_commands()) if "--json" in line}
    others = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert {name for name in TOLD_ELSEWHERE if f'outputs.told("{name}"' in others} == TOLD_ELSEWHERE
    alike = {"track": "tensorboard"}
    shapes = {name: {**output_schema(name), "title": ""} for name in NAMES}
    assert all(shapes[name] == shapes[other] for name, other in alike.items())
    own = {"attach", "demo", "schema", "serve"}
    """attach and demo: below; schema gives schemas; serve prints two keys before it serves."""
    assert set(NAMES) == here | TOLD_ELSEWHERE | set(alike) | own


def test_what_the_demo_prints_is_described(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_tune.tui.demo.GOAL", 0.0)
    folder, follower = RunFolder(box.home / "data" / "runs" / box.run), Follower(lambda _line: None)
    for event in folder.events():
        follower.show(event)
    error, values = _report(folder, follower, State.FINISHED, 1.0, lambda _line: None)
    assert error is None
    outputs.told("demo", json.dumps({"outcome": "ok", "run": folder.name, "path": str(folder.path)} | values))


def test_json_is_seen_in_any_command_line() -> None:
    assert wants_json(["stop", "--json", "x"]) and wants_json(["run", "a", "--events"])
    assert not wants_json(["ask", "RUN", "--", "--json"]) and not wants_json(["runs"])
