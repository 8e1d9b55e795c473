"""What evaluations keep of their answers: the newest state of each model and data, and no more."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path

import pytest

from ollama_tune.core.errors import BusyError
from ollama_tune.core.evaluate import kept as kept_room
from ollama_tune.core.evaluate.kept import FILE, GROUPS, Kept, mark_of, open_kept


def evaluated(folder: Path, mark: str, keys: Sequence[str]) -> None:
    """An evaluation that measures what is not there, and prunes at its end."""
    with open_kept(folder) as kept:
        kept.add([{"key": key, "text": key} for key in keys if key not in kept], mark)
        kept.prune(dict.fromkeys(keys, mark))
        assert all(kept.get(key) is not None for key in keys)


def there(folder: Path) -> list[str]:
    with open_kept(folder) as kept:
        return [key for key in "abcdefgh" if key in kept]


def test_another_model_or_setting_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    side, other = ["tuned", "rows"], ["base", "rows"]
    evaluated(tmp_path, mark_of(side, "weights"), "abc")
    evaluated(tmp_path, mark_of(other, "weights"), "d")
    assert there(tmp_path) == list("abcd")
    evaluated(tmp_path, mark_of(side, "trained on"), "ef")
    assert there(tmp_path) == list("def")
    size = (tmp_path / FILE).stat().st_size
    for number in range(20):
        evaluated(tmp_path, mark_of(side, number), "ab")
        evaluated(tmp_path, mark_of(side, "trained on"), "ef")
    assert there(tmp_path) == list("def") and (tmp_path / FILE).stat().st_size == size


def test_fewer_rows_of_the_same_state_drop_nothing(tmp_path: Path) -> None:
    mark = mark_of(["tuned", "rows"], "weights")
    evaluated(tmp_path, mark, "abcdef")
    before = (tmp_path / FILE).stat().st_ino
    evaluated(tmp_path, mark, "b")
    assert there(tmp_path) == list("abcdef")
    assert (tmp_path / FILE).stat().st_ino == before, "nothing goes, so nothing is written"


def test_what_an_evaluation_used_stays_whatever_mark_it_had(tmp_path: Path) -> None:
    """A data file that was only touched asks the same questions."""
    (tmp_path / FILE).write_text('{"key": "a", "text": "of an older release"}\n{"key": "b"}\n')
    evaluated(tmp_path, mark_of(["tuned", "rows"], 1), "ac")
    assert there(tmp_path) == ["a", "c"]
    evaluated(tmp_path, mark_of(["tuned", "rows"], 2), "a")
    assert there(tmp_path) == ["a"]


def test_only_the_newest_groups_stay(tmp_path: Path) -> None:
    for number in range(GROUPS + 3):
        evaluated(tmp_path, mark_of([number], 0), [f"key {number}"])
    with open_kept(tmp_path) as kept:
        found = [number for number in range(GROUPS + 3) if f"key {number}" in kept]
    assert found == list(range(3, GROUPS + 3))
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated(tmp_path, mark_of(["tuned"], 1), "ab")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept_room, "write_atomic", full)
        evaluated(tmp_path, mark_of(["tuned"], 2), "c")
    assert there(tmp_path) == ["a", "b", "c"]


def test_an_evaluation_that_opened_the_pruned_file_opens_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(tmp_path, mark_of(["tuned"], 1), "ab")
    lock, locks = fcntl.flock, [0]

    def late(descriptor: int, how: int) -> None:
        """Between opening and locking another evaluation comes and goes."""
        locks[0] += 1
        if locks[0] == 1:
            evaluated(tmp_path, mark_of(["tuned"], 2), "c")
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with open_kept(tmp_path) as kept:
        assert isinstance(kept, Kept) and "c" in kept and "a" not in kept
        monkeypatch.setattr(fcntl, "flock", lock)
        with pytest.raises(BusyError), open_kept(tmp_path):
            pass
        kept.add([{"key": "d"}], mark_of(["tuned"], 2))
    assert there(tmp_path) == ["c", "d"] and list(tmp_path.iterdir()) == [tmp_path / FILE]
