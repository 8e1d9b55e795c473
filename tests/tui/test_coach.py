from __future__ import annotations

import math
import random

import pytest

from ollama_tune.core.runs.events import Event
from ollama_tune.tui.coach import advise
from ollama_tune.tui.course import noise_of
from ollama_tune.tui.run_values import Patience, ValidationPoint
from ollama_tune.tui.run_view import RunView

from .coach_curves import KINDS, RECORDED, draw_run, real_run, turns, verdicts

SIGNS = "✓·!✗"
SHORT_FALL = [
    10.5,
    10.9,
    10.2,
    10.6,
    10.1,
    10.4,
    9.8,
    10.3,
    9.9,
    9.6,
    10.1,
    9.5,
    9.7,
    9.3,
    9.8,
    9.4,
    9.2,
    9.5,
]
"""18 steps that scatter as much as they fall: the held-out loss went from 10.4 to 9.5 in them."""


def view_of(losses: list[float], total: int, norm: float = 1.0) -> RunView:
    """A run whose steps had these losses."""
    view = RunView()
    view.total_steps = total
    for step, loss in enumerate(losses, start=1):
        view.step, view.loss = step, loss
        view.losses.add(step, loss)
        view.norms.add(step, norm)
        view.rates.add(step, 2e-4)
    return view


@pytest.mark.parametrize("name", KINDS)
def test_of_random_runs_of_a_kind_at_most_one_in_ten_is_misjudged(name: str) -> None:
    kind = KINDS[name]
    said = [verdicts(kind, seed) for seed in range(20)]
    wrong = [kinds[-1] for kinds in said if kinds[-1] not in kind.right]
    assert len(wrong) <= 2, wrong
    assert sum(turns(kinds) for kinds in said) / len(said) < 1.5


def test_no_random_run_is_called_good_that_rises_or_bad_that_falls() -> None:
    bad = {"too_high", "overfitting", "flat", "slow"}
    assert not [k for seed in range(20, 40) if (k := verdicts(KINDS["falling"], seed)[-1]) in bad]
    assert not [k for seed in range(20, 40) if (k := verdicts(KINDS["rising"], seed)[-1]) == "falling"]


@pytest.mark.parametrize(
    ("name", "during", "end"),
    [
        ("sensible", {"started", "falling", "learned"}, {"learned"}),
        ("rate 30 times too high", {"started", "falling", "unstable", "too_high"}, {"too_high"}),
        ("rate 10 times too high", {"started", "falling", "unstable", "too_high"}, {"too_high"}),
        ("rate 100 times too low", {"started", "falling", "flat", "slow"}, {"slow"}),
        ("few rows, many epochs", {"started", "falling", "by_heart", "overfitting"}, {"overfitting"}),
    ],
)
def test_the_verdict_on_a_real_run_is_right(name: str, during: set[str], end: set[str]) -> None:
    said = [advice.kind for view in real_run(name) if (advice := advise(view))]
    assert set(said) <= during
    assert said[-1] in end
    assert turns(said) <= 3
    assert RECORDED.stat().st_size < 40_000


def test_the_sentence_names_the_step_and_fits_a_line() -> None:
    *_, view = real_run("few rows, many epochs")
    advice = advise(view)
    assert advice is not None and advice.sign == "!"
    assert advice.sentence == "Overfitting since step 30: held-out loss rises, training loss falls."
    assert advice.advice == "Step 30 is kept. Next time fewer epochs, or more rows."


def test_a_rate_too_high_gets_a_figure_to_try_instead() -> None:
    *_, view = real_run("rate 30 times too high")
    advice = advise(view)
    assert advice is not None and advice.sign == "✗"
    assert "Learning rate too high." in advice.sentence
    assert "0.02 or less (it was 0.075)" in advice.advice


@pytest.mark.parametrize("name", KINDS)
def test_every_sentence_fits_and_has_a_sign_and_an_advice(name: str) -> None:
    for seed in (50, 51):
        for view in draw_run(KINDS[name], random.Random(seed)):
            advice = advise(view)
            assert advice is not None and advice.sign in SIGNS
            assert len(advice.sentence) <= 80 and 0 < len(advice.advice) <= 80, advice


def test_before_the_first_step_and_of_an_imported_adapter_nothing_is_said() -> None:
    view = RunView()
    assert advise(view) is None
    view.done["train"] = Event(0, 0.0, "done", {"stage": "train"})
    assert advise(view) is None


def test_a_few_steps_are_too_early_to_say_whatever_they_look_like() -> None:
    advice = advise(view_of([3.0, 9.0, 2.0, 12.0, 30.0], total=400))
    assert advice is not None and advice.kind == "started"
    assert "step 5 of 400" in advice.sentence


def test_a_loss_that_is_not_a_number_is_said_at_once() -> None:
    view = view_of([3.0 - step / 100 for step in range(100)], total=400)
    view.step, view.loss = 101, None
    advice = advise(view)
    assert advice is not None and advice.kind == "not_a_number" and "step 101" in advice.sentence


def test_early_stopping_is_announced_one_measurement_ahead() -> None:
    random.seed(5)
    view = view_of([1.0 + 2 * math.exp(-step / 20) + random.gauss(0, 0.02) for step in range(300)], 400)
    for step in range(50, 301, 50):
        view.validation[step] = ValidationPoint(step, 1.1 + 0.0001 * (step > 100), None)
    view.patience = Patience(2, 3)
    advice = advise(view)
    assert advice is not None and advice.kind == "waiting"
    assert "2 of 3 evaluations" in advice.sentence and "one more ends the run" in advice.advice


