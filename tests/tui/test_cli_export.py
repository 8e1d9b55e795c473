"""`ollama-tune export` and `verify` as a script and as a person at a terminal use them: real runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from ollama_tune.core.plan.settings import ExportForm, GgufType, Settings
from ollama_tune.tui.export_cli import FORMS, TYPES
from ollama_tune.tui.fields import GGUF_WORDS
from tests import told as outputs
from tests.ollama_double import OllamaDouble
from tests.ollama_state import Model
from tests.terminal import Terminal
from tests.tui.conftest import write_rows

RUN = "2026-11-21-1130-birds"
PATIENCE = 300


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a base, rows, and one run whose training is over."""
    from tests.core.export_parts import build_adapter, build_llama

    home = tmp_path_factory.mktemp("export-home")
    base = build_llama(home / "base", hidden_size=256, intermediate_size=256, head_dim=64)
    run = home / "tune" / "data" / "runs" / RUN
    run.mkdir(parents=True)
    build_adapter(base, run / "adapter")
    values: dict[str, Any] = {
        "model.source": str(base),
        "data.path": str(write_rows(home / "rows.jsonl")),
        "evaluation.max_new_tokens": 8,
    }
    Settings().with_values(values).save(run / "run.yaml")
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained home, so that no test sees another's export."""
    shutil.copytree(trained / "tune", tmp_path / "tune")
    return tmp_path / "tune"


@pytest.fixture
def server() -> Iterator[OllamaDouble]:
    with OllamaDouble() as double:
        yield double


def environment(home: Path, host: str = "127.0.0.1:9") -> dict[str, str]:
    kept = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "OMP_NUM_THREADS": "1"}
    return kept | {"OLLAMA_TUNE_HOME": str(home), "OLLAMA_HOST": host, "HF_HUB_OFFLINE": "1"}


def tune(home: Path, *arguments: str, host: str = "127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ollama_tune.tui", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment(home, host),
        timeout=PATIENCE,
        check=False,
    )


