"""`ollama-tune evaluate` on the command line: its examples run, its object keeps its form."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.export.ollama import OllamaClient
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.tui.cli import cli
from ollama_tune.tui.evaluate_cli import EPILOG
from tests import told as outputs
from tests.core.test_export_ollama import push_and_create
from tests.loud import publish_loud_adapter
from tests.ollama_double import OllamaDouble
from tests.ollama_engine import WordEngine
from tests.ollama_files import write_gguf

from .conftest import write_rows
from .run_logs import make_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def run(tiny_model: Path, home: Path) -> RunFolder:
    """A run whose adapter changes what the model says, without the time a training takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(home))
        values = {
            "model.source": str(tiny_model),
            "data.path": str(write_rows(home / "rows.jsonl")),
            "data.validation_split": 0.2,
            "evaluation.max_new_tokens": 6,
        }
        folder = create_run(make_run().settings().with_values(values), "evaluated")
    publish_loud_adapter(folder, tiny_model)
    return folder


@pytest.fixture(autouse=True)
def _home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def tune(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, str, str]:
    """Status, output and errors of a command, in this process."""
    from ollama_tune.core.errors import TuneError

    status = 0
    try:
        cli.main(list(arguments), standalone_mode=False)
    except SystemExit as end:
        status = int(end.code or 0)
    except TuneError as error:
        status = error.exit_code
        print(error, file=sys.stderr)
    told = capsys.readouterr()
    return status, told.out, told.err


def examples(run: RunFolder) -> list[list[str]]:
    lines = [line.strip() for line in EPILOG.splitlines() if line.startswith("  ollama-tune ")]
    named = [line.replace("2026-11-21-1130-kitchen", run.name).replace("RUN", run.name) for line in lines]
    return [shlex.split(line)[1:] for line in named]


def test_every_example_of_the_help_runs(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, with_json, against = examples(run)
    write_rows(tmp_path / "test.jsonl", 5)
    status, out, _ = tune(capsys, plain)
    table = out.splitlines()
    assert status == 0 and max(map(len, table[:-1])) <= 80
    head = next(line for line in table if line.startswith("metric"))
    assert head.split()[:3] == ["metric", "base", "tuned"] and head.endswith("verdict")
    start = table.index(head) + 1
    names = [line[:12].strip() for line in table[start : start + 7]]
    assert names == ["Loss", "Perplexity", "Exact match", "Token F1", "ROUGE-L", "BLEU", "chrF"]
    assert Path(out.rstrip().rpartition("Report: ")[2]).read_text().startswith("# Is ")
    status, out, err = tune(capsys, with_json)
    check_schema(outputs.told("evaluate", out), run)
    assert status == 0 and "base model, answers: 5 of 5" in err
    gguf = write_gguf(tmp_path / "model.gguf", 10_000)
    with OllamaDouble(engine=WordEngine("Bird 1 is blue.")) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with OllamaClient(server.url) as client:
            push_and_create(client, gguf, "llama3.2")
        status, out, _ = tune(capsys, against)
    assert status == 0 and "ollama     tuned" in out and "chrF" in out and "BLEU" not in out


def check_schema(told: dict[str, Any], run: RunFolder) -> None:
    keys = {"outcome", "version", "run", "data", "models", "main", "metrics", "labels", "confusion"}
    assert set(told) == keys | {"remarks", "method", "folder"}
    assert (told["outcome"], told["version"], told["run"]) == ("ok", 1, run.name)
    assert told["data"] == {"source": "test.jsonl", "rows": 5, "of": 5}
    assert [model["title"] for model in told["models"]] == ["base", "tuned"]
    for entry in told["metrics"]:
        keys = {"name", "unit", "better", "rows", "models", "difference", "sentence", "signature"}
        assert set(entry) == keys
        assert set(entry["difference"]) == {"value", "low", "high", "p", "test", "verdict"}
        assert all(set(model) == {"value", "low", "high"} for model in entry["models"])
    assert "Bird" not in json.dumps(told)
    assert json.loads((Path(told["folder"]) / "report.json").read_text())["best"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nowhere"], 2, "There is no run called"),
        (["RUN", "--metrics", "f2,loss"], 2, "There is no metric 'f2'."),
        (["RUN", "--metrics", "accuracy"], 2, "fixed set of labels"),
        (["RUN", "--against", "other"], 2, "There is no run called 'other'"),
        (["RUN", "--data", "absent.jsonl"], 1, "absent.jsonl"),
        (["RUN", "--output", "."], 2, "is there already"),
        (["RUN", "--against", "ollama:x"], 1, "No Ollama answers"),
    ],
)
def test_what_cannot_be_evaluated_is_told_with_a_status(
    run: RunFolder,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    Path("something").write_text("")
    named = ["evaluate", *(run.name if word == "RUN" else word for word in arguments)]
    told = tune(capsys, named)
    assert told[0] == status and words in told[2]
    code, out, _ = tune(capsys, [*named, "--json"])
    found = json.loads(out)
    assert code == status and found["outcome"] == "error" and words in found["what"]


def test_no_heavy_library_is_loaded_where_the_command_runs(run: RunFolder, home: Path) -> None:
    script = (
        "import sys\nfrom ollama_tune.tui.cli import cli\n"
        f"cli.main(['evaluate', {run.name!r}, '--metrics', 'exact_match'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'peft', 'textual'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
