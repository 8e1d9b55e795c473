"""Names of classes that Hugging Face data sets keep beside a column of numbers (`ClassLabel`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """The names of the classes by column, from the metadata of an Arrow schema; broken ones do not count."""
    return _names((metadata or {}).get(b"huggingface", b""))


@lru_cache(maxsize=64)
def _names(text: bytes) -> dict[str, tuple[str, ...]]:
    try:
        features = json.loads(text)["info"]["features"]
        found = {str(column): _of_feature(feature) for column, feature in features.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return {column: names for column, names in found.items() if names}


def _of_feature(feature: Any) -> tuple[str, ...]:
    if isinstance(feature, list) and feature:
        return _of_feature(feature[0])
    if not isinstance(feature, dict):
        return ()
    names = feature.get("names")
    if feature.get("_type") == "ClassLabel" and isinstance(names, list):
        return tuple(map(str, names))
    return _of_feature(feature.get("feature"))


def with_names(cells: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """The cells with the name in place of every number that has one; -1, no class, stays."""
    return [_named(cell, names) for cell in cells]


def _named(cell: Any, names: Sequence[str]) -> Any:
    if isinstance(cell, list):
        return with_names(cell, names)
    known = isinstance(cell, int) and not isinstance(cell, bool) and 0 <= cell < len(names)
    return names[cell] if known else cell
