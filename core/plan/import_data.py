"""Which rows another tool's config names: each tool's way of saying so, as the `data` section of a run.yaml.

Every function takes what is left of the config, removes the fields that it understands, and yields what
became of each. Names of files are relative to the config, else to the folder that one is in; nothing is
opened but `dataset_info.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.plan.import_rules import Found

Told = tuple[str, Any, Found]
"""A field as it is named in the file, its value, and what becomes of it."""

MORE = "A run learns from one data set: lay the files together, or name another one in data.path."
TOLD = "The form of the rows is told by their content; `ollama-tune data FILE` says what is found."
ROLES = "The names of the roles are told by the content."
INFO = "dataset_info.json"
MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Source:
    """The fields of a config that no table knows, and the folder that its paths start from."""

    fields: dict[str, Any]
    folder: Path

    def place(self, name: Any) -> str:
        """A file as a whole path where it is one; else the name of a data set of the hub as it stands."""
        path = self.path(name)
        return str(path.absolute()) if path.exists() else str(name)

    def path(self, name: Any) -> Path:
        """A path beside the config where it is there, else from the folder that one is in."""
        beside = self.folder / Path(str(name)).expanduser()
        return beside if beside.exists() else Path(str(name)).expanduser()

    def take(self, name: str) -> Any:
        """A field's value, which is then no longer left."""
        return self.fields.pop(name)


def llamafactory(source: Source) -> Iterator[Told]:
    """`dataset` names entries of `dataset_info.json` in `dataset_dir`, with commas between them."""
    folder = source.path(source.fields.get("dataset_dir") or "data")
    if "dataset_dir" in source.fields:
        yield (
            "dataset_dir",
            source.take("dataset_dir"),
            Found("taken", why="The folder that was looked into."),
        )
    if "eval_dataset" in source.fields:
        why = "Name a split or a file of the folder in data.validation; else a share of the rows is held out."
        yield "eval_dataset", source.take("eval_dataset"), Found("missing", why=why)
    if "dataset" not in source.fields:
        return
    value = source.take("dataset")
    names = [part.strip() for part in (value if isinstance(value, list) else str(value).split(","))]
    yield "dataset", names[0], _entry(names[0], folder, source)
    for name in names[1:]:
        yield "dataset", name, Found("missing", why=MORE)
    yield from _described(names[0], folder, _TEXTS if source.fields.get("stage") == "pt" else _PARTS)


def _entry(name: str, folder: Path, source: Source) -> Found:
    entry = _info(folder).get(name)
    if not isinstance(entry, dict):
        path = folder / name
        found = source.place(path) if path.exists() else name
        why = f"{INFO} in {folder} has no such entry: the name is taken as a file or a data set of the hub."
        return Found("approximated", {"data.path": found}, why)
    if hub := entry.get("hf_hub_url") or entry.get("ms_hub_url"):
        return Found("taken", {"data.path": str(hub)})
    return Found("taken", {"data.path": str((folder / str(entry.get("file_name", name))).absolute())})


def _info(folder: Path) -> dict[str, Any]:
    """The table of data sets; an empty one where the file is missing or damaged."""
    try:
        with (folder / INFO).open("rb") as file:
            table = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


_PARTS = {"prompt": "question", "query": "context", "response": "answer", "messages": "conversation"}
_PARTS |= {"system": "system", "chosen": "chosen", "rejected": "rejected"}
_TEXTS = {"prompt": "text"}
"""Which part a column plays, and where plain text is learned."""


def _described(name: str, folder: Path, parts: Mapping[str, str]) -> Iterator[Told]:
    """The entry's own fields."""
    entry = _info(folder).get(name)
    for field, value in (entry if isinstance(entry, dict) else {}).items():
        place = f"{INFO}.{name}.{field}"
        if field in ("file_name", "hf_hub_url", "ms_hub_url"):
            yield place, value, Found("taken", why="It is data.path.")
        elif field in ("subset", "split"):
            yield place, value, _whole(f"data.{field}", value)
        elif field == "columns" and isinstance(value, Mapping):
            yield from _columns(place, value, parts)
        elif field in ("formatting", "tags", "ranking"):
            yield place, value, Found("dropped", why=TOLD)
        else:
            yield place, value, Found("missing", why="This is not in a run.yaml.")


def _columns(place: str, columns: Mapping[str, Any], parts: Mapping[str, str]) -> Iterator[Told]:
    """Names of columns by what they hold; those that their own names tell are left to the data room."""
    for part, name in columns.items():
        ours = parts.get(str(part))
        found = Found("dropped", why=TOLD) if ours is None else _column(ours, name)
        yield f"{place}.{part}", name, found


