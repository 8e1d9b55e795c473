"""Data sets of the Hugging Face hub: their files, fetched once into our cache and read by our own readers.

No code of a repository is ever run. Where a repository holds only a script or files of another kind, the
hub's own Parquet conversion of it is taken.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ollama_tune.core.data.files.card import LARGEST, Subset, subsets_of
from ollama_tune.core.data.files.folder import MAP, SUFFIXES, is_description, split_of, suffix_of
from ollama_tune.core.data.files.splits import pick
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.values import Reading
from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import write_atomic
from ollama_tune.core.paths import asset, cache_dir
from ollama_tune.core.text import one_line, visible

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo

BUNDLED = "bundled"
CONVERTED = "refs/convert/parquet"
"""Where the hub keeps its own Parquet copy of a data set."""
TIMEOUT = 30.0

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_PREFIXES = ("hf://datasets/", "hf://", "datasets/")
_NO_HUB_FILES = "holds no file that can be read; scripts of a data set are never run"
_NO_ROOM = "Free some space, set OLLAMA_TUNE_HOME to a folder on a larger disk, or choose a split."
_PREFERRED = (".parquet", ".arrow", ".jsonl", ".json", ".csv")

Progress = Callable[[int, int], None]


def resolve_data(path_text: str, reading: Reading = Reading(), progress: Progress | None = None) -> Path:  # noqa: B008
    """The file or folder that a setting's text names; a data set of the hub is fetched where it is not here.

    `bundled` is the shipped data set, `~` the home folder, `org/name` (or its address) one of the hub, of
    which only the splits that `reading` uses are fetched; `progress` gets (bytes so far, bytes in all).
    Raises `TuneError`.
    """
    if path_text == BUNDLED:
        return asset("data/tickets.jsonl")
    if not path_text.strip():
        raise TuneError("No data file is chosen.", "Choose a file of examples.")
    found = hub_id(path_text)
    if found is None:
        return _local(path_text)
    name, revision = found
    return _fetched(name, reading.revision or revision, reading, progress or (lambda done, total: None))


def _local(path_text: str) -> Path:
    try:
        return Path(path_text).expanduser().absolute()
    except RuntimeError as error:
        raise TuneError(f"There is no home folder for {path_text}.", "Give the whole path.") from error


def hub_id(path_text: str) -> tuple[str, str] | None:
    """The data set's id and revision (or an empty one) when the text names one of the hub, else None.

    A path that exists, and one that ends like a data file, is never taken for one.
    """
    text = path_text.strip()
    stripped = _without_address(text)
    if stripped is None and (suffix_of(text) in SUFFIXES or _exists(text)):
        return None
    parts = (text if stripped is None else stripped).strip("/").split("/")
    last, _, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve"):
        revision = revision or parts[3]
    name = f"{parts[0]}/{last}"
    if _ID.fullmatch(name) is None or (stripped is None and len(parts) != 2):
        return None
    return None if "--" in name or ".." in name else (name, unquote(revision))


def _without_address(text: str) -> str | None:
    """What follows `hf://datasets/` or the hub's address; None where the text is no address."""
    for prefix in _PREFIXES[:2]:
        if text.startswith(prefix):
            return text.removeprefix(prefix)
    address = urlsplit(text)
    if address.scheme in ("http", "https") and address.path.startswith("/datasets/"):
        return address.path.removeprefix("/datasets/")
    return None


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return True


def _repository(name: str) -> Path:
    return cache_dir() / "datasets" / name.replace("/", "--")


def _fetched(name: str, revision: str, reading: Reading, progress: Progress) -> Path:
    from ollama_tune.core.models.download import exclusive, fetch_files
    from ollama_tune.core.models.hub_errors import hub_errors

    local = _on_this_machine(name, revision, reading)
    if local is not None:
        return local
    with hub_errors(name, "data set"):
        from huggingface_hub import HfApi

        api = HfApi()
        info = api.dataset_info(name, revision=revision or None, files_metadata=True, timeout=TIMEOUT)
        commit = str(info.sha)
        plan, info = _plan(api, info, reading)
        folder = _repository(name) / "snapshots" / commit / (reading.subset or "default")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(folder.parent):
            by_name = {file.rfilename: file for file in info.siblings or []}
            wanted = [by_name[file] for file in _wanted(plan["splits"], reading)]
            fetch_files(api, info, wanted, folder, progress, "The data set", cache_dir(), _NO_ROOM)
            write_atomic(folder / MAP, json.dumps(plan))
            _remember(name, revision, commit)
    return folder


def _remember(name: str, revision: str, commit: str) -> None:
    reference = _repository(name) / "refs" / (revision or "main").replace("/", "--")
    reference.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(reference, commit)


def commit_here(path_text: str, revision: str) -> str:
    """The commit of the hub's data set that is on this machine by that text; empty where there is none."""
    found = hub_id(path_text)
    if found is None:
        return ""
    try:
        commit = _known_commit(found[0], revision or found[1])
        return commit if (_repository(found[0]) / "snapshots" / commit).is_dir() else ""
    except OSError:
        return ""


