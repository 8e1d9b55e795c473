"""Turns many rows into tokens in a process of its own, so that whoever waits stays free for other work."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.child import News, Progress, run_in_child, say, work
from ollama_tune.core.data.rows.store import Damaged, RejectedRows, Store, StoredRows
from ollama_tune.core.data.tokens.encoded import Examples, can_keep
from ollama_tune.core.data.tokens.lengths import encode_rows, is_encoded
from ollama_tune.core.data.values import Problem, Row
from ollama_tune.core.errors import TuneError

NEWS_EVERY = 0.1
"""Seconds between two news of the child."""


def encode_in_child(
    chat: ChatFormat,
    rows: Sequence[Row],
    on_progress: Progress,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Examples, list[Problem]]:
    """As `encode_rows`, in a child process where there is much to do.

    `on_progress` is called with (rows done, rows in all) about every 100 ms and `cancelled` is asked as
    often. Raises `Cancelled`; nothing half-written stays then. Only stored rows can be given to a child;
    others are encoded here, as is everything where the child could not keep what it made.
    """
    if isinstance(rows, StoredRows) and not is_encoded(chat, rows) and can_keep():
        order = {
            "folder": str(chat.folder),
            "template": chat.template,
            "config": str(chat.config),
            "rows": str(rows.store.path),
            "places": _ranges(rows.places),
            "rejected": isinstance(rows, RejectedRows),
        }
        stopped = "Turning the rows into tokens stopped before its end; perhaps the memory was full."
        run_in_child(__name__, order, on_progress, cancelled, stopped)
    return encode_rows(chat, rows, on_progress)


def _ranges(places: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending places as (first, one after the last) of stretches without a gap."""
    found: list[tuple[int, int]] = []
    for place in places:
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


def _encode(order: News) -> News:
    chat = ChatFormat.from_folder(
        Path(order["folder"]), template=order["template"], config=Path(order["config"])
    )
    try:
        opened = Store(Path(order["rows"]))
    except (OSError, Damaged) as error:
        what = "The rows that were read are gone from the cache."
        raise TuneError(what, "Read the data again.", details=repr(error)) from error
    places = array("I", (place for start, end in order["places"] for place in range(start, end)))
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= NEWS_EVERY:
            last = now
            say({"progress": (done, total)})

    kind = RejectedRows if order["rejected"] else StoredRows
    examples, _ = encode_rows(chat, kind(opened, places), progress)
    return {"examples": len(examples)}


if __name__ == "__main__":
    work(_encode)