def _column(part: str, name: Any) -> Found:
    """The column of a part; one that its own name tells needs no setting."""
    from ollama_tune.core.data.schemas.columns import ALIASES, normal

    if normal(str(name)) in (*ALIASES[part], *(["input"] if part == "context" else [])):
        return Found("taken", why="The column is known by its name.")
    return Found("taken", {f"data.columns.{part}": str(name)})


def _whole(path: str, value: Any) -> Found:
    """A name as it stands; of a part of a split (`train[:10%]`) the split."""
    name, bracket, _ = str(value).partition("[")
    if path in ("data.split", "data.validation") and bracket:
        return Found("approximated", {path: name}, "A split is taken whole.")
    return Found("taken", {path: value})


def axolotl(source: Source) -> Iterator[Told]:
    """`datasets` is a list; the first one is taken."""
    for field in ("test_datasets", "dataset_exact_deduplication"):
        if field in source.fields:
            held_out = (
                "A share of the rows is held out, or the split in data.validation; copies are left out."
            )
            yield field, source.take(field), Found("missing", why=held_out)
    if pretraining := source.fields.get("pretraining_dataset"):
        source.take("pretraining_dataset")
        told = {"type": "pretrain"}
        entries = pretraining if isinstance(pretraining, list) else [pretraining]
        entries = [told | (entry if isinstance(entry, dict) else {"path": entry}) for entry in entries]
        yield from _axolotl_rows("pretraining_dataset", entries, source)
    if isinstance(source.fields.get("datasets"), list):
        yield from _axolotl_rows("datasets", source.take("datasets"), source)


def _axolotl_rows(place: str, entries: list[Any], source: Source) -> Iterator[Told]:
    for number, entry in enumerate(entries):
        for field, value in (entry if isinstance(entry, dict) else {"path": entry}).items():
            found = Found("missing", why=MORE) if number else _axolotl_field(str(field), value, source)
            yield f"{place}.{number}.{field}", value, found


def _axolotl_field(field: str, value: Any, source: Source) -> Found:
    direct = {"split": "data.split", "name": "data.subset", "revision": "data.revision"}
    columns = {"field_messages": "conversation", "field": "text", "field_system": "system"}
    columns |= {"field_chosen": "chosen", "field_rejected": "rejected", "text_column": "text"}
    if field in direct:
        return _whole(direct[field], value)
    if field in columns:
        return _column(columns[field], value)
    if field == "path":
        return Found("taken", {"data.path": source.place(value)})
    if field == "data_files":
        files = value if isinstance(value, list) else [value]
        first = {"data.path": source.place(files[0])}
        return Found("taken", first) if len(files) == 1 else Found("approximated", first, MORE)
    if field == "type":
        return _axolotl_type(value)
    if field in ("ds_type", "conversation", "message_property_mappings", "roles", "chat_template"):
        return Found("dropped", why=TOLD)
    if field in ("message_field_role", "message_field_content", "field_human", "field_model"):
        return Found("dropped", why=ROLES)
    return Found("missing", why="Every answer of every row is learned from, as the model's template has it.")


def _axolotl_type(value: Any) -> Found:
    """A name of a form, or the columns of one."""
    if isinstance(value, Mapping):
        names = {"field_instruction": "question", "field_input": "context", "field_output": "answer"}
        names |= {"field_system": "system"}
        parts = [_column(names[key], name).values for key, name in value.items() if key in names]
        taken = {path: name for part in parts for path, name in part.items()}
        return Found("approximated", taken, "The columns are taken; texts around them are not.")
    if str(value) in ("completion", "pretrain"):
        return Found("taken", {"data.form": "text"})
    return Found("dropped", why=TOLD)


def trl(source: Source) -> Iterator[Told]:
    """`dataset_name` is a data set of the hub, or a file."""
    names = {
        "dataset_config": "data.subset",
        "dataset_config_name": "data.subset",
        "dataset_train_split": "data.split",
        "dataset_test_split": "data.validation",
        "dataset_text_field": "data.columns.text",
    }
    for field in ("dataset_name", "dataset"):
        if field in source.fields:
            value = source.take(field)
            yield field, value, Found("taken", {"data.path": source.place(value)})
    for field in [name for name in names if name in source.fields]:
        yield field, source.fields[field], _whole(names[field], source.take(field))


ROWS: Mapping[str, Callable[[Source], Iterator[Told]]] = {
    "llamafactory": llamafactory,
    "axolotl": axolotl,
    "trl": trl,
}