def _known_commit(name: str, revision: str) -> str:
    """What a branch or tag named at the last download, else the revision itself."""
    reference = _repository(name) / "refs" / (revision or "main").replace("/", "--")
    return reference.read_text().strip() if reference.is_file() else revision


def _on_this_machine(name: str, revision: str, reading: Reading) -> Path | None:
    """The folder of an earlier download that has all files this reading uses."""
    try:
        commit = _known_commit(name, revision)
        if not commit:
            return None
        folder = _repository(name) / "snapshots" / commit / (reading.subset or "default")
        plan = json.loads((folder / MAP).read_text(encoding="utf-8"))
        wanted = _wanted(plan["splits"], reading)
    except (OSError, ValueError, KeyError):
        return None
    return folder if all((folder / file).is_file() for file in wanted) else None


def _wanted(splits: dict[str, list[str]], reading: Reading) -> list[str]:
    """The files of the splits that are trained and measured on."""
    picked = pick(tuple(splits), reading.split, reading.validation, ProblemLog())
    return [file for name, files in splits.items() if picked.of(name) is not None for file in files]


def _plan(api: HfApi, info: DatasetInfo, reading: Reading) -> tuple[dict[str, Any], DatasetInfo]:
    """Which files make up the splits of the subset, what to tell about it, and the commit they are in."""
    from huggingface_hub.errors import RevisionNotFoundError

    names = _data_files(info)
    subsets = subsets_of(_card(api, info))
    if not names:
        try:
            info = api.dataset_info(info.id, revision=CONVERTED, files_metadata=True, timeout=TIMEOUT)
        except RevisionNotFoundError as error:
            raise TuneError(f"The data set {info.id} {_NO_HUB_FILES}.", "Choose another one.") from error
        names = _data_files(info)
        subsets = [_converted(part, names) for part in dict.fromkeys(n.split("/")[0] for n in names)]
    subset = _chosen(info.id, subsets, reading.subset)
    splits = subset.files(names) if subset else _by_names(names)
    if not splits:
        raise TuneError(f"The data set {info.id} {_NO_HUB_FILES}.", "Choose another one.")
    notes = []
    if subset and len(subsets) > 1:
        others = one_line(", ".join(other.name for other in subsets if other is not subset), 200)
        notes.append(f"Of several subsets {one_line(subset.name, 80)!r} was taken; there are also: {others}.")
    plan = {"splits": {split: _one_kind(files) for split, files in splits.items()}, "notes": notes}
    return plan | {"subsets": [other.name for other in subsets]}, info


def _data_files(info: DatasetInfo) -> list[str]:
    names = [file.rfilename for file in info.siblings or []]
    return sorted(
        name
        for name in names
        if suffix_of(name) in SUFFIXES and not _is_hidden(name) and not is_description(name)
    )


def _is_hidden(name: str) -> bool:
    """True for hidden files, and for names that lead out of the folder they are put into."""
    parts = name.split("/")
    return any(part.startswith(".") or not part or part != visible(part) or "\\" in part for part in parts)


def _card(api: HfApi, info: DatasetInfo) -> str:
    from ollama_tune.core.models.download import get_small

    card = next((file for file in info.siblings or [] if file.rfilename == "README.md"), None)
    if card is None or (card.size or 0) > LARGEST:
        return ""
    return get_small(api, info, "README.md").decode("utf-8", "replace")


def _converted(part: str, names: list[str]) -> Subset:
    """A subset in the hub's Parquet copy: `subset/split/0000.parquet`."""
    splits = dict.fromkeys(name.split("/")[1] for name in names if name.startswith(f"{part}/"))
    placed = tuple((split.removeprefix("partial-"), (f"{part}/{split}/*",)) for split in splits)
    return Subset(part, part == "default", placed)


def _chosen(name: str, subsets: list[Subset], wanted: str) -> Subset | None:
    """The subset asked for, else the one marked or called `default`, else the first; None without any."""
    if wanted:
        for subset in subsets:
            if subset.name == wanted:
                return subset
        listed = one_line(", ".join(subset.name for subset in subsets), 200) or "none"
        text = f"The data set {name} has no subset {one_line(wanted, 80)}; it has {listed}."
        raise TuneError(text, "Choose one of them, or leave it empty.")
    usual = [subset for subset in subsets if subset.default] or [s for s in subsets if s.name == "default"]
    return next(iter(usual or subsets), None)


def _by_names(names: list[str]) -> dict[str, list[str]]:
    """Splits by the names of the files, where no card tells."""
    splits: dict[str, list[str]] = {}
    for file in _one_kind(names):
        splits.setdefault(split_of(file) or "train", []).append(file)
    return splits


def _one_kind(files: list[str]) -> list[str]:
    """Only the most frequent kind of file: other kinds are mostly the same rows in another form."""
    kinds = Counter(suffix_of(file) for file in files)
    order = {suffix: number for number, suffix in enumerate(_PREFERRED)}
    kind = max(kinds, key=lambda suffix: (kinds[suffix], -order.get(suffix, len(order))))
    return [file for file in files if suffix_of(file) == kind]
