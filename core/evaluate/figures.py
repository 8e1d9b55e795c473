"""The metrics of an evaluation: what each sums over rows, and the figure that the sums make.

`bleu` and `chrf` are sacrebleu's own counts and formulas, so that they are the same as everybody's.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.metrics import exact_match
from ollama_tune.core.evaluate.overlap import rouge_l, token_f1

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

Kind = Literal["loss", "answers", "labels"]
NEEDS_EXTRA = ("bleu", "chrf")


@dataclass(frozen=True)
class Losses:
    """Of each row the summed cross entropy of its supervised tokens, in nats, and their number."""

    sums: Sequence[float]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Answers:
    """Of each row what a model answered and what was wanted."""

    said: Sequence[str]
    wanted: Sequence[str]


@dataclass(frozen=True)
class Labels:
    """Of each row the number of the likeliest label and of the right one, among so many."""

    said: Sequence[int]
    right: Sequence[int]
    count: int


Measured = Losses | Answers | Labels


@dataclass(frozen=True)
class Metric:
    """A metric as people read it, with what it is made of.

    `statistics` makes rows x statistics, `value` the figure of sums of those (draws x statistics), which lies
    within `bounds`. A `unit` of `%` is a share that is shown in per cent; its differences are percentage
    points. `shares` are proportions of rows, one for each (0 or 1). `log` makes the figure whose exponential
    this one is: its bounds, intervals and tests are meant.
    """

    name: str
    title: str
    kind: Kind
    statistics: Callable[[Any], Array]
    value: Callable[[Array], Array]
    bounds: tuple[float, float] = (0.0, 1.0)
    unit: Literal["%", "", "nats"] = "%"
    lower_is_better: bool = False
    shares: bool = False
    log: Callable[[Array], Array] | None = None
    signature: str = ""


def chosen_metrics(
    names: Sequence[str], references: Sequence[str], labels: bool
) -> tuple[list[Metric], list[str]]:
    """The metrics with these names, or the usual ones where none is named; and what has to be said of them.

    For rows with labels these are the likeliest label's and the exact answers, else those of texts.
    Raises `UsageError` for a name that there is not and `TuneError` where sacrebleu is asked for but missing.
    """
    unknown = [name for name in names if name not in ORDER]
    if unknown:
        raise UsageError(f"There is no metric {unknown[0]!r}.", f"Choose from {', '.join(ORDER)}.")
    if not labels and (wrong := [name for name in names if name in ("accuracy", "macro_f1")]):
        what = f"{wrong[0]} is measured on rows with a fixed set of labels; these have none."
        raise UsageError(what, "Leave it out, or name data with labels.")
    there = importlib.util.find_spec("sacrebleu") is not None
    missing = [name for name in names if name in NEEDS_EXTRA and not there]
    if missing:
        what = f"{missing[0]} is computed by sacrebleu, which is not installed."
        raise TuneError(what, "Install it with `pip install 'ollama-tune[evaluate]'`, or leave it out.")
    wanted = names or (OF_LABELS if labels else OF_TEXTS)
    usable = [name for name in ORDER if name in wanted and (there or name not in NEEDS_EXTRA)]
    left = [name for name in wanted if name not in usable]
    said = (
        ["bleu and chrf are left out: they need `pip install 'ollama-tune[evaluate]'` (sacrebleu)."]
        if left
        else []
    )
    return [_metric(name, references) for name in usable], said


def _metric(name: str, references: Sequence[str]) -> Metric:
    return _sacrebleu(name, references) if name in NEEDS_EXTRA else PLAIN[name]


def _array(rows: Any) -> Array:
    import numpy as np

    return np.array(rows, dtype=np.float64)


def _mean(sums: Array) -> Array:
    found: Array = sums[:, 0] / sums[:, 1]
    return found


def _perplexity(sums: Array) -> Array:
    import numpy as np

    with np.errstate(over="ignore"):
        return np.exp(_mean(sums))


def _loss_rows(losses: Losses) -> Array:
    return _array(list(zip(losses.sums, losses.tokens, strict=True)))


def _each(score: Callable[[str, str], float]) -> Callable[[Answers], Array]:
    """Statistics of a score that every answer has by itself."""

    def rows(answers: Answers) -> Array:
        pairs = zip(answers.said, answers.wanted, strict=True)
        return _array([(score(said, wanted), 1) for said, wanted in pairs])

    return rows


def _right(labels: Labels) -> Array:
    return _array([(said == right, 1) for said, right in zip(labels.said, labels.right, strict=True)])


def _label_counts(labels: Labels) -> Array:
    """Of each label, in each row: hits, times said, times right; side by side."""
    import numpy as np

    every = np.eye(labels.count)
    said, right = every[list(labels.said)], every[list(labels.right)]
    return np.concatenate([said * right, said, right], axis=1)


def _macro_f1(sums: Array) -> Array:
    """The mean F1 of the labels that occur or are said, as scikit-learn's `f1_score(average="macro")`."""
    import numpy as np

    hits, said, right = np.split(sums, 3, axis=1)
    both = said + right
    scores = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    found: Array = scores.sum(1) / np.maximum((both > 0).sum(1), 1)
    return found


