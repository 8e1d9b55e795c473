"""A crash report holds where, never what."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_tune.tui.crash import report_crash


def test_a_crash_report_holds_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))
    secret_row = "my private question"
    try:
        {}[secret_row]
    except KeyError as error:
        shown = report_crash(error)
    (report,) = (tmp_path / "state").glob("crash-*.txt")
    text = report.read_text()
    assert "KeyError" in text and "test_a_crash_report_holds_no_value" in text
    assert secret_row not in text and secret_row not in shown
    assert str(report) in shown and "Traceback" not in shown
