"""The card of a data set (`README.md`): which files make up its subsets and their splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LARGEST = 2**22
"""Characters of a card that are read."""
_FRONT = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_PATTERN = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]/]+\]|\{[^{}/]+\}|[^*?\[{]+|.", re.DOTALL)
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Subset:
    """A configuration of a data set: for every split the patterns of its files."""

    name: str
    default: bool
    splits: tuple[tuple[str, tuple[str, ...]], ...]

    def files(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The files of every split, of those in the repository, sorted; splits without any are left out."""
        found = {
            split: sorted({name for pattern in patterns for name in matching(names, pattern)})
            for split, patterns in self.splits
        }
        return {split: files for split, files in found.items() if files}


def subsets_of(card: str) -> list[Subset]:
    """The subsets that a card names under `configs`; empty when it names none or cannot be read."""
    front = _FRONT.match(card[:LARGEST])
    if not front:
        return []
    import yaml

    try:
        described = yaml.safe_load(front.group(1))
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    configs = described.get("configs") if isinstance(described, dict) else None
    listed = configs if isinstance(configs, list) else []
    found = [_subset(config) for config in listed if isinstance(config, dict)]
    return [subset for subset in found if subset.splits]


def _subset(config: dict[str, Any]) -> Subset:
    folder = str(config.get("data_dir") or "").strip("/")
    splits = _splits(config.get("data_files") or ("**" if folder else None))
    placed = tuple((split, tuple(_placed(folder, path) for path in paths)) for split, paths in splits)
    return Subset(str(config.get("config_name") or "default"), config.get("default") is True, placed)


def _placed(folder: str, path: str) -> str:
    path = path.removeprefix("./").lstrip("/")
    return f"{folder}/{path}" if folder and not path.startswith(f"{folder}/") else path


def _splits(value: Any) -> list[tuple[str, list[str]]]:
    """`data_files` in each of its forms: a path, paths, paths by split, or a list of split and path."""
    if isinstance(value, str):
        return [("train", [value])]
    if isinstance(value, dict):
        return [(str(split), _paths(paths)) for split, paths in value.items()]
    if not isinstance(value, list):
        return []
    named = [entry for entry in value if isinstance(entry, dict) and "path" in entry]
    if named:
        return [(str(entry.get("split") or "train"), _paths(entry["path"])) for entry in named]
    return [("train", _paths(value))]


def _paths(value: Any) -> list[str]:
    return [str(path) for path in (value if isinstance(value, list) else [value])]


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a pattern means: `*` stays within a folder, `**` does not; a folder is all in it."""
    whole = re.compile("".join(map(_regex, _PATTERN.findall(pattern))))
    return [name for name in names if whole.fullmatch(name) or name.startswith(pattern.rstrip("/") + "/")]


def _regex(part: str) -> str:
    if part in _WILD:
        return _WILD[part]
    if part[0] == "[" and len(part) > 2:
        return "[" + re.escape(part[1:-1].replace("!", "^", 1)).replace(r"\-", "-").replace(r"\^", "^") + "]"
    if part[0] == "{" and len(part) > 2:
        return "(?:" + "|".join(map(re.escape, part[1:-1].split(","))) + ")"
    return re.escape(part)