def confusion(labels: Labels) -> list[list[int]]:
    """How often each right label (row) was answered by each label (column)."""
    table = [[0] * labels.count for _ in range(labels.count)]
    for said, right in zip(labels.said, labels.right, strict=True):
        table[right][said] += 1
    return table


def _sacrebleu(name: str, references: Sequence[str]) -> Metric:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    scorer: Any = BLEU(tokenize=tokenizer_for(references)) if name == "bleu" else CHRF()

    def rows(answers: Answers) -> Array:
        return _array(scorer._extract_corpus_statistics(list(answers.said), [list(answers.wanted)]))

    def value(sums: Array) -> Array:
        scores = [scorer._compute_score_from_stats([int(n) for n in row]).score for row in sums.round()]
        return _array(scores)

    signature = _signature(scorer)
    title = {"bleu": "BLEU", "chrf": "chrF"}[name]
    return Metric(name, title, "answers", rows, value, (0.0, 100.0), unit="", signature=signature)


def _signature(scorer: Any) -> str:
    """What sacrebleu says of how it counts; one reference each, which it only knows after a first score."""
    scorer.corpus_score(["a"], [["a"]])
    return str(scorer.get_signature())


def tokenizer_for(references: Sequence[str]) -> str:
    """sacrebleu's `zh` for Chinese, `char` for Japanese, `13a` for all else; told by the characters."""
    text = "".join(references)[:100_000]
    kana = sum("\u3040" <= character <= "\u30ff" for character in text)
    han = sum("\u3400" <= character <= "\u9fff" for character in text)
    if 2 * (kana + han) < sum(map(str.isalpha, text)) or not kana + han:
        return "13a"
    return "char" if 10 * kana > han else "zh"


PLAIN: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("loss", "Loss", "loss", _loss_rows, _mean, (0.0, math.inf), "nats", lower_is_better=True),
        Metric(
            "perplexity",
            "Perplexity",
            "loss",
            _loss_rows,
            _perplexity,
            (0.0, math.inf),
            "",
            lower_is_better=True,
            log=_mean,
        ),
        Metric("accuracy", "Accuracy", "labels", _right, _mean, shares=True),
        Metric("macro_f1", "Macro F1", "labels", _label_counts, _macro_f1),
        Metric("exact_match", "Exact match", "answers", _each(exact_match), _mean, shares=True),
        Metric("token_f1", "Token F1", "answers", _each(token_f1), _mean),
        Metric("rouge_l", "ROUGE-L", "answers", _each(rouge_l), _mean),
    )
}
OF_TEXTS = ("loss", "perplexity", "exact_match", "token_f1", "rouge_l", *NEEDS_EXTRA)
OF_LABELS = ("loss", "perplexity", "accuracy", "macro_f1", "exact_match")
ORDER = (*PLAIN, *NEEDS_EXTRA)
