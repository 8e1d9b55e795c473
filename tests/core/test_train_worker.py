"""The worker process: what it writes, and how it ends."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.errors import UsageError
from ollama_tune.core.evaluate.compare import compare
from ollama_tune.core.runs import control
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.train import worker
from ollama_tune.core.train.session import Session, StopWish
from tests.core.train_parts import kinds, make_run, work, write_rows


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        data = write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")
        folder = make_run(model_folder, data, training={"sequence_length": 30})
        assert work(folder).returncode == 0
    return folder


def test_a_run_is_told_from_start_to_done(finished: RunFolder) -> None:
    events = finished.events()
    told = kinds([event for event in events if event.get("step") is None or event.kind != "sample"])
    before = ["start", "phase", "progress", "warning", "data", "phase", "progress", "phase"]
    base = ["phase", "progress", "sample", "evaluation", "phase"]
    steps = ["step", "evaluation", "checkpoint"]
    after = [*base, "done"]
    assert told[: len(before) + 8] == before + steps + base and told[-len(after) :] == after
    between = told[len(before) + 8 : -len(after)]
    assert between == steps * (len(between) // 3) != []
    names = [event["name"] for event in events if event.kind == "phase"]
    assert names == [
        *("reading_data", "loading_model", "training", "evaluating_base", "training"),
        *("evaluating_tuned", "saving"),
    ]
    texts = [event["text"] for event in events if event.kind == "phase"]
    assert len(set(texts)) == len(texts), "nothing is told twice"
    start, data = events[0], next(event for event in events if event.kind == "data")
    assert start["device"] == "cpu" and start["resumed_from"] is None and start["stages"] == ["train"]
    assert {"torch", "transformers", "peft", "python"} <= set(start["versions"])
    assert data["left_out"] > 0 and data["longest"] <= 30
    (warning,) = [event for event in events if event.kind == "warning"]
    assert "longer than 30 tokens" in warning["what"] and f"{data['left_out']} row" in warning["what"]
    assert data["train_rows"] + data["validation_rows"] + data["left_out"] == 40
    memory = [event for event in events if event.kind == "memory"]
    assert all(event["used"] > 0 for event in memory)
    status = finished.status()
    assert (status.state, status.step) == (State.FINISHED, data["total_steps"])


def test_base_and_tuned_model_are_compared_on_the_same_held_out_rows(finished: RunFolder) -> None:
    found = compare(finished.events())
    assert found.rows == 4
    assert found.base.exact_match == 0.0 and found.tuned.exact_match is not None
    assert found.base.loss is not None and found.tuned.loss is not None
    assert found.tuned.loss < found.base.loss
    assert len(found.samples) == 3
    assert all(sample.base is not None and sample.tuned is not None for sample in found.samples)
    assert all(sample.reference.startswith("It is ") for sample in found.samples)
    done = finished.events()[-1]
    assert done["base_exact_match"] == found.base.exact_match
    assert done["tuned_exact_match"] == found.tuned.exact_match


def test_the_reference_holds_the_tuned_models_own_greedy_choices(finished: RunFolder) -> None:
    prompts = json.loads((finished.path / "reference.json").read_text())["prompts"]
    assert 1 <= len(prompts) <= 8
    for prompt in prompts:
        assert 1 <= len(prompt["positions"]) <= 6
        for position in prompt["positions"]:
            assert len(position["ids"]) == len(position["logprobs"]) == 64
            assert position["logprobs"] == sorted(position["logprobs"], reverse=True)
            if prompt["answer_ids"]:
                assert position["ids"][0] == prompt["answer_ids"][position["index"]]


def test_nothing_of_the_libraries_reaches_the_terminal_or_the_log(finished: RunFolder) -> None:
    text = finished.events_path.read_text()
    assert "Loading weights" not in text and "kernels" not in text


def failure(folder: RunFolder) -> tuple[str, str]:
    done = work(folder)
    assert done.returncode == 1
    event = folder.events()[-1]
    assert event.kind == "error"
    assert folder.status().state is State.FAILED
    return event["what"], event["fix"]


def test_a_missing_data_file_is_one_sentence_and_no_traceback(model_folder: Path, tmp_path: Path) -> None:
    folder = make_run(model_folder, tmp_path / "absent.jsonl")
    what, fix = failure(folder)
    assert "absent.jsonl" in what and fix.endswith(".")
    assert "Traceback" not in what + fix


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = make_run(tmp_path / "empty", write_rows(tmp_path / "rows.jsonl"))
    what, _ = failure(folder)
    assert str(tmp_path / "empty") in what or "config.json" in what


def test_rows_that_are_all_too_long_are_told(model_folder: Path, tmp_path: Path) -> None:
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"), training={"sequence_length": 16})
    what, fix = failure(folder)
    assert "longest allowed is 16 tokens" in what and "sequence_length" in fix


def test_a_damaged_run_yaml_is_told(model_folder: Path, tmp_path: Path) -> None:
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"))
    folder.settings_path.write_text("training: {rank: many}")
    assert "training.rank" in failure(folder)[0]


def test_a_worker_on_a_run_that_is_held_ends_with_75_and_touches_nothing(finished: RunFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from ollama_tune.core.runs.folder import RunFolder, RunLock;"
        "RunLock(RunFolder(Path(sys.argv[1]))); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(finished.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        before = finished.events_path.read_bytes()
        assert work(finished).returncode == 75
        assert finished.events_path.read_bytes() == before
        holder.stdin.close()


def test_torch_is_not_loaded_before_the_lock_is_held() -> None:
    code = (
        "import sys; import ollama_tune.core.train.worker, ollama_tune.core.train.recipe;"
        "print([m for m in ('torch', 'transformers', 'peft', 'pyarrow', 'textual') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


SECRET = "a row of the data"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (KeyError(SECRET), "error", "unforeseen problem (KeyError)"),
        (OSError(errno.ENOSPC, SECRET), "error", "The disk is full"),
        (MemoryError(), "out_of_memory", "memory of the device was used up"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
            "memory",
        ),
    ],
)
def test_unforeseen_errors_are_told_without_quoting_data(
    model_folder: Path, tmp_path: Path, error: Exception, kind: str, words: str, capsys: Any
) -> None:
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"))
    session = Session(folder, StopWish(folder))
    try:
        raise error
    except Exception as caught:
        worker._fail(session, caught)
    events = folder.events()
    assert events[0].kind == kind and events[-1].kind == "error"
    assert words in events[-1]["what"]
    assert SECRET not in folder.events_path.read_text()
    assert str(folder.log_path) in events[-1]["fix"] + events[-1]["details"]


def test_an_export_without_an_adapter_is_told(model_folder: Path, tmp_path: Path) -> None:
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"), export={"name": "tiny"})
    assert work(folder, "export").returncode == 1
    events = folder.events()
    assert (events[0].kind, events[0]["stage"], events[-1].kind) == ("start", "export", "error")
    assert "no tuned model yet" in events[-1]["what"]


def test_all_stages_in_one_process_end_with_a_proved_file(model_folder: Path, tmp_path: Path) -> None:
    settings = {"training": {"epochs": 1.0}, "export": {"name": "tiny", "type": "f16", "push": False}}
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"), **settings)
    assert work(folder, "all").returncode == 0
    assert "<|im_start|>" in folder.chat_template_path.read_text()
    events = folder.events()
    assert [event["stage"] for event in events if event.kind == "start"] == ["train", "export"]
    assert {tuple(event["stages"]) for event in events if event.kind == "start"} == {("train", "export")}
    done = [event for event in events if event.kind == "done"]
    assert [event["stage"] for event in done] == ["train", "export"]
    assert (folder.path / done[1]["files"]["gguf"]).read_bytes()[:4] == b"GGUF"
    assert done[1]["commands"] and done[1]["ollama_name"] is None
    (verification,) = [event for event in events if event.kind == "verification"]
    assert verification["verdict"] in ("pass", "warn")
    with pytest.raises(UsageError, match="is finished"):
        control.resume(folder)


def test_without_a_name_all_means_training_only(model_folder: Path, tmp_path: Path) -> None:
    folder = make_run(model_folder, tmp_path / "absent.jsonl")
    assert work(folder, "all").returncode == 1
    assert folder.events()[0]["stages"] == ["train"]
    named = make_run(model_folder, tmp_path / "absent.jsonl", export={"name": "tiny"})
    assert work(named, "all").returncode == 1
    assert named.events()[0]["stages"] == ["train", "export"]
