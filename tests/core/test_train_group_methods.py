"""Two processes with other aims than the loss of answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.plan.settings import parse
from ollama_tune.core.runs.events import effective
from ollama_tune.core.runs.folder import RunFolder, State
from tests.core.group_parts import Ranks
from tests.core.preference_parts import write_pairs
from tests.core.train_parts import make_run

CLOSE = 1e-4
"""Of figures in float32 whose sums are taken in another order."""
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
    """Fields of all events of a kind; none of them is a word but the model's name."""
    return [[event.get(name) for name in names] for event in effective(folder.events()) if event.kind == kind]


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


@pytest.mark.parametrize(
    ("training", "write", "fault"),
    [
        ({"objective": "dpo", "learning_rate": 2e-3}, write_pairs, "late"),
        ({"early_stopping_metric": "accuracy"}, write_labels, ""),
    ],
    ids=["dpo", "accuracy"],
)
def test_two_processes_do_what_one_does(
    training: dict[str, Any],
    write: Callable[[Path, int], Path],
    fault: str,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    """Although, once, a rank hears late that the run is over."""
    data = write(tmp_path / "rows.jsonl", 40)
    runs = []
    for size, meets in ((1, ""), (2, fault)):
        folder = make_run(model_folder, data, training={"epochs": 1.0, "evaluation_interval": 4} | training)
        assert Ranks(folder, size, fault=meets).wait() == [0] * size, folder.log_tail()
        runs.append(folder)
    assert_alike(runs[1], runs[0])
    assert "has ended" not in runs[1].log_tail()


def test_preferences_are_not_learned_by_a_model_that_is_shared_out() -> None:
    with pytest.raises(Exception, match="sharding ddp"):
        parse({"training": {"objective": "dpo", "sharding": "fsdp"}})