def test_a_finished_run_hears_of_its_best_step_and_not_of_stopping() -> None:
    *_, view = draw_run(KINDS["level"], random.Random(2))
    view.done["train"] = Event(0, 0.0, "done", {"stage": "train"})
    best = min((point.loss, step) for step, point in view.validation.items() if step)[1]
    advice = advise(view)
    assert advice is not None and advice.kind == "finished"
    assert f"step {best:,}" in advice.advice and "Stop" not in advice.advice


def test_losses_near_zero_need_no_advice_however_they_jump() -> None:
    random.seed(1)
    losses = [max(3 * math.exp(-step / 15), 0.002) * math.exp(random.gauss(0, 1.0)) for step in range(300)]
    view = view_of(losses, 400)
    for step in range(40, 301, 40):
        view.validation[step] = ValidationPoint(step, 0.01 * math.exp(random.gauss(0, 0.5)), None)
    advice = advise(view)
    assert advice is not None and advice.kind == "learned"


def test_one_outlier_does_not_turn_a_verdict() -> None:
    *_, view = draw_run(KINDS["falling"], random.Random(4))
    before = advise(view)
    view.step += 1
    view.losses.add(view.step, 1000.0)
    view.norms.add(view.step, 1000.0)
    after = advise(view)
    assert before is not None and after is not None
    assert before.kind == after.kind == "falling"


def test_noise_is_measured_beside_a_slope_and_an_outlier() -> None:
    random.seed(3)
    values = [0.1 * step + random.gauss(0, 0.05) for step in range(200)]
    values[100] = 50.0
    assert noise_of(values) == pytest.approx(0.05, rel=0.25)


def test_pairs_at_their_best_at_the_end_are_not_sent_for_more_epochs() -> None:
    view = view_of([0.69 * 0.97**step for step in range(96)], total=96)
    view.done["train"] = Event(0, 0.0, "done", {"stage": "train", "steps": 96})
    for step in (0, 32, 64, 96):
        view.validation[step] = ValidationPoint(step, 0.69 * 0.97**step, None)
    said = advise(view)
    assert said is not None and "more epochs may bring more" in said.advice
    view.pairs = True
    said = advise(view)
    assert said is not None and "learn the better answers first" in said.advice


def told_of(losses: list[float], held: dict[int, float]) -> list[str]:
    """What is said after every step of a run with these losses, and at its end."""
    view, said = view_of([], total=len(losses)), []
    view.validation_rows = len(held)
    for step, loss in enumerate(losses, start=1):
        view.step, view.loss = step, loss
        for curve, value in ((view.losses, loss), (view.norms, 1.0), (view.rates, 2e-4)):
            curve.add(step, value)
        view.validation |= {
            at: ValidationPoint(at, figure, None) for at, figure in held.items() if at <= step
        }
        said.append(advise(view))
    view.done["train"] = Event(0, 0.0, "done", {"stage": "train"})
    return [f"{advice.sentence} {advice.advice}" for advice in (*said, advise(view)) if advice]


def test_a_short_run_is_not_told_that_it_learns_nothing_nor_that_all_is_learned() -> None:
    said = told_of(SHORT_FALL, {0: 10.4, 18: 9.5})
    assert not [words for words in said if "Nothing is learned" in words or "Levelled off" in words]
    assert said[-1].startswith("Learning is slow: loss 10.5")
    assert "More epochs, or a higher learning rate (0.0006), would go further." in said[-1]


def test_a_long_run_is_not_told_that_it_learns_nothing_before_a_quarter_of_its_steps() -> None:
    random.seed(3)
    said = told_of([3.0 + random.gauss(0, 0.02) for _ in range(240)], {})
    first = next(at for at, words in enumerate(said) if words.startswith(("Nothing is", "Levelled off")))
    assert 60 <= first + 1 < 80


def test_a_loss_that_scatters_widely_is_not_called_level() -> None:
    random.seed(3)
    said = told_of([3.0 * math.exp(random.gauss(0, 1.2)) for _ in range(120)], {})
    assert not [words for words in said[:-1] if "Levelled off" in words]


def test_a_handful_of_steps_ends_with_what_the_held_out_rows_say() -> None:
    losses = SHORT_FALL[:6]
    assert "held-out loss 10.40 before, 4.40 now. More epochs may" in told_of(losses, {0: 10.4, 6: 4.4})[-1]
    assert "taught next to nothing: more epochs" in told_of(losses, {0: 10.4, 6: 10.39})[-1]
    assert "6 steps: too few to say" in told_of(losses, {})[-1]


def test_a_fall_that_is_known_is_not_called_too_early_later() -> None:
    random.seed(11)
    losses = [3.0 + 7 * math.exp(-step / 6) + random.gauss(0, 0.1) for step in range(40)]
    said = told_of(losses + [losses[-1]] * 160, {})
    fell = next(at for at, words in enumerate(said) if words.startswith("Falling well"))
    assert not [words for words in said[fell:] if "Too early" in words]
    assert any(words.startswith("So far: loss 9.") for words in said[fell:])


def test_a_held_out_loss_that_climbs_three_times_is_overfitting_however_steeply_it_fell_before() -> None:
    losses = [12 * math.exp(-step / 15) + 0.4 for step in range(100)]
    held = {0: 12.7, 20: 2.85, 40: 1.82, 60: 1.84, 80: 2.12, 100: 2.48}
    assert told_of(losses, held)[-1].startswith("Overfitting since step 40")


def test_rows_are_not_called_known_by_heart_while_the_first_measurement_is_awaited() -> None:
    losses = [0.7 * math.exp(-step / 5) for step in range(30)]
    said = told_of(losses, {0: 0.7, 21: 0.03})
    assert not [words for words in said if "by heart" in words]
    assert any(words.startswith("Learned") for words in said)
