"""A figure to stop by that the data does not have: told by plan, Review and run before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from ollama_tune.core.data.load import load_dataset, peek
from ollama_tune.core.data.values import RowKind
from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.room import check_run
from ollama_tune.core.plan.settings import Settings, StoppingMetric
from ollama_tune.core.plan.stopping import OF_LABELS, metric_obstacle, require_measurable
from ollama_tune.tui.cli import cli
from tests.cases import SHORT, TINY, lengths, machine

METRIC = "training.early_stopping_metric"
OF_ANSWERS = tuple(metric for metric in get_args(StoppingMetric) if metric not in (*OF_LABELS, "loss"))
POSSIBLE: dict[RowKind, tuple[str, ...]] = {
    "": get_args(StoppingMetric),
    "classification": get_args(StoppingMetric),
    "chat": ("loss", *OF_ANSWERS),
    "text": ("loss",),
}
ROWS: dict[RowKind, dict[str, Any]] = {
    "classification": {"text": "a nice day", "label": "good"},
    "chat": {"question": "Why?", "answer": "So."},
    "text": {"text": "A long story about nothing. " * 3},
}
PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def write(path: Path, row: dict[str, Any], count: int = 30) -> Path:
    def varied(at: int) -> dict[str, Any]:
        label = {"label": ("good", "bad")[at % 2]} if "label" in row else {}
        return {name: f"{cell} {at}" for name, cell in row.items()} | label

    path.write_text("".join(json.dumps(varied(at)) + "\n" for at in range(count)))
    return path


@pytest.mark.parametrize("kind", POSSIBLE)
def test_the_table_of_figures_and_rows(kind: RowKind) -> None:
    for metric in get_args(StoppingMetric):
        assert (metric_obstacle(metric, kind) is None) == (metric in POSSIBLE[kind])
        warnings = make_plan(machine(), TINY, replace(SHORT, kind=kind), {METRIC: metric}).warnings
        assert any(text.startswith(f"{METRIC} is {metric}") for text in warnings) != (
            metric in POSSIBLE[kind]
        )


def test_pairs_are_asked_like_other_rows_and_have_no_labels() -> None:
    data = replace(SHORT, pairs=replace(lengths(400), sides=SHORT), kind="chat")
    told = {
        metric: make_plan(machine(), TINY, data, {METRIC: metric}).warnings
        for metric in get_args(StoppingMetric)
    }
    assert make_plan(machine(), TINY, data, {}).settings.training.objective == "dpo"
    assert {metric for metric, texts in told.items() if any(METRIC in text for text in texts)} == {*OF_LABELS}


def test_a_figure_without_held_out_rows_decides_nothing() -> None:
    values = {METRIC: "exact_match", "data.validation_split": 0.0}
    (told,) = (text for text in make_plan(machine(), TINY, SHORT, values).warnings if METRIC in text)
    assert "decides nothing" in told and "data.validation_split above 0" in told
    named = make_plan(machine(), TINY, SHORT, values | {"data.validation": "test"}).warnings
    assert not any(METRIC in text for text in named)


@pytest.mark.parametrize("kind", ROWS)
def test_what_rows_are_is_told_by_all_of_them_and_by_the_first(kind: RowKind, tmp_path: Path) -> None:
    path = str(write(tmp_path / "rows.jsonl", ROWS[kind]))
    assert peek(path).kind == load_dataset(path).kind == kind
    assert load_dataset(str(write(tmp_path / "pairs.jsonl", PAIR))).kind == "chat"


def test_a_run_is_refused_before_its_folder_is_made(tmp_path: Path, model_folder: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS["chat"])
    settings = Settings().with_values({"data.path": str(path), "model.source": str(model_folder)})
    check_run(settings.with_values({METRIC: "exact_match"}))
    with pytest.raises(UsageError, match="accuracy, which is measured on rows with a label"):
        check_run(settings.with_values({METRIC: "accuracy"}))
    with pytest.raises(UsageError, match="nobody asks"):
        require_measurable("chrf", "text")
    file = tmp_path / "run.yaml"
    settings.with_values({METRIC: "macro_f1"}).save(file)
    done = CliRunner().invoke(cli, ["run", str(file), "--json"])
    assert done.exit_code != 0 and "Run folder" not in done.output + done.stderr


def test_the_command_plan_tells_it(tmp_path: Path, model_folder: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS["chat"])
    asked = [
        "plan",
        "--model",
        str(model_folder),
        "--data",
        str(path),
        "--set",
        f"{METRIC}=accuracy",
        "--json",
    ]
    told = json.loads(CliRunner().invoke(cli, asked, catch_exceptions=False).stdout)["warnings"]
    assert any(text.startswith(f"{METRIC} is accuracy") for text in told)