def files(home: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in home.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def test_the_options_are_those_of_the_settings() -> None:
    assert get_args(GgufType) == TYPES == tuple(name for name, _ in GGUF_WORDS)
    assert get_args(ExportForm) == FORMS


def test_an_export_ends_with_one_object_and_verify_shows_it_again(home: Path) -> None:
    done = tune(home, "export", RUN, "--name", "birds", "--type", "q8_0", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = outputs.told("export", done.stdout)
    assert told["outcome"] in ("ok", "warn")
    proof = told["verification"]
    assert (proof["type"], proof["file"]) == ("q8_0", "birds-q8_0.gguf")
    assert (home / "data" / "runs" / RUN / "export" / proof["file"]).stat().st_size == proof["bytes"]
    assert "Comparing" in done.stderr, "progress goes to stderr"
    before = files(home)
    again = tune(home, "verify", RUN, "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, told)
    lines = tune(home, "verify").stdout
    assert "birds-q8_0.gguf" in lines and "=> proved" in lines
    assert files(home) == before, "verify changes nothing"


def test_without_a_type_the_recommended_one_is_taken_and_more_is_written(home: Path) -> None:
    forms = ("--also", "merged,adapter", "--also", "adapter_gguf")
    done = tune(home, "export", "--name", "birds", *forms)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ollama create birds" in done.stdout
    export = home / "data" / "runs" / RUN / "export"
    assert (export / "birds-f16.gguf").is_file()
    assert len(list(export.rglob("*.safetensors"))) >= 2, sorted(export.rglob("*"))


def test_a_model_of_that_name_is_replaced_only_after_a_yes(home: Path, server: OllamaDouble) -> None:
    old = Model(f"sha256:{'0' * 64}", {}, {})
    server.state.models["birds:latest"] = old
    command = ("export", RUN, "--name", "birds", "--type", "q8_0")
    done = tune(home, *command, host=server.url)
    assert done.returncode == 2 and "--yes" in done.stderr
    assert not (home / "data" / "runs" / RUN / "export.yaml").exists()
    arguments = [sys.executable, "-m", "ollama_tune.tui", *command]
    with Terminal(arguments, environment(home, server.url)) as terminal:
        terminal.wait("Replace it once the new one is proved? [y/N]")
        terminal.press("n", "enter")
        assert terminal.finish() == 130
    assert server.state.models["birds:latest"] is old
    assert not (home / "data" / "runs" / RUN / "export.yaml").exists()
    done = tune(home, *command, "--yes", host=server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.state.models["birds:latest"] is not old
    assert "ollama run birds\n" in done.stdout and "To share it: ollama signin; " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("export", "nothing"), 2, "no run called 'nothing'"),
        (("export", RUN, "--name", "bad name"), 2, "may not contain a space"),
        (("export", RUN, "--base", "x/y"), 2, "--base belongs to an adapter folder"),
        (("verify", RUN), 2, "has no export yet"),
    ],
)
def test_a_mistake_is_told_in_words_and_as_json(
    home: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    plain, as_json = tune(home, *arguments), tune(home, *arguments, "--json")
    assert (plain.returncode, as_json.returncode) == (status, status)
    assert words in plain.stderr and "Traceback" not in plain.stderr
    told = json.loads(as_json.stdout)
    assert told["outcome"] == "error" and words in told["what"] and told["fix"]


@pytest.mark.parametrize("option", [("--type", "q3_k"), ("--also", "zip")])
def test_a_word_that_is_no_option_names_those_that_are(home: Path, option: tuple[str, str]) -> None:
    done = tune(home, "export", RUN, *option)
    assert done.returncode == 2
    assert "merged" in done.stderr or "q4_k_m" in done.stderr


def test_a_file_that_fails_its_proof_is_no_success(home: Path) -> None:
    """Random weights have close choices everywhere, so 4 bit is another model: the real proof finds that."""
    done = tune(home, "export", RUN, "--name", "birds", "--type", "q4_k_m", "--json")
    assert done.returncode == 1
    told = outputs.told("export", done.stdout)
    assert told["outcome"] == "error" and "failed its proof" in told["what"]
    assert told["verification"]["verdict"] == "fail"
    assert told["verification"]["file"].endswith(".failed.gguf")
    plain = tune(home, "verify", RUN)
    assert plain.returncode == 1 and "=> NOT proved" in plain.stdout


def test_ctrl_c_stops_the_export_and_leaves_nothing_half_done(home: Path) -> None:
    command = [sys.executable, "-m", "ollama_tune.tui", "export", RUN, "--name", "birds", "--json"]
    with Terminal(command, environment(home)) as terminal:
        terminal.wait("Checking the name", PATIENCE)
        terminal.press("ctrl+c")
        assert terminal.finish(PATIENCE) == 130
        assert "The export was stopped." in terminal.text
    export = home / "data" / "runs" / RUN / "export"
    assert not list(export.glob("*.gguf"))


def test_an_export_that_fails_says_so_in_its_status(home: Path) -> None:
    shutil.rmtree(home / "data" / "runs" / RUN / "adapter")
    plain = tune(home, "export", RUN, "--name", "birds")
    assert plain.returncode == 1
    assert plain.stdout.count("has no tuned model yet") == 1
    told = json.loads(tune(home, "export", RUN, "--name", "birds", "--json").stdout)
    assert told["outcome"] == "error" and "no tuned model yet" in told["what"]


def test_a_stored_proof_that_failed_is_status_one(home: Path) -> None:
    export = home / "data" / "runs" / RUN / "export"
    export.mkdir()
    check = {"name": "tokens", "verdict": "fail", "figure": "3 of 9", "text": "They differ."}
    stored = {"verdict": "fail", "checks": [check], "file": "x.gguf", "sha256": "0" * 64, "bytes": 9}
    (export / "verification.json").write_text(json.dumps(stored | {"type": "q8_0"}))
    done = tune(home, "verify", RUN)
    assert done.returncode == 1 and "NOT proved" in done.stdout
    told = json.loads(tune(home, "verify", RUN, "--json").stdout)
    assert told["outcome"] == "error" and "tokens" in told["what"]
    (export / "verification.json").write_text("{")
    assert "cannot be read" in tune(home, "verify", RUN).stderr


def test_an_adapter_of_another_tool_becomes_a_proved_model(trained: Path, tmp_path: Path) -> None:
    """The folder names its base itself; it is copied into a run and left as it was."""
    run = trained / "tune" / "data" / "runs" / RUN
    adapter = tmp_path / "lora-out"
    shutil.copytree(run / "adapter", adapter)
    before = files(adapter)
    home = tmp_path / "tune"
    done = tune(home, "export", str(adapter), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = outputs.told("export", done.stdout)
    assert told["outcome"] in ("ok", "warn")
    assert told["verification"]["file"] == "base-lora-out-f16.gguf"
    assert files(adapter) == before
    assert (Path(told["run"]) / "run.yaml").is_file()


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        ({}, ("--base", "/nowhere/model"), "/nowhere/model"),
        ({"base_model_name_or_path": "unsloth/x-bnb-4bit"}, (), "rounded to 4 bit"),
        ({}, ("--name", "bad name"), "may not contain a space"),
        (None, (), "holds no adapter"),
    ],
)
def test_an_adapter_that_cannot_be_taken_leaves_nothing_behind(
    trained: Path, tmp_path: Path, change: dict[str, str] | None, arguments: tuple[str, ...], words: str
) -> None:
    adapter = tmp_path / "lora-out"
    shutil.copytree(trained / "tune" / "data" / "runs" / RUN / "adapter", adapter)
    config = adapter / "adapter_config.json"
    if change is None:
        config.unlink()
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    done = tune(tmp_path / "tune", "export", str(adapter), *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "tune").glob("data/runs/*"))


def test_a_model_that_is_not_to_be_replaced_leaves_no_run_around_an_adapter(
    trained: Path, tmp_path: Path, server: OllamaDouble
) -> None:
    server.state.models["birds:latest"] = Model(f"sha256:{'0' * 64}", {}, {})
    adapter = trained / "tune" / "data" / "runs" / RUN / "adapter"
    done = tune(tmp_path / "tune", "export", str(adapter), "--name", "birds", host=server.url)
    assert done.returncode == 2 and "--yes" in done.stderr
    assert not list((tmp_path / "tune").glob("data/runs/*"))
