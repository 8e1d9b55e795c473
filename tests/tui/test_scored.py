"""A metric that decides in place of the loss is shown wherever a run is followed."""

from __future__ import annotations

from ollama_tune.core.plan.duration import estimate
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.events import Event
from ollama_tune.core.runs.tracking import FIGURES
from ollama_tune.tui.coach import advise
from ollama_tune.tui.follow import Follower
from ollama_tune.tui.run_values import Scored
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.training_lines import Sparks, figures
from tests.cases import LLAMA_8B, SHORT, machine
from tests.tui.coach_curves import real_run


def evaluation(n: int, step: int, loss: float, score: float, best: tuple[int, float], waited: int) -> Event:
    data = {"step": step, "loss": loss, "exact_match": None, "rows": 40, "model": "tuned"}
    told = {"best_step": best[0], "best_loss": 1.0, "without_better": waited, "patience": 3}
    scored = {"metric": "exact_match", "score": score, "best_score": best[1], "score_rows": 32}
    return Event(n, float(n), "evaluation", data | told | scored)


STEP = {"total_steps": 100, "epoch": 1.0, "learning_rate": 1e-4, "gradient_norm": 1.0}


def step(n: int, at: int) -> Event:
    data = STEP | {"step": at, "loss": 2.0, "useful_tokens": 100, "seconds": 1.0}
    return Event(n, float(n), "step", data)


EVENTS = [
    step(0, 10),
    evaluation(1, 10, 1.5, 0.25, (10, 0.25), 0),
    Event(2, 2.0, "checkpoint", {"step": 10, "bytes": 1, "best": True, "reason": "evaluation"}),
    step(3, 20),
    evaluation(4, 20, 1.2, 0.125, (10, 0.25), 1),
]


def test_the_training_screen_names_the_metric_its_best_figure_and_the_step() -> None:
    view = RunView()
    view.fold(EVENTS)
    lines = [str(line) for line in figures(view, 30.0, going=True, sparks=Sparks())]
    assert "exact match 12.5 %" in lines[0]
    (best,) = [line for line in lines if line.startswith("best ")]
    assert best.startswith("best exact match 25.0 % at step 10") and "1 of 3 evaluations" in best
    assert any("exact match 12.5 %" in entry.text for entry in view.log)


def test_plain_lines_tell_the_score_and_the_end_names_it() -> None:
    said: list[str] = []
    follower = Follower(said.append)
    done = {"stage": "train", "steps": 20, "best_step": 10, "best_loss": 1.5}
    for event in [*EVENTS, Event(5, 5.0, "done", done)]:
        follower.show(event)
    assert any("exact match 12.5 % of 32 questions, 1 of 3 evaluations no better" in line for line in said)
    assert "step 10, exact match 25.0 %, held-out loss 1.5000." in said[-1]


def test_the_coach_speaks_of_the_state_that_is_kept() -> None:
    """The held-out loss rises from step 30 on; the answers were best at 70."""
    *_, view = real_run("few rows, many epochs")
    view.scored = Scored("exact_match", 0.25, 0.5, 70)
    advice = advise(view)
    assert advice is not None and advice.sentence.startswith("Overfitting since step 30")
    assert advice.advice.startswith("Step 70 is kept.")


def test_trackers_get_the_score_as_a_series_of_its_own() -> None:
    assert FIGURES["evaluation"](EVENTS[-1]) == {
        "evaluation/loss": 1.2,
        "evaluation/exact_match": 0.125,
    }


def test_the_plan_counts_the_answers_of_every_measurement() -> None:
    box, plain = machine(gpu=24), Settings().with_values({"training.device": "cuda"})
    seconds = [
        estimate(plain.with_value("training.early_stopping_metric", metric), LLAMA_8B, SHORT, box).seconds
        for metric in ("loss", "accuracy", "chrf")
    ]
    assert seconds[0] < seconds[1] < seconds[2]
    capped = plain.with_values({"training.early_stopping_metric": "chrf", "evaluation.rows": 4096})
    many = estimate(capped, LLAMA_8B, SHORT, box).seconds
    assert many - estimate(plain.with_value("evaluation.rows", 4096), LLAMA_8B, SHORT, box).seconds > 0
