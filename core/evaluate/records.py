"""What the records of measured rows say: the statistics that a metric makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.values import Row
from ollama_tune.core.evaluate.figures import Answers, Labels, Metric
from ollama_tune.core.evaluate.overlap import without_thoughts

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.figures import Array

Record = Mapping[str, Any]


def statistics(
    metric: Metric, records: Sequence[Record], rows: Sequence[Row], labels: Sequence[str]
) -> Array:
    """Rows x statistics of a metric of answers or of labels; a record stands at the place of its row."""
    if metric.kind == "labels":
        return metric.statistics(labels_of(records, rows, labels))
    wanted = [row.answer for row in rows]
    said = [without_thoughts(record["text"], text) for record, text in zip(records, wanted, strict=True)]
    return metric.statistics(Answers(said, wanted))


def labels_of(records: Sequence[Record], rows: Sequence[Row], labels: Sequence[str]) -> Labels:
    """The likeliest label is that whose tokens and end mark have the largest probability.

    It is not divided by the length: the sum is the probability that the model gives exactly this answer,
    which is what it says when it is asked; a mean over tokens would favour long labels, whose last tokens
    follow from the first ones.
    """
    said = [max(range(len(labels)), key=record["logs"].__getitem__) for record in records]
    return Labels(said, [labels.index(row.answer) for row in rows], len(labels))
