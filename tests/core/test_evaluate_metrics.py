from __future__ import annotations

from typing import Any

import pytest

from ollama_tune.core.evaluate import metrics
from ollama_tune.core.evaluate.compare import compare
from ollama_tune.core.evaluate.metrics import LONGEST, exact_match, similarity, wilson_interval
from ollama_tune.core.runs.events import Event


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("It is blue.", " It  is\nblue. ", True),
        ("ﬁne \u00a0 day", "fine day", True),
        ("e\u0301", "é", True),
        ("Ｔokyo", "Tokyo", True),
        ("Blue", "blue", False),
        ("blue", "blue.", False),
        ("", " \n", True),
        ("", "x", False),
    ],
)
def test_exact_match_forgives_white_space_and_spelling_of_characters_only(
    answer: str, reference: str, same: bool
) -> None:
    assert exact_match(answer, reference) is same


def test_the_interval_of_a_rate_is_wilsons() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0


def event(n: int, kind: str, **data: Any) -> Event:
    return Event(n, 0.0, kind, data)


def test_a_comparison_takes_the_latest_figure_of_each_kind() -> None:
    events = [
        event(0, "sample", prompt="p", reference="r", base="b", tuned=None),
        event(1, "evaluation", step=0, loss=4.0, exact_match=0.0, rows=8, model="base"),
        event(2, "evaluation", step=5, loss=2.0, exact_match=None, rows=30, model="tuned"),
        event(3, "evaluation", step=9, loss=1.5, exact_match=None, rows=30, model="tuned"),
        event(4, "evaluation", step=9, loss=1.5, exact_match=0.75, rows=8, model="tuned"),
        event(5, "sample", prompt="p", reference="r", base="b", tuned="r"),
    ]
    found = compare(events)
    assert (found.base.exact_match, found.base.loss) == (0.0, 4.0)
    assert (found.tuned.exact_match, found.tuned.loss) == (0.75, 1.5)
    assert found.rows == 8
    assert [(sample.base, sample.tuned) for sample in found.samples] == [("b", "r")]
    half = compare(events[:3])
    assert half.tuned.exact_match is None and half.tuned.loss == 2.0
    assert compare([]).base.loss is None and compare([]).rows == 0


@pytest.mark.parametrize(
    ("answer", "reference", "alike"),
    [  # the figures are those of sacrebleu's chrF (nc:6, nw:0, eff:yes, space:no), divided by 100
        ("2 TEA", "2 TEA | 1 BUN", 0.3682),
        ("2 TEA | 1 BUN and more words", "2 TEA | 1 BUN", 0.7254),
        ("今天天气很好", "今天天气不好", 0.3778),
        ("Привет мир", "Привет, мир!", 0.5062),
        ("東京", "京都", 0.25),
        ("a", "ab", 0.5556),
        ("It is blue.", "blue", 0.6998),
        ("a", "b", 0.0),
        ("", "b", 0.0),
        ("", "", 1.0),
        (" It  is\nblue", "It is blue", 1.0),
        ("ﬁne", "fine", 1.0),
    ],
)
def test_similarity_is_chrf(answer: str, reference: str, alike: float) -> None:
    assert similarity(answer, reference) == pytest.approx(alike, abs=5e-5)


def test_similarity_of_very_long_texts_is_that_of_their_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    runs = metrics._runs
    monkeypatch.setattr(metrics, "_runs", lambda text, length: seen.append(len(text)) or runs(text, length))
    found = similarity("天地" * 500_000, "天人" * 500_000)
    assert max(seen) == LONGEST
    assert found == similarity("天地" * (LONGEST // 2), "天人" * (LONGEST // 2)) < 0.6
