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
from ollama_tune.core.evaluate.resample import bootstrap, mcnemar, paired

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


def test_a_bootstrap_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = bootstrap(hits(*values), mean)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.03)
    assert bootstrap(hits(*values), mean) == found


def test_the_difference_is_taken_over_the_same_rows() -> None:
    """Rows that are hard for both make each mean uncertain, but not the difference."""
    hard = np.random.default_rng(2).normal(0.0, 10.0, 100)
    first, second = hits(*hard), hits(*(hard + 1.0))
    found = paired(first, second, mean)
    assert (found.low, found.value, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert found.clear and found.p == pytest.approx(1 / 2001)


def test_equal_models_and_single_rows_show_no_clear_difference() -> None:
    rows = hits(1, 0, 1, 1, 0)
    assert (paired(rows, rows, mean).p, paired(rows, rows, mean).clear) == (1.0, False)
    alone = paired(hits(0), hits(1), mean)
    assert (alone.value, alone.p, alone.clear) == (1.0, 1.0, False)


def test_a_randomisation_test_of_few_rows_counts_the_ways_to_exchange_them() -> None:
    """Six rows that all got better: 2 of 64 exchanges differ as much, so p is near 1/32."""
    assert paired(hits(*[0] * 6), hits(*[1] * 6), mean).p == pytest.approx(1 / 32, abs=0.012)


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
