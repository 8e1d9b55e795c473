"""The report of an evaluation: figures in words, charts, and rows that try to break out of it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ollama_tune.core.data.values import Message, Row
from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.evaluation import Evaluation, Pair, Result, Wish
from ollama_tune.core.evaluate.figures import PLAIN, chosen_metrics
from ollama_tune.core.evaluate.material import Rows
from ollama_tune.core.evaluate.report import (
    difference,
    extremes,
    main_result,
    report_json,
    sentence,
    write_report,
)
from ollama_tune.core.evaluate.resample import Difference, Interval
from ollama_tune.core.evaluate.sides import Side
from ollama_tune.core.evaluate.svg import Bar, bars, confusion_chart
from ollama_tune.core.runs.folder import RunFolder

HOSTILE = "```\n# out\n</text><script>alert(1)</script> [x](javascript:1) \x1b[31m\u202e | & \ud800"
NAME = "</text>&`|\x1b[2J"


def of(name: str, values: tuple[float, float], change: tuple[float, float, float], p: float) -> Result:
    models = [Interval(value, value * 0.9, value * 1.1) for value in values]
    return Result(PLAIN[name], 50, (models[0], models[1]), Difference(*change, p, "McNemar"))


BETTER = of("exact_match", (0.5, 0.62), (0.12, 0.04, 0.20), 0.002)
LOSS = of("loss", (1.25, 1.1), (-0.15, -0.2, -0.1), 0.0004)
UNKNOWN = Interval(1.5, math.nan, math.nan)
UNCLEAR = of("token_f1", (0.5, 0.49), (-0.01, -0.05, 0.03), 0.6)


def evaluation(*results: Result, rows: int = 12, **changes: Any) -> Evaluation:
    texts = [Row((Message("user", f"q {n}"), Message("assistant", f"a {n}")), n + 1) for n in range(rows - 1)]
    texts.append(Row((Message("user", HOSTILE), Message("assistant", HOSTILE)), rows, file=NAME))
    pairs = [Pair(n, ("no", f"a {n}"), n / rows, n / rows - 0.5) for n in range(rows - 1)]
    values = {
        "run": NAME,
        "wish": Wish(),
        "rows": Rows(tuple(texts), 100, NAME, (NAME, "b")),
        "sides": (Side("base", NAME), Side("tuned", "mine")),
        "results": results or (LOSS, BETTER, UNCLEAR),
        "confusions": ([[3, 1], [0, 4]], None),
        "pairs": (*pairs, Pair(rows - 1, (None, HOSTILE), 1.0, 0.0)),
        "remarks": ("These are few rows.",),
        "max_new_tokens": 16,
    }
    return Evaluation(**values | changes)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (
            BETTER,
            "Exact match is better: +12.0 points, 95 % interval +4.0 to +20.0 "
            "(McNemar's exact test, p = 0.002).",
        ),
        (
            LOSS,
            "Loss is better: -0.150 nats a token, 95 % interval -0.200 to -0.100 "
            "(McNemar's exact test, p < 0.001).",
        ),
        (
            UNCLEAR,
            "Token F1 shows no clear difference: -1.0 points, 95 % interval -5.0 to +3.0 "
            "(McNemar's exact test, p = 0.600).",
        ),
        (
            Result(PLAIN["loss"], 1234, (None, Interval(1.5, 1.25, 1.75)), None),
            "Loss: 1.5000 on 1,234 rows, 95 % interval 1.2500 to 1.7500.",
        ),
        (Result(PLAIN["loss"], 1, (None, UNKNOWN), None), "Loss: 1.5000 on 1 row, no interval."),
        (
            Result(PLAIN["loss"], 3, (UNKNOWN, UNKNOWN), Difference(-0.5, math.nan, math.nan, 1.0, "")),
            "Loss shows no clear difference: -0.500 nats a token, no interval "
            "(paired randomisation test, p = 1.000).",
        ),
    ],
)
def test_a_result_is_said_in_a_sentence(result: Result, words: str) -> None:
    assert sentence(result) == words


def test_a_lower_loss_is_better_and_a_lower_share_worse() -> None:
    worse = of("exact_match", (0.62, 0.5), (-0.12, -0.20, -0.04), 0.002)
    doubtful = of("exact_match", (0.5, 0.62), (0.12, 0.04, 0.20), 0.06)
    assert [r.verdict for r in (LOSS, BETTER, worse)] == ["better", "better", "worse"]
    assert (UNCLEAR.verdict, doubtful.verdict) == ("no clear difference", "no clear difference")


def test_the_main_metric_is_one_that_says_something() -> None:
    none = of("exact_match", (0.0, 0.01), (0.01, 0.0, 0.02), 0.5)
    assert main_result(evaluation(LOSS, BETTER, UNCLEAR)) == BETTER
    assert main_result(evaluation(LOSS, none, UNCLEAR)) == UNCLEAR
    assert main_result(evaluation(LOSS)) == LOSS
    (chrf,), _ = chosen_metrics(["chrf"], ["a"], False)
    low = Result(chrf, 50, (Interval(1.1, 1.0, 1.2), Interval(1.2, 1.0, 1.4)), None)
    assert main_result(evaluation(low, UNCLEAR)) == UNCLEAR, "of 100 points one says nothing"


def test_what_is_not_finite_is_null_for_programs_and_a_word_for_people() -> None:
    endless = of("perplexity", (math.inf, 20.0), (-math.inf, -math.inf, -5.0), 0.5)
    (entry,) = report_json(evaluation(endless))["metrics"]
    assert entry["models"][0]["value"] is None and entry["difference"]["low"] is None
    json.dumps(entry, allow_nan=False)
    assert difference(endless) == "-infinite (no interval)"


def test_figures_without_an_interval_are_drawn_without_one(tmp_path: Path) -> None:
    alone = Result(PLAIN["loss"], 1, (None, UNKNOWN), None)
    written = write_report(evaluation(alone, confusions=(None, None)), RunFolder(tmp_path), None)
    drawn = (written / "loss.svg").read_text()
    assert "1.5000" in drawn and "nan" not in drawn and "<line" not in drawn
    (entry,) = json.loads((written / "report.json").read_text())["metrics"]
    assert entry["models"][1] == {"value": 1.5, "low": None, "high": None}


def test_best_and_worst_rows_are_different_ones() -> None:
    best, worst = extremes(evaluation())
    assert [pair.number for pair in best] == [11, 10, 9, 8, 7] and [pair.number for pair in worst] == [
        0,
        1,
        2,
        3,
        4,
    ]
    best, worst = extremes(evaluation(rows=3))
    assert len(best) == 2 and len(worst) == 1 and not {p.number for p in best} & {p.number for p in worst}


def test_hostile_rows_and_names_stay_inside_the_report(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    written = write_report(evaluation(), folder, None)
    assert written.parent == tmp_path / "evaluation" and written.stat().st_mode & 0o77 == 0
    text = (written / "report.md").read_text()
    assert "\x1b" not in text and "\u202e" not in text and "<U+202E>" in text
    fences = [line for line in text.splitlines() if line.startswith("````")]
    assert fences and len(fences) % 2 == 0
    outside, inside = [], False
    for line in text.splitlines():
        if line.startswith("````"):
            inside = not inside
        elif not inside:
            outside.append(line)
    plain = "\n".join(outside)
    assert "# out" not in plain and "script" not in plain
    assert all("`</text>&'|" in line for line in outside if "</text>" in line)
    tree = json.loads((written / "report.json").read_text())
    assert tree["best"][0]["answers"] == [None, HOSTILE] and tree["best"][0]["line"] == 12
    charts = sorted(written.glob("*.svg"))
    assert [chart.name for chart in charts] == ["confusion-base.svg", "figures.svg", "loss.svg"]
    for chart in charts:
        assert f"({chart.name})" in text
        ElementTree.fromstring(chart.read_text())
    assert write_report(evaluation(), folder, None) != written


def test_bars_are_as_long_as_their_figures() -> None:
    drawn = bars(
        "Shares", ["base", "tuned"], [("F1", [Bar(0.25, 0.2, 0.3, "25 %"), Bar(0.5, 0.4, 0.6, "<")])]
    )
    rects = [node for node in ElementTree.fromstring(drawn).iter() if node.tag.endswith("rect")]
    widths = [float(rect.attrib["width"]) for rect in rects[-2:]]
    assert widths[1] == pytest.approx(2 * widths[0]) and widths[1] == pytest.approx(0.5 / 0.6 * 300)
    whole = bars("Shares", ["base"], [("F1", [Bar(0.25, 0.2, 0.3, "25 %")])], top=1.0)
    last = [node for node in ElementTree.fromstring(whole).iter() if node.tag.endswith("rect")][-1]
    assert float(last.attrib["width"]) == pytest.approx(0.25 * 300)
    empty = bars("Nothing", ["a", "b"], [("F1", [None, Bar(0.0, 0.0, 0.0, "0 %")])])
    ElementTree.fromstring(empty)


def test_a_table_of_labels_shows_every_count() -> None:
    counts = [[12, 3], [0, 7]]
    drawn = ElementTree.fromstring(confusion_chart("Labels", ["<b>", "\x00"], counts))
    texts = [node.text for node in drawn.iter() if node.tag.endswith("text")]
    assert [text for text in texts if text and text.isdigit()] == ["12", "3", "0", "7"]
    assert "<b>" in texts
    words = next(node for node in drawn.iter() if node.text == "said by the model →")
    assert float(drawn.attrib["width"]) - float(words.attrib["x"]) >= 150, "the words have room"


def test_a_report_takes_the_place_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is there already"):
        write_report(evaluation(), RunFolder(tmp_path), tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is there already"):
        write_report(evaluation(), RunFolder(tmp_path), tmp_path / "file")
    with pytest.raises(TuneError, match="cannot be written"):
        write_report(evaluation(), RunFolder(tmp_path), tmp_path / "file" / "report")
    assert write_report(evaluation(), RunFolder(tmp_path), tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_a_report_that_cannot_be_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _content: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("ollama_tune.core.evaluate.report.write_atomic", full)
    with pytest.raises(TuneError, match="No space left"):
        write_report(evaluation(), RunFolder(tmp_path), None)
    assert list((tmp_path / "evaluation").iterdir()) == []
