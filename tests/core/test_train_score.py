"""Another metric than the loss decides: what is best, when a run ends, and that a resume changes nothing."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.evaluation import Wish, evaluate
from ollama_tune.core.plan.settings import TrainingSettings, parse
from ollama_tune.core.runs.events import Event, effective
from ollama_tune.core.runs.folder import RunFolder, State, create_run
from ollama_tune.core.train.checkpoint import TrainState
from ollama_tune.core.train.judge import Judge, Patience, is_better
from ollama_tune.core.train.session import Session, StopWish
from tests.core.train_parts import curve, make_run, wait_for, write_rows
from tests.forked import ForkServer
from tests.train_faults import stop_at


def test_a_score_decides_and_equal_ones_are_told_apart_by_the_loss() -> None:
    assert is_better(3.0, 2.0, 0.5, 0.4) and not is_better(1.0, 2.0, 0.4, 0.5)
    assert is_better(1.0, 2.0, 0.5, 0.5) and not is_better(2.0, 2.0, 0.5, 0.5)
    assert is_better(9.0, None, 0.0, None) and not is_better(float("nan"), 2.0, 0.9, 0.5)


def test_patience_counts_scores_and_forgives_equal_ones_while_the_loss_falls() -> None:
    def waited(*measured: tuple[float, float]) -> list[int]:
        state, patience, found = TrainState(), Patience(9, 0), []
        for state.step, (loss, score) in enumerate(measured, start=1):
            patience.note(state, loss, score)
            found.append(state.without_better)
        return found

    assert waited((2.0, 0.5), (1.0, 0.4), (0.5, 0.3), (3.0, 0.6)) == [0, 1, 2, 0]
    assert waited((2.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.5, 0.0)) == [0, 0, 0, 1]


def test_the_end_is_told_in_the_words_of_the_metric() -> None:
    class Scores:
        metric = type("Named", (), {"name": "exact_match"})
        rows = 4
        found = iter([0.25, 0.5, 0.25])

        def score(self) -> float:
            return next(self.found)

    folder = create_run(parse({"training": {"early_stopping": 1, "warmup": 0.0, "epochs": 9.0}}), "judge")
    judge, state = Judge(Session(folder, StopWish(folder)), 9), TrainState()
    judge.score_by(Scores())  # type: ignore[arg-type]
    told: dict[str, Any] = {}
    for state.step, loss in ((2, 3.0), (4, 2.0), (6, 1.0)):
        _, told = judge.measured(state, loss)
    assert (state.best_step, state.best_loss, state.best_score) == (4, 2.0, 0.5)
    assert (told["metric"], told["score"], told["best_score"]) == ("exact_match", 0.25, 0.5)
    assert told["score_rows"] == 4
    assert judge.reason(state) == (
        "The exact match has not risen since step 4 (50.0 %) in 1 evaluation, so training ends at step 6; "
        "the best state, of step 4, is kept (50.0 %)."
    )


def test_what_cannot_decide_is_refused_before_there_is_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_bleu = parse({"training": {"early_stopping_metric": "bleu"}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(TuneError, match=r"sacrebleu.*ollama-tune\[evaluate\]"):
        create_run(by_bleu, "bleu")
    with pytest.raises(UsageError, match="questions to ask"):
        by_bleu.with_value("evaluation.rows", 0)
    assert not list((tmp_path / "tune-home").glob("data/runs/*"))
    assert TrainingSettings().early_stopping_metric == "loss"


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("score")


@pytest.fixture(autouse=True)
def _home(home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        monkeypatch.setenv("OLLAMA_TUNE_HOME", str(home))


def by_metric(model: Path, data: Path, metric: str, **training: Any) -> RunFolder:
    wanted = {"early_stopping_metric": metric, "evaluation_interval": 4, "early_stopping": 0} | training
    return make_run(model, data, training=wanted, evaluation={"rows": 64, "max_new_tokens": 8})


def finished(server: ForkServer, folder: RunFolder) -> RunFolder:
    server.start(folder)
    wait_for(lambda: folder.status().state in (State.FINISHED, State.FAILED))
    return folder


def scores(events: list[Event]) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "metric", "score", "best_score", "best_step", "score_rows", "without_better")
    found = effective(events)
    return [tuple(e[n] for n in names) for e in found if e.kind == "evaluation" and e.get("metric")]


@pytest.mark.usefixtures("here")
def test_the_best_answers_are_kept_as_evaluate_counts_them_and_a_resume_changes_nothing(
    server: ForkServer, model_folder: Path, home: Path
) -> None:
    """Stopped at two places: among the steps, and while the questions of a measurement are answered."""
    data = write_rows(home / "rows.jsonl", 40)
    whole = finished(server, by_metric(model_folder, data, "chrf"))
    told = scores(whole.events())
    assert len(told) >= 4 and {entry[2] for entry in told} == {"chrf"} and told[0][6] == 8
    done = whole.events()[-1]
    best = max(told, key=lambda entry: (entry[3], -entry[1]))
    assert (done["best_step"], done["best_loss"]) == (best[0], best[1])
    (result,) = evaluate(whole, Wish(limit=0, metrics=("chrf",))).results
    assert result.models[1] is not None and result.rows == 8
    assert result.models[1].value == pytest.approx(best[3], abs=1e-9)

    again = by_metric(model_folder, data, "chrf")
    for steps in (5, 8):
        stop_at(again.path, steps)
        server.start(again)
        wait_for(lambda: any(e.kind == "stopped" and e["step"] >= steps for e in again.events()))  # noqa: B023
        wait_for(lambda: not again.alive())
        assert again.status().state is State.STOPPED
    finished(server, again)
    assert curve(again.events()) == curve(whole.events())
    assert scores(again.events()) == told
    named = "adapter_model.safetensors"
    assert (again.adapter / named).read_bytes() == (whole.adapter / named).read_bytes()


def test_labels_are_weighed_by_likelihood_and_other_rows_refused_before_the_model_is_loaded(
    server: ForkServer, model_folder: Path, home: Path
) -> None:
    chance = random.Random(5)
    drawn = chance.choices([("no", "sky"), ("tomorrow it is", "birds")], k=60)
    lines = [
        json.dumps({"text": f"{number} {word}", "label": label}) for number, (label, word) in enumerate(drawn)
    ]
    (home / "labels.jsonl").write_text("\n".join(lines))
    told = scores(finished(server, by_metric(model_folder, home / "labels.jsonl", "macro_f1")).events())
    assert told and all(0 <= entry[3] <= 1 and entry[6] == 12 for entry in told)
    assert told[-1][4] == max(entry[3] for entry in told) > 0.3

    wrong = finished(server, by_metric(model_folder, write_rows(home / "texts.jsonl"), "accuracy"))
    events = wrong.events()
    assert events[-1].kind == "error" and "fixed set of labels" in events[-1]["what"]
    assert "loading_model" not in [e.get("name") for e in events if e.kind == "phase"]
