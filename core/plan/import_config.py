"""Configs of LLaMA-Factory, Axolotl and TRL as a run.yaml, and what became of each of their fields.

Nothing is lost without a word: a field is taken, approximated, dropped because it changes nothing in the
trained model, or said to be missing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.import_data import ROWS, Source
from ollama_tune.core.plan.import_defaults import DEFAULTS
from ollama_tune.core.plan.import_kinds import PREFIXES
from ollama_tune.core.plan.import_preferences import OBJECTIVE, WAYS
from ollama_tune.core.plan.import_rules import Found, Outcome
from ollama_tune.core.plan.import_tables import TABLES
from ollama_tune.core.plan.settings import VERSION, Settings, field_paths, parse, release
from ollama_tune.core.plan.yaml_lines import Marked, read_marked

TITLES = {"llamafactory": "LLaMA-Factory", "axolotl": "Axolotl", "trl": "TRL"}
MARKS = {
    "llamafactory": "cutoff_len dataset_dir finetuning_type lora_rank lora_target quantization_bit stage"
    " template val_size model_name_or_path",
    "axolotl": "adapter base_model datasets micro_batch_size sample_packing sequence_len val_set_size",
    "trl": "dataset_name model_name_or_path dataset_train_split lora_r lora_target_modules max_length"
    " max_seq_length r use_peft model_name target_modules",
}
"""Fields by which a config is told."""
ENOUGH = 2
OPEN_COLUMNS = "data.columns."


@dataclass(frozen=True)
class Field:
    """What became of a field: its name and value in the file, its line, the settings it gave, and why.

    A field of the tool's own defaults has no line.
    """

    name: str
    value: Any
    line: int | None
    outcome: Outcome
    settings: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class Imported:
    """A config read: the tool, the values of the run.yaml as a tree, and every field."""

    format: str
    path: Path
    tree: dict[str, Any]
    fields: tuple[Field, ...]

    def to_yaml(self) -> str:
        """The text of the run.yaml; what it leaves out is chosen for the box or has its default."""
        head = f"# Made by ollama-tune {release()} from {self.path.name} of {TITLES[self.format]}.\n"
        return head + yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True)


def import_config(path: Path) -> Imported:
    """Read another tool's config; `UsageError` where it is none, or one of a kind that is not known."""
    marked = read_marked(path)
    if not isinstance(marked.tree, dict) or not marked.tree:
        raise UsageError(f"{path} holds no table of fields.", _known())
    tree = {str(name): value for name, value in marked.tree.items()}
    tool = _tool(path, tree)
    fields = [*_fields(marked, tree, tool)]
    values = _values(fields)
    fields += _defaults(tool, values)
    fields = _with_preferences(fields)
    values = _values(fields)
    checked = _tree(values)
    parse(checked)
    return Imported(tool, path, checked, tuple(fields))


def _known() -> str:
    return f"Give a config of {', '.join(TITLES.values())}."


def _tool(path: Path, tree: Mapping[str, Any]) -> str:
    """The tool whose fields stand in the file."""
    if "training" in tree and isinstance(tree.get("training"), dict):
        raise UsageError(f"{path} is a run.yaml already.", f"Start it with `ollama-tune run {path}`.")
    found = {tool: sum(name in tree for name in names.split()) for tool, names in MARKS.items()}
    best = max(found, key=lambda tool: found[tool])
    if found[best] < ENOUGH:
        raise UsageError(f"{path} cannot be told as a config of {', '.join(TITLES.values())}.", _known())
    return best


def _fields(marked: Marked, tree: Mapping[str, Any], tool: str) -> Iterator[Field]:
    """What becomes of each field of the file, in its order but for those of the rows."""
    source = Source(dict(tree), marked.path.parent)
    for name, value, found in ROWS[tool](source):
        yield _checked(name, value, _line(marked, name), found, source.folder)
    for name, value in source.fields.items():
        found = _rule(tool, name, value)
        yield _checked(name, value, _line(marked, name), found, source.folder)


