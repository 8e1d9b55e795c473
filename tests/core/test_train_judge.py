"""When a run ends early, what is asked in between and what it costs, and the share of a card's arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.values import Lengths, Message, Row
from ollama_tune.core.machine.values import Gpu
from ollama_tune.core.plan.cards import gpu_of
from ollama_tune.core.plan.settings import Settings, TrainingSettings, parse
from ollama_tune.core.plan.utilisation import utilisation
from ollama_tune.core.runs.control import stages_left
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.core.train.checkpoint import TrainState
from ollama_tune.core.train.judge import (
    SAMPLE_SECONDS,
    SAMPLE_SHARE,
    Judge,
    Patience,
    Samples,
    in_parts,
    is_better,
)
from ollama_tune.core.train.measure import Held
from ollama_tune.core.train.session import Session, StopWish
from tests.cases import LLAMA_8B
from tests.core.loop_parts import Run
from tests.core.train_parts import curve, make_run, work, write_rows


def judged(losses: list[float | None], patience: Patience) -> tuple[TrainState, list[int]]:
    """The state after these evaluations, ten steps apart, and where the run would have ended."""
    state, ends = TrainState(), []
    for number, loss in enumerate(losses, start=1):
        state.step = 10 * number
        patience.note(state, loss)
        if patience.ended(state):
            ends.append(state.step)
    return state, ends


def test_a_run_ends_after_so_many_evaluations_without_a_better_loss() -> None:
    state, ends = judged([3.0, 2.0, 2.1, 2.2, 2.05], Patience(3, 0))
    assert ends == [50] and (state.fallen_step, state.fallen_loss, state.without_better) == (20, 2.0, 3)
    assert judged([3.0, 2.0, 2.1, 2.2, 1.9, 2.0, 2.0], Patience(3, 0))[1] == []


def test_a_fall_by_less_than_a_thousandth_is_none_but_several_together_are() -> None:
    assert judged([2.0, 1.9995, 1.9991], Patience(2, 0))[1] == [30]
    assert judged([2.0, 1.9985, 1.9975, 1.9965, 1.9950], Patience(2, 0))[1] == []


def test_a_loss_that_is_not_a_number_is_no_better_and_one_not_measured_says_nothing() -> None:
    assert judged([2.0, math.nan, math.nan], Patience(2, 0))[1] == [30]
    assert judged([2.0, None, None, None], Patience(2, 0))[1] == []
    assert not is_better(math.nan, None) and is_better(2.0, None) and not is_better(2.0, 2.0)


def test_the_beginning_does_not_count_and_zero_means_never() -> None:
    state, ends = judged([2.0, 2.5, 2.5, 2.5, 2.5], Patience(2, 30))
    assert ends == [50] and state.without_better == 2
    assert judged([2.0] * 20, Patience(0, 0))[1] == []


@pytest.mark.parametrize(
    ("epochs", "warmup", "first"), [(1.0, 0.05, 50), (4.0, 0.05, 25), (0.5, 0.0, 50), (20.0, 0.3, 30)]
)
def test_the_beginning_is_the_first_epoch_or_the_warm_up_and_at_most_half(
    epochs: float, warmup: float, first: int
) -> None:
    training = TrainingSettings(epochs=epochs, warmup=warmup, early_stopping=2)
    assert Patience.of(training, 100) == Patience(2, first)


def losses_of(run: Run, losses: dict[int, float]) -> None:
    """Let the held-out loss be what is given for a step."""
    run.trainer.mean_loss = lambda size, **_: losses[run.trainer.state.step]  # type: ignore[method-assign,assignment,misc]


FALLS_UNTIL_4 = {2: 3.0, 4: 2.0, 6: 2.1, 8: 2.2, 10: 2.3, 12: 2.4}


def test_the_loop_ends_early_keeps_the_best_and_says_why_with_the_figures(model_folder: Path) -> None:
    run = Run(model_folder, early_stopping=2)
    losses_of(run, FALLS_UNTIL_4)
    run.trainer.run()
    state = run.trainer.state
    assert (state.step, state.best_step, state.best_loss) == (10, 4, 2.0)
    told = [e.data for e in run.folder.events() if e.kind == "evaluation"]
    assert [e["without_better"] for e in told] == [0, 0, 0, 1, 2] and told[-1]["patience"] == 2
    assert run.trainer.judge.reason(state) == (
        "The held-out loss has not fallen since step 4 (2.0000) in 2 evaluations, so training ends at step "
        "10; the best state, of step 4, is kept (2.0000)."
    )
    assert (run.folder.checkpoints / "step-000004").is_dir()


def test_a_run_resumed_in_its_last_evaluations_ends_at_the_same_step(model_folder: Path) -> None:
    first = Run(model_folder, early_stopping=2)
    losses_of(first, FALLS_UNTIL_4)
    first.trainer.judge.ended = lambda state: state.step == 9  # type: ignore[method-assign]
    first.trainer.run()
    again = Run(model_folder, first.folder)
    losses_of(again, FALLS_UNTIL_4)
    again.resume()
    assert again.trainer.state.without_better == 1
    again.trainer.run()
    assert (again.trainer.state.step, again.trainer.state.without_better) == (10, 2)
    whole = Run(model_folder, early_stopping=2)
    losses_of(whole, FALLS_UNTIL_4)
    whole.trainer.run()
    assert curve(again.folder.events()) == curve(whole.folder.events())


def test_a_run_that_ended_early_trains_no_further_when_it_goes_on(model_folder: Path) -> None:
    run = Run(model_folder, early_stopping=2)
    losses_of(run, FALLS_UNTIL_4)
    run.trainer.run()
    again = Run(model_folder, run.folder)
    again.resume()
    again.trainer.run()
    assert again.trainer.state.step == 10 and max(curve(again.folder.events())) == 10


def test_a_worker_that_ends_early_is_done_and_nothing_is_left_to_resume(
    model_folder: Path, tmp_path: Path
) -> None:
    """A rate so small that nothing is learned: the loss cannot fall."""
    quick: dict[str, Any] = {"learning_rate": 1e-9, "early_stopping": 1, "epochs": 4.0}
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl", 24), training=quick)
    assert work(folder).returncode == 0
    events = folder.events()
    (early,) = [e for e in events if e.kind == "phase" and e["name"] == "early_stopping"]
    steps = [e["step"] for e in events if e.kind == "step"]
    total = next(e["total_steps"] for e in events if e.kind == "data")
    assert max(steps) == 10 < total and "in 1 evaluation, so training ends at step 10" in early["text"]
    assert events[-1].kind == "done" and events[-1]["early"] == early["text"] and events[-1]["steps"] == 10
    assert stages_left(events) == []


class Asked:
    """Answers after a given time, on a clock of its own."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds, self.calls = 0.0, seconds, 0

    def greedy(
        self, prompts: Any, most: int, *, tuned: bool, stopped: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        assert tuned and most == 16
        self.calls += 1
        for _ in range(10):
            self.now += self.seconds / 10
            if stopped():
                break
        return [_Answer("yes", ended=True) for _ in prompts]


@dataclasses.dataclass
class _Answer:
    text: str
    ended: bool


def asked(seconds: float) -> tuple[RunFolder, Asked, Samples]:
    folder = create_run(parse({"evaluation": {"max_new_tokens": 16}}), "ask")
    turns = [(Message("user", f"Question {n}?"), Message("assistant", "yes")) for n in range(5)]
    rows = tuple(Row(pair, line) for line, pair in enumerate(turns, start=1))
    generator = Asked(seconds)
    held = Held(rows, tuple((1, 2, n) for n in range(5)))
    session = Session(folder, StopWish(folder))
    session.emit("sample", prompt="Question 1?", reference="yes", base="I do not know.", tuned=None)
    return folder, generator, Samples(session, held, generator, lambda: generator.now)  # type: ignore[arg-type]


def test_three_questions_are_asked_and_the_answer_of_the_base_stands_beside() -> None:
    folder, _, samples = asked(0.1)
    samples.earn(60.0)
    samples.ask(20)
    told = [event.data for event in folder.events()][1:]
    assert [e["prompt"] for e in told] == ["Question 0?", "Question 1?", "Question 2?"]
    assert [e["base"] for e in told] == [None, "I do not know.", None]
    assert all((e["step"], e["tuned"], e["cut"]) == (20, "yes", False) for e in told)


def test_answers_end_when_the_time_that_steps_earned_is_spent() -> None:
    _, generator, samples = asked(100.0)
    trained = spent = 0.0
    for step in range(1, 200):
        samples.earn(5.0)
        trained += 5.0
        if step % 10 == 0:
            samples.ask(step)
            spent = generator.now
    assert generator.calls >= 2
    most = SAMPLE_SECONDS + SAMPLE_SHARE * trained
    assert spent <= most + 10.0, "at most one token (ten seconds here) too many"


def test_nothing_is_asked_where_the_last_answers_cost_more_than_was_earned() -> None:
    _, generator, samples = asked(100.0)
    for step in (1, 2, 3):
        samples.earn(10.0)
        samples.ask(step)
    assert generator.calls == 1


def test_a_run_of_some_seconds_has_time_for_whole_answers() -> None:
    folder, generator, samples = asked(0.2)
    for step in (10, 20, 30):
        samples.earn(0.5)
        samples.ask(step)
    told = [event for event in folder.events() if event.data.get("step")]
    assert generator.calls == 3 and generator.now == pytest.approx(0.6) and len(told) == 9


def test_a_judge_without_questions_and_without_a_known_card_tells_nothing_more() -> None:
    folder = create_run(parse({}), "judge")
    judge = Judge(Session(folder, StopWish(folder)), 100)
    assert judge.step(1000, 1.0) == {}
    judge.sample(TrainState(step=10))
    assert folder.events() == []


LENGTHS = Lengths(1000, 2_048_000, 1_126_400, 2048, 2048, 2048, 2048)


def used(gpu: Gpu | None, **training: Any) -> Any:
    settings = Settings().with_values(
        {f"training.{name}": value for name, value in training.items()} | {"training.sequence_length": 2048}
    )
    return utilisation(settings, LLAMA_8B, LENGTHS, gpu)


def test_the_arithmetic_of_an_8b_is_what_the_formula_gives_and_recomputation_adds_nothing() -> None:
    """31.2 GFLOP a token at 2,048 tokens, 55 % of them supervised (forward and backward to activations)."""
    found = used(gpu_of("H200"), device="cuda", compute_dtype="bfloat16", gradient_checkpointing="layers")
    assert found.flops_per_token == pytest.approx(31.2e9, rel=0.02)
    assert (found.card, found.peak_flops) == ("H200", 989e12)
    assert found.share(20_000, 1.0) == pytest.approx(0.63, abs=0.02)
    assert found.share(20_000, 0.0) is None


def test_a_share_is_told_only_where_a_published_rate_belongs_to_the_arithmetic() -> None:
    wanted = {"device": "cuda", "compute_dtype": "bfloat16"}
    assert used(gpu_of("24GiB"), **wanted) is None
    assert used(None, **wanted) is None
    assert used(gpu_of("H200"), device="cuda", compute_dtype="float32") is None
    assert used(gpu_of("H200"), device="cpu", compute_dtype="bfloat16") is None
    half = dataclasses.replace(gpu_of("H200"), mig=True, total=gpu_of("H200").total // 2)
    assert used(half, **wanted).peak_flops == pytest.approx(989e12 / 2)


def test_the_peak_is_told_by_part_and_the_rest_of_it_is_activations() -> None:
    fixed = {"weights": 100, "adapter": 10, "gradients": 10, "optimizer": 20}
    assert in_parts({"peak": 200}, fixed)["parts"] == fixed | {"activations": 60}
    assert in_parts({"peak": 90}, fixed)["parts"]["activations"] == 0
    on_gpu = in_parts({"peak": 200, "allocated": 170}, fixed)["parts"]
    assert (on_gpu["activations"], on_gpu["cache"]) == (30, 30) and sum(on_gpu.values()) == 200
