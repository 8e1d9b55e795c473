"""What a run says of its data to those who never looked at it: rows not used, a choice that it took."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_tune.core.runs.folder import RunFolder
from tests.core.train_parts import make_run, work


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run on questions and answers under headings that say nothing, with two rows twice."""
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    rows = [f"Where is parcel {n}?;It comes on day {n}, by van." for n in (*range(12), 3, 4)]
    data = tmp_path / "mails.csv"
    data.write_text("\n".join(["First;Second", *rows]))
    return make_run(model_folder, data, training={"epochs": 1.0}, evaluation={"rows": 0})


def test_rows_set_aside_are_counted_and_an_open_choice_is_a_warning_without_a_text_of_a_row(
    folder: RunFolder,
) -> None:
    assert work(folder).returncode == 0
    events = folder.events()
    (data,) = [event for event in events if event.kind == "data"]
    assert data["train_rows"] + data["validation_rows"] == 12 and data["left_out"] == 2
    texts = [event["text"] for event in events if event.kind == "phase"]
    assert any("2 of the data's 14 are left out" in text for text in texts)
    (taken,) = [event["what"] for event in events if event.kind == "warning" and "Taken:" in event["what"]]
    assert 'data.columns={"answer": "Second", "question": "First"}' in taken
    assert "parcel" not in taken
