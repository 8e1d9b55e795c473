"""The JSON Schema of run.yaml, by a validator of its dialect: it takes and refuses what the settings do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.former import FORMER
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.schema import field_default, field_examples, json_schema
from ollama_tune.core.plan.settings import Settings, field_paths, load, parse
from tests.cases import CHAT, LLAMA_8B, SHORT, TINY, machine

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
FORMERLY = {former.path for former in FORMER}
"""Took other types in earlier releases."""


def schema_takes(text: str) -> bool:
    """As an editor sees the file: names of YAML are texts."""
    return bool(VALIDATOR.is_valid(json.loads(json.dumps(yaml.safe_load(text)))))


def we_take(text: str, folder: Path) -> bool:
    (folder / "run.yaml").write_text(text)
    try:
        load(folder / "run.yaml")
    except UsageError:
        return False
    return True


def described(path: str) -> dict[str, Any]:
    section, name = path.split(".")
    found: dict[str, Any] = SCHEMA["properties"][section]["properties"][name]
    return found


def wrong_values(path: str) -> Iterator[Any]:
    """Values of other types, and just outside the limits that the schema names."""
    about = described(path)
    kinds = {option.get("type") for option in [about, *about.get("anyOf", [])]}
    yield from () if "object" in kinds else [{"a": "b"}]
    yield from () if "array" in kinds else [["a"]]
    yield from ["word", True] if kinds <= {"integer", "number"} else []
    yield from ["word"] if kinds == {"boolean"} else []
    yield from [7, True] if "string" in kinds and path not in FORMERLY else []
    yield from () if "null" in kinds else [None]
    yield from ["nonsense"] if "enum" in about else []
    for limit, by in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0), ("exclusiveMaximum", 0)):
        if limit in about:
            yield about[limit] + by


def test_the_schema_is_one_of_its_dialect() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("path", field_paths())
def test_both_take_a_fields_examples_and_refuse_what_is_outside_its_limits(path: str, tmp_path: Path) -> None:
    section, name = path.split(".")
    for value in (field_default(path), *field_examples(path)):
        text = yaml.safe_dump({section: {name: value}})
        assert schema_takes(text) and we_take(text, tmp_path), value
    for value in wrong_values(path):
        text = yaml.safe_dump({section: {name: value}})
        assert not schema_takes(text), value
        assert not we_take(text, tmp_path), value


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\n",
        "training: {rank: 32, learning_rate: 1.0e-4}\n",
        "training: {targets: [q_proj, v_proj]}\nexport: {also: [merged]}\n",
        "data: {labels: {0: negative, 1: positive}, columns: {question: Frage}}\n",
        "data: {labels: {true: spam, false: fine}}\n",
        "model: {source: org/name, revision: null}\n",
        "training: {epochs: 3, warmup: 0}\n",
        "tracking: {to: [tensorboard, mlflow]}\n",
    ],
)
def test_files_that_both_take(text: str, tmp_path: Path) -> None:
    assert schema_takes(text) and we_take(text, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "version: 2\n",
        "version: one\n",
        "training: {rnak: 32}\n",
        "trainig: {rank: 32}\n",
        "- training\n",
        "training: [rank]\n",
        "training: {rank: 8.5}\n",
        "training: {rank: yes}\n",
        "training: {targets: 7}\n",
        "export: {also: [everything]}\n",
        "data: {labels: {0: ''}}\n",
        "tracking: {to: tensorboard}\n",
        "tracking: {project: ''}\n",
    ],
)
def test_files_that_both_refuse(text: str, tmp_path: Path) -> None:
    assert not schema_takes(text) and not we_take(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "schema", "ours"),
    [
        ("training: {device: cpu, compute_dtype: float16}\n", True, False),
        ("training: {early_stopping_metric: chrf}\nevaluation: {rows: 0}\n", True, False),
        ("export: {name: two words}\n", True, False),
        ("training: {rank: '32'}\n", False, True),
        ("training: {gradient_checkpointing: true}\n", False, True),
    ],
)
def test_where_they_differ_and_why(text: str, schema: bool, ours: bool, tmp_path: Path) -> None:
    """Settings that exclude each other and names of Ollama are beyond a schema; numbers in quotes and the
    words of earlier releases are taken, but an editor shall not offer them."""
    assert (schema_takes(text), we_take(text, tmp_path)) == (schema, ours)


@pytest.mark.parametrize("card", [None, 24, 139])
def test_files_of_plans_are_taken_by_both(card: int | None, tmp_path: Path) -> None:
    for spec, rows in ((TINY, SHORT), (LLAMA_8B, CHAT)):
        text = make_plan(machine(gpu=card) if card else machine(), spec, rows, {}).settings.to_yaml()
        assert schema_takes(text) and we_take(text, tmp_path)
    assert parse(yaml.safe_load(Settings().to_yaml())) == Settings()
