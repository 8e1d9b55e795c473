"""Metrics, intervals and tests, against sacrebleu, scikit-learn's definitions and hand arithmetic."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.figures import (
    Answers,
    Labels,
    Losses,
    Metric,
    chosen_metrics,
    confusion,
    tokenizer_for,
)
from ollama_tune.core.evaluate.resample import (
    LEAST,
    exponential,
    exponential_change,
    interval,
    mcnemar,
    paired,
    student,
)

WANTED = ["The cat is on the mat.", "It is blue today, I think.", "Пять птиц летят над гаванью.", "42"]
SAID = ["The cat sat on the mat.", "It is blue.", "Пять птиц над старой гаванью.", "41"]


def metric(name: str, references: list[str] = WANTED, labels: bool = False) -> Metric:
    (found,), _ = chosen_metrics([name], references, labels)
    return found


def value(found: Metric, rows: Any) -> float:
    return float(found.value(found.statistics(rows).sum(0)[None])[0])


@pytest.mark.parametrize(
    ("said", "wanted", "tokenizer"),
    [
        (SAID, WANTED, "13a"),
        (["今天天气很好。", "我去学校"], ["今天的天气好。", "我昨天去了学校"], "zh"),
        (["東京は大きいです", "それは高い"], ["東京はとても大きい", "タワーは高いです"], "char"),
    ],
)
def test_bleu_and_chrf_are_those_of_sacrebleu(said: list[str], wanted: list[str], tokenizer: str) -> None:
    answers = Answers(said, wanted)
    assert tokenizer_for(wanted) == tokenizer
    bleu = BLEU(tokenize=tokenizer)
    assert value(metric("bleu", wanted), answers) == pytest.approx(bleu.corpus_score(said, [wanted]).score)
    assert value(metric("chrf", wanted), answers) == pytest.approx(CHRF().corpus_score(said, [wanted]).score)
    assert f"tok:{tokenizer}|" in metric("bleu", wanted).signature
    assert "nc:6" in metric("chrf", wanted).signature


def test_loss_is_a_mean_over_tokens_and_perplexity_its_exponential() -> None:
    losses = Losses([3.0, 1.0], [1, 3])
    assert value(metric("loss"), losses) == 1.0
    assert value(metric("perplexity"), losses) == pytest.approx(math.e)


def test_label_figures_equal_scikit_learns_on_a_fixed_case() -> None:
    """Of 8 rows 5 are right. By label: P, R = 2/3, 2/3; 2/2, 2/3; 1/3, 1/2; so F1 = 2/3, 4/5, 2/5.

    The fourth label neither occurs nor is said and counts in no mean.
    """
    right = [0, 0, 0, 1, 1, 1, 2, 2]
    said = [0, 0, 2, 1, 1, 2, 2, 0]
    labels = Labels(said, right, 4)
    assert value(metric("accuracy", labels=True), labels) == 5 / 8
    assert value(metric("macro_f1", labels=True), labels) == pytest.approx((2 / 3 + 4 / 5 + 2 / 5) / 3)
    assert confusion(labels) == [[2, 0, 1, 0], [0, 2, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_the_usual_metrics_fit_the_data_and_wrong_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, said = chosen_metrics([], WANTED, False)
    names = ["loss", "perplexity", "exact_match", "token_f1", "rouge_l", "bleu", "chrf"]
    assert [found.name for found in texts] == names and not said
    labels, _ = chosen_metrics([], ["a", "b"], True)
    assert [found.name for found in labels] == ["loss", "perplexity", "accuracy", "macro_f1", "exact_match"]
    with pytest.raises(UsageError, match="no metric 'f2'"):
        chosen_metrics(["f2"], WANTED, False)
    with pytest.raises(UsageError, match="fixed set of labels"):
        chosen_metrics(["accuracy"], WANTED, False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    texts, said = chosen_metrics([], WANTED, False)
    assert [found.name for found in texts] == names[:-2] and "ollama-tune[evaluate]" in said[0]
    with pytest.raises(TuneError, match=r"pip install 'ollama-tune\[evaluate\]'"):
        chosen_metrics(["bleu"], WANTED, False)


def hits(*values: float) -> Any:
    return np.array([(value, 1.0) for value in values])


def mean(sums: Any) -> Any:
    return sums[:, 0] / sums[:, 1]


FREE, ABOVE, SHARE = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 25)
    found = interval(hits(*values), mean, FREE)
    half = 2.0639 * values.std(ddof=1) / 5
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-4)
    assert interval(hits(*values), mean, FREE) == found
    above = interval(hits(*values), mean, ABOVE)
    stretched = math.exp(half / found.value)
    assert (above.low, above.high) == pytest.approx(
        (found.value / stretched, found.value * stretched), rel=1e-4
    )


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(4, 2.7764), (5, 2.5706), (9, 2.2622), (29, 2.0452), (199, 1.9720)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=3e-3 if freedom < 6 else 3e-4)


def test_what_all_rows_say_is_no_certainty() -> None:
    """Of 30 rows none is wrong: 11.6 % may be, by Clopper and Pearson; and so with two models that agree."""
    found = interval(hits(*[1] * 30), mean, SHARE)
    assert (found.low, found.value, found.high) == pytest.approx((0.8843, 1.0, 1.0), abs=1e-4)
    half = interval(hits(*[0.5] * 30), mean, SHARE)
    assert (half.low, half.high) == pytest.approx((0.4421, 0.5579), abs=1e-4)
    same = paired(hits(*[1] * 30), hits(*[1] * 30), mean, SHARE)
    assert (same.low, same.value, same.high) == pytest.approx((-0.1157, 0.0, 0.1157), abs=1e-4)
    gained = paired(hits(*[0] * 30), hits(*[1] * 30), mean, SHARE)
    assert (gained.low, gained.high) == pytest.approx((0.7686, 1.0), abs=1e-4) and gained.clear
    assert not interval(hits(*[2.0] * 30), mean, ABOVE).known, "a loss has no largest value to reckon with"


@pytest.mark.parametrize("bounds", [SHARE, ABOVE, FREE])
def test_too_few_rows_tell_no_interval(bounds: tuple[float, float]) -> None:
    found = [interval(hits(*[0.25, 0.5] * LEAST)[:rows], mean, bounds) for rows in range(1, LEAST + 1)]
    assert [one.known for one in found] == [False] * (LEAST - 1) + [True]
    assert not paired(hits(0.25), hits(0.5), mean, bounds).known


def test_an_interval_never_leaves_what_is_possible() -> None:
    rows = np.random.default_rng(4).random(8) < 0.5
    for wild in (hits(*(0.999, *[1.0] * 7)), hits(*rows), hits(*(1e-9, *[0.0] * 7))):
        found = interval(wild, mean, SHARE)
        assert 0 <= found.low < found.high <= 1
    skew = interval(hits(*(1e-9, 50.0, *[0.001] * 7)), mean, ABOVE)
    assert 0 < skew.low < skew.value < skew.high
    scorer = metric("bleu")
    for said in (WANTED, ["?"] * 4):
        rows_of = scorer.statistics(Answers(said * 2, WANTED * 2))
        found = interval(rows_of, scorer.value, scorer.bounds)
        assert -1e-9 <= found.low < found.high <= 100 + 1e-9


@pytest.mark.parametrize(("right", "rows"), [(0.02, 30), (0.5, 20), (0.98, 30), (0.98, 60)])
def test_intervals_hold_the_true_figure_as_often_as_they_say(right: float, rows: int) -> None:
    """A percentile bootstrap of so few rows holds a share of 98 % in 45 of 100 cases."""
    chance = np.random.default_rng(11)
    drawn = [hits(*(chance.random(rows) < right)) for _ in range(400)]
    held = [found.low <= right <= found.high for found in (interval(d, mean, SHARE) for d in drawn)]
    assert sum(held) / len(held) >= 0.93


def test_perplexity_is_sure_of_what_the_loss_is_sure_of() -> None:
    first, second = metric("loss"), metric("perplexity")
    base = Losses([5.0, 9.0, 30.0, 4.0, 8.0, 6.0, 7.0, 9.5], [2] * 8)
    tuned = Losses([1.0, 2.0, 3.0, 1.5, 0.5, 1.0, 2.5, 1.0], [2] * 8)
    assert second.log is not None and second.bounds == first.bounds
    tables = first.statistics(base), first.statistics(tuned)
    single = exponential(interval(tables[0], second.log, second.bounds))
    assert single.value == pytest.approx(value(second, base)) and 1 < single.low < single.value < single.high
    loss = paired(*tables, second.log, second.bounds)
    change = exponential_change(loss, single.value)
    assert change.value == pytest.approx(value(second, tuned) - value(second, base))
    assert not change.known and change.clear and loss.clear and change.p == loss.p
    same = exponential_change(paired(tables[0], tables[0], second.log, second.bounds), single.value)
    assert (same.value, same.clear) == (0.0, False)


def test_models_that_are_infinitely_bad_are_not_told_apart() -> None:
    endless = metric("perplexity").statistics(Losses([3000.0] * 6, [2] * 6))
    found = paired(endless, endless, metric("perplexity").value, ABOVE)
    assert math.isnan(found.value) and found.p == 1.0 and not found.known and not found.clear
    assert exponential(interval(endless, mean, ABOVE)).value == math.inf


def test_the_difference_is_taken_over_the_same_rows() -> None:
    """Rows that are hard for both make each mean uncertain, but not the difference."""
    chance = np.random.default_rng(2)
    hard = chance.normal(0.0, 10.0, 100)
    change = 1.0 + chance.normal(0.0, 0.1, 100)
    found = paired(hits(*hard), hits(*(hard + change)), mean, FREE)
    assert (found.low, found.value, found.high) == pytest.approx((1.0, 1.0, 1.0), abs=0.05)
    assert found.clear and found.p == pytest.approx(1 / 2001)


def test_equal_models_and_single_rows_show_no_clear_difference() -> None:
    rows = hits(1, 0, 1, 1, 0)
    assert (paired(rows, rows, mean, SHARE).p, paired(rows, rows, mean, SHARE).clear) == (1.0, False)
    alone = paired(hits(0), hits(1), mean, SHARE)
    assert (alone.value, alone.p, alone.clear) == (1.0, 1.0, False)


def test_a_randomisation_test_of_few_rows_counts_the_ways_to_exchange_them() -> None:
    """Six rows that all got better: 2 of 64 exchanges differ as much, so p is near 1/32."""
    assert paired(hits(*[0] * 6), hits(*[1] * 6), mean, SHARE).p == pytest.approx(1 / 32, abs=0.012)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (0, 6, 2 / 64),
        (1, 5, 2 * 7 / 64),
        (5, 5, 1.0),
        (2, 12, 2 * 106 / 2**14),
        (700, 900, None),
    ],
)
def test_mcnemars_test_is_the_exact_binomial_one(only_first: int, only_second: int, p: float | None) -> None:
    first = [1] * only_first + [0] * only_second + [1] * 20
    second = [0] * only_first + [1] * only_second + [1] * 20
    found = mcnemar(np.array(first), np.array(second))
    assert found == pytest.approx(p) if p is not None else 0 < found < 1e-5