def _line(marked: Marked, name: str) -> int | None:
    return marked.line(tuple(name.split("."))) if name.split(".")[0] in marked.tree else None


def _rule(tool: str, name: str, value: Any) -> Found:
    if value is None or value == "" or value == [] or value == {}:
        return Found("dropped", why="It is empty.")
    known = (rule for prefix, rule in PREFIXES.items() if name.startswith(prefix))
    rule = TABLES[tool].get(name) or next(known, None)
    found = rule(value) if rule else Found("missing", why="ollama-tune knows nothing of that name.")
    if value is False and found.outcome == "missing":
        return Found("dropped", why="It is off.")
    return found


def _checked(name: str, value: Any, line: int | None, found: Found, folder: Path) -> Field:
    """The field with what the settings take of it; a value that they refuse is missing, with their reason."""
    taken = {}
    for path, wanted in found.values.items():
        if path.startswith(OPEN_COLUMNS):
            taken[path] = wanted
        elif path == "model.source":
            taken[path] = Source({}, folder).place(wanted)
        elif path not in field_paths():
            return Field(name, value, line, "missing", {}, "This is not in a run.yaml of this release.")
        else:
            try:
                taken[path] = _device(path, wanted).get(path)
            except UsageError as error:
                return Field(name, value, line, "missing", {}, error.what)
    return Field(name, value, line, found.outcome, taken, found.why)


def _device(path: str, value: Any) -> Settings:
    """Settings with one value, on the device that the value may need."""
    return Settings().with_values({"training.device": "cuda", path: value})


def _values(fields: list[Field]) -> dict[str, Any]:
    """All settings that the fields gave; where two give the same one, the first holds."""
    values: dict[str, Any] = {}
    for field in fields:
        for path, value in field.settings.items():
            values.setdefault(path, value)
    return values


def _defaults(tool: str, values: Mapping[str, Any]) -> Iterator[Field]:
    """What the tool does where its config says nothing, if it is not what is done here."""
    said = dict(values)
    for path, default in DEFAULTS[tool].items():
        value = default(said) if callable(default) else default
        if path not in said and value is not None:
            said[path] = value
            why = f"This is what {TITLES[tool]} does."
            yield Field(path, said[path], None, "default", {path: said[path]}, why)
    for path, bundled in (("model.source", "model"), ("data.path", "rows")):
        if path not in said:
            why = (
                f"None is named: write one into the run.yaml, which stands for the bundled {bundled} without."
            )
            yield Field(path, None, None, "missing", {}, why)


def _with_preferences(fields: list[Field]) -> list[Field]:
    """The fields with what preferences are learned with here in place of what they are not."""
    if _values(fields).get(OBJECTIVE) != "dpo":
        return fields
    return [_other_way(field) for field in fields]


def _other_way(field: Field) -> Field:
    changed = {path: ways for path, ways in WAYS.items() if field.settings.get(path) == ways.not_here}
    if not changed:
        return field
    settings = {**field.settings, **{path: ways.instead for path, ways in changed.items()}}
    why = " ".join(ways.why for ways in changed.values())
    return replace(field, outcome="approximated", settings=settings, why=why)


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in sections, in the order of a run.yaml; the parts of data.columns as one table."""
    columns = {path.removeprefix(OPEN_COLUMNS): name for path, name in values.items() if OPEN_COLUMNS in path}
    plain = {path: value for path, value in values.items() if OPEN_COLUMNS not in path}
    plain |= {"data.columns": columns} if columns else {}
    if str(plain.get("training.optimizer")).startswith("paged"):
        plain["training.device"] = "cuda"
    tree: dict[str, Any] = {"version": VERSION}
    for path in field_paths():
        if path in plain:
            section, _, name = path.partition(".")
            tree.setdefault(section, {})[name] = plain[path]
    return tree
