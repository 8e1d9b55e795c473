"""Two processes with other aims than the loss of answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.runs.events import effective
from ollama_tune.core.runs.folder import RunFolder, State
from tests.core.group_parts import Ranks
from tests.core.preference_parts import write_pairs
from tests.core.train_parts import make_run

CLOSE = 1e-4
"""Of figures in float32 whose sums are taken in another order."""
TIE = 1e-6
STEP = ("step", "loss", "gradient_norm", "reward_margin", "reward_accuracy", "supervised_tokens")
MEASURED = ("step", "model", "loss", "exact_match", "reward_margin", "score", "best_score", "best_step")


def write_labels(path: Path, count: int) -> Path:
    """Short texts, each with the label that its word has."""
    chance = random.Random(5)
    drawn = chance.choices([("no", "sky"), ("tomorrow it is", "birds")], k=count)
    lines = [
        json.dumps({"text": f"{number} {word}", "label": label}) for number, (label, word) in enumerate(drawn)
    ]
    path.write_text("\n".join(lines))
    return path


def told(folder: RunFolder, kind: str, names: tuple[str, ...]) -> list[list[Any]]:
    """Fields of all events of a kind; none of them is a word but the model's name.

    Which answer is liked better is left out where both are liked as much, up to rounding.
    """
    found = [event.data for event in effective(folder.events()) if event.kind == kind]
    for data in found:
        if abs(data.get("reward_margin") or 0) < TIE:
            data.pop("reward_accuracy", None)
    return [[data.get(name) for name in names] for data in found]


def assert_alike(folder: RunFolder, wanted: RunFolder) -> None:
    assert folder.status().state is State.FINISHED, folder.log_tail()
    for kind, names in (("step", STEP), ("evaluation", MEASURED)):
        found, right = told(folder, kind, names), told(wanted, kind, names)
        assert len(found) == len(right) > 1
        for one, other in zip(found, right, strict=True):
            figures = [
                (a, b) for a, b in zip(one, other, strict=True) if not (a == b or a is None or b is None)
            ]
            assert [a is None for a in one] == [b is None for b in other]
            assert [a for a, _ in figures] == pytest.approx([b for _, b in figures], rel=CLOSE, abs=1e-6)


SHARED = {"sharding": "fsdp"}
Way = tuple[int, dict[str, Any], str]
"""So many processes, what differs in the settings, and what rank 1 meets."""


@pytest.mark.parametrize(
    ("training", "write", "ways"),
    [
        ({"objective": "dpo", "learning_rate": 2e-3}, write_pairs, [(2, {}, "late"), (3, SHARED, "")]),
        ({"early_stopping_metric": "accuracy"}, write_labels, [(2, {}, "")]),
        ({"quantization": "nf4", "path": "general"}, write_labels, [(2, SHARED, "")]),
        ({"method": "full", "learning_rate": 1e-3}, write_labels, [(3, {}, "")]),
        ({"packing": True, "sequence_length": 64, "epochs": 6.0}, write_labels, [(4, {}, "")]),
    ],
    ids=["dpo", "accuracy", "4 bit", "full", "packed"],
)
def test_several_processes_do_what_one_does(
    training: dict[str, Any],
    write: Callable[[Path, int], Path],
    ways: list[Way],
    model_folder: Path,
    tmp_path: Path,
) -> None:
    """Although a rank hears late that the run is over, or there are fewer rows than ranks."""
    data = write(tmp_path / "rows.jsonl", 40)

    def run(size: int, more: dict[str, Any], fault: str) -> RunFolder:
        values = {"epochs": 1.0, "evaluation_interval": 4} | training | more
        folder = make_run(model_folder, data, training=values)
        assert Ranks(folder, size, fault=fault).wait() == [0] * size, folder.log_tail()
        assert "has ended" not in folder.log_tail()
        return folder

    alone = run(1, {}, "")
    for way in ways:
        assert_alike(run(*way), alone)
