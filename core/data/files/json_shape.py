"""Where in a JSON document the rows are, told from its beginning alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ollama_tune.core.data.files.splits import is_split

WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "dataset", "samples", "results", "docs")
"""Keys of a JSON object under which files usually keep their list of rows; any other key may do so too."""

_ROLES = ("role", "from", "speaker", "author", "sender")


@dataclass(frozen=True)
class Shape:
    """How the rows lie: `rows` (a list, or an object by id), `splits` of such, `columns`, or a single `row`.

    `path` are the keys that lead to them from the outermost object.
    """

    kind: str
    path: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


ROW = Shape("row")


def shape_of(value: Any, known: Collection[str]) -> Shape:
    """The shape of an object, which may be cut off; `known` are column names that mean something."""
    if not isinstance(value, dict) or _is_row(value, known):
        return ROW
    splits = tuple(key for key, cell in value.items() if is_split(key) and isinstance(cell, (list, dict)))
    if splits and (len(splits) > 1 or len(splits) == len(value)):
        return Shape("splits", splits=splits)
    if _by_column(value, known):
        return Shape("columns")
    lists = [key for key, cell in value.items() if isinstance(cell, list) and _holds_rows(cell)]
    if lists:
        return Shape("rows", (_likeliest(lists, value),))
    objects = {key: cell for key, cell in value.items() if isinstance(cell, dict)}
    if objects and len(objects) == len(value) and all(_is_entry(cell, known) for cell in _few(objects)):
        return Shape("rows")
    for key in sorted(objects, key=lambda key: _rank(key)):
        inner = shape_of(objects[key], known)
        if inner != ROW:
            return replace(inner, path=(key, *inner.path))
    return ROW


def transposed(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an object of columns: lists, objects by index, or `columns` beside `data` (pandas)."""
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list):
        return [dict(zip(map(str, names), row, strict=False)) for row in data if isinstance(row, list)]
    columns = {
        key: list(cell.values()) if isinstance(cell, dict) else cell
        for key, cell in value.items()
        if isinstance(cell, (list, dict))
    }
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=False)]


def _is_row(value: Mapping[str, Any], known: Collection[str]) -> bool:
    """A row itself: one of its columns holds text under a known name, or the turns of a conversation."""
    return any(
        (key.strip().lower() in known and isinstance(cell, (str, int, float)))
        or (isinstance(cell, list) and bool(cell) and _is_turn(cell[0]))
        for key, cell in value.items()
    )


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(key), str) for key in _ROLES)


def _holds_rows(cells: list[Any]) -> bool:
    return bool(cells) and isinstance(cells[0], (dict, list)) and not _is_turn(cells[0])


def _by_column(value: Mapping[str, Any], known: Collection[str]) -> bool:
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return True
    cells = [(key, cell) for key, cell in value.items() if isinstance(cell, (list, dict)) and cell]
    if not cells or len(cells) < len(value):
        return False
    named = any(key.strip().lower() in known for key, _ in cells)
    lists = [cell for _, cell in cells if isinstance(cell, list)]
    if len(lists) == len(cells):
        return named or (len(cells) > 1 and not any(map(_holds_rows, lists)))
    indexed = [cell["0"] for _, cell in cells if isinstance(cell, dict) and "0" in cell]
    return len(indexed) == len(cells) and (named or not any(isinstance(cell, dict) for cell in indexed))


def _is_entry(cell: Mapping[str, Any], known: Collection[str]) -> bool:
    """A row under its id: a row for sure, or at least an object with some text of its own."""
    return _is_row(cell, known) or any(isinstance(inner, str) for inner in cell.values())


def _few(objects: Mapping[str, Any]) -> list[Any]:
    """The first ones; the very last may be cut off."""
    cells = list(objects.values())[:20]
    return cells[:-1] or cells


def _rank(key: str) -> int:
    name = key.strip().lower()
    return WRAPPERS.index(name) if name in WRAPPERS else len(WRAPPERS)


def _likeliest(lists: list[str], value: Mapping[str, Any]) -> str:
    return min(lists, key=lambda key: (_rank(key), -len(value[key])))


def expanded(value: Any) -> list[Any]:
    """The rows of an entry that wraps some: SQuAD's article with paragraphs, the hub's numbered row."""
    if not isinstance(value, dict):
        return [value]
    if isinstance(value.get("row"), dict) and "row_idx" in value:
        return [value["row"]]
    if not isinstance(value.get("paragraphs"), list):
        return [value]
    found = [
        {"context": paragraph.get("context"), **question}
        for paragraph in value["paragraphs"]
        if isinstance(paragraph, dict) and isinstance(paragraph.get("qas"), list)
        for question in paragraph["qas"]
        if isinstance(question, dict)
    ]
    return found or [value]
