"""What the step Data looks like (new pictures: `pytest --snapshot-update`)."""

from __future__ import annotations

import json

from tests.tui.conftest import Corner
from tests.tui.test_snapshots_setup import Compare, picture


def write(corner: Corner) -> None:
    """Rows of which one is broken, one without an answer, and one twice."""
    lines = [
        json.dumps({"question": f"Which [bold] bird is {n}?\x1b", "answer": f"{n} is a jay. " * (n % 5 + 1)})
        for n in range(40)
    ]
    lines += ["{broken", json.dumps({"question": "Why?", "answer": ""}), lines[3]]
    corner.rows.write_text("\n".join(lines) + "\n")


def test_problems_while_they_have_the_focus(corner: Corner, snap_compare: Compare) -> None:
    write(corner)
    assert picture(snap_compare, corner.app(3), (80, 24), "tab", "down", "down")


def test_rows_and_ids_in_a_small_window(corner: Corner, snap_compare: Compare) -> None:
    write(corner)
    assert picture(snap_compare, corner.app(3), (60, 18), "tab", "tab", "down", "i")


def test_columns(corner: Corner, snap_compare: Compare) -> None:
    write(corner)
    assert picture(snap_compare, corner.app(3), (80, 24), "f2")
