"""`run.yaml` described by its own settings: as JSON Schema for editors, and as a page for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from ollama_tune.core.plan.former import FORMER
from ollama_tune.core.plan.settings import VERSION, Settings, field_paths

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXAMPLES: Mapping[str, list[Any]] = {
    "model.source": ["bundled", "org/name", "/models/my-model"],
    "model.revision": ["main"],
    "model.chat_template": ["plain roles"],
    "data.path": ["bundled", "/data/rows.jsonl", "org/name"],
    "data.split": ["train"],
    "data.validation": ["test"],
    "data.columns": [{"question": "Frage", "answer": "Antwort"}],
    "data.labels": [{"0": "negative", "1": "positive"}],
    "training.targets": ["all-linear", ["q_proj", "v_proj"]],
    "export.name": ["my-model", "me/kitchen:v2"],
    "export.system": ["You take orders in a kitchen."],
    "export.also": [["merged", "adapter_gguf"]],
}
"""For the fields whose default shows nothing; the others' example is their default."""
INTRO = """\
One file is a whole run. Every field may be left out: it then has its default (device and number format are
chosen for the box). Unknown names, wrong values and names that stand twice are refused with their line.
`ollama-tune schema` prints the same as JSON Schema for editors; `ollama-tune plan --output run.yaml` writes a
file with every field; `ollama-tune import FILE` makes one of another tool's config."""


def field_info(path: str) -> FieldInfo:
    """What the settings declare of a dotted field: type, limits, default, documentation."""
    section, name = path.split(".")
    model: Any = Settings.model_fields[section].annotation
    info: FieldInfo = model.model_fields[name]
    return info


def field_default(path: str) -> Any:
    """The value of a field that nobody set."""
    return field_info(path).get_default(call_default_factory=True)


def field_examples(path: str) -> list[Any]:
    """Values that a field may take, the most telling ones; none where nothing can be shown."""
    default = field_default(path)
    return EXAMPLES.get(path, [] if default in (None, "", [], {}) else [default])


def json_schema() -> dict[str, Any]:
    """The JSON Schema of run.yaml (draft 2020-12): titles, descriptions, limits, defaults, examples."""
    schema = Settings.model_json_schema()
    sections = schema.pop("$defs")
    for name in [name for name in schema["properties"] if name != "version"]:
        section = sections[schema["properties"][name]["$ref"].rpartition("/")[2]]
        for field, described in section["properties"].items():
            described["description"] = " ".join(described["description"].split())
            if examples := field_examples(f"{name}.{field}"):
                described["examples"] = examples
        section["title"] = name.capitalize()
        schema["properties"][name] = section
    named = {
        "$schema": DIALECT,
        "title": "run.yaml of ollama-tune",
        "description": "A whole fine-tuning run: model, data, training, evaluation, export.",
    }
    return named | {key: value for key, value in schema.items() if key not in named}


def limit_words(info: FieldInfo) -> str:
    """`from 1 to 512`, `above 0 and up to 1`, `from 0 up`, from the field's constraints."""
    found = {
        name: getattr(limit, name)
        for limit in info.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(limit, name)
    }
    low = f"from {_number(found['ge'])}" if "ge" in found else ""
    low = f"above {_number(found['gt'])}" if "gt" in found else low
    high = f"below {_number(found['lt'])}" if "lt" in found else ""
    high = f"up to {_number(found['le'])}" if "le" in found else high
    if low and high:
        return f"{low} to {_number(found['le'])}" if "ge" in found and "le" in found else f"{low} and {high}"
    return f"{low} up" if "ge" in found else low or high


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def markdown() -> str:
    """The page that documents every field: `assets/docs/run-yaml.md` is a copy of it."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield "# run.yaml"
    yield ""
    yield "<!-- Made by `ollama-tune schema --markdown`; do not edit. -->"
    yield ""
    yield INTRO
    yield ""
    yield f"`version` is the version of this schema, {VERSION}; a file without it is read as version 1."
    for section in dict.fromkeys(path.partition(".")[0] for path in field_paths()):
        yield from _section(section)
    yield from _former()


def _section(section: str) -> Iterator[str]:
    model: Any = Settings.model_fields[section].annotation
    yield from ("", f"## {section}", "", str(model.__doc__), "")
    yield "| field | takes | default | what it is |"
    yield "|---|---|---|---|"
    for path in field_paths():
        if path.startswith(f"{section}."):
            cells = (f"`{path.partition('.')[2]}`", _takes(path), _code(field_default(path)), _about(path))
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _takes(path: str) -> str:
    """The type of a field as YAML has it, with its limits."""
    info = field_info(path)
    return ", ".join(filter(None, (_type(info.annotation), limit_words(info))))


def _type(annotation: Any) -> str:
    """A type as YAML has it: `text`, `whole number`, the words that are allowed, a list or table of them."""
    plain = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`", type(None): "empty"}
    if annotation in plain:
        return plain[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(_code(part) for part in parts)
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"table of {_type(parts[0])} to {_type(parts[1])}"
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__)
    return " or ".join(_type(part) for part in parts)


def _code(value: Any) -> str:
    return "empty" if value in (None, "") else f"`{json.dumps(value).strip(chr(34))}`"


def _about(path: str) -> str:
    text = " ".join(str(field_info(path).description).split())
    shown = [json.dumps(example) for example in EXAMPLES.get(path, ())]
    return f"{text} For example {', '.join(f'`{example}`' for example in shown)}." if shown else text


def _former() -> Iterator[str]:
    yield from ("", "## Files of earlier releases", "")
    yield "These names and words of earlier releases are still read:"
    yield ""
    for former in FORMER:
        words = "; ".join(f"`{then}` is `{now}`" for then, now in former.words.items())
        moved = "" if former.path == former.now else f" is `{former.now}`"
        yield f"- `{former.path}`{moved}" + (f": {words}" if words else "")
