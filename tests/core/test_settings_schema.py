"""The schema and the page of run.yaml say what the settings themselves take, of every field."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_tune.core.paths import asset
from ollama_tune.core.plan.schema import (
    EXAMPLES,
    field_default,
    field_examples,
    field_info,
    json_schema,
    markdown,
)
from ollama_tune.core.plan.settings import Settings, field_paths

SCHEMA = json_schema()


def described(path: str) -> dict[str, Any]:
    section, name = path.split(".")
    found: dict[str, Any] = SCHEMA["properties"][section]["properties"][name]
    return found


def test_every_field_is_in_the_schema_with_title_description_and_default() -> None:
    sections = {name: part for name, part in SCHEMA["properties"].items() if name != "version"}
    assert [f"{name}.{field}" for name, part in sections.items() for field in part["properties"]] == (
        field_paths()
    )
    for path in field_paths():
        field = described(path)
        assert field["description"] == " ".join(str(field_info(path).description).split())
        assert field["title"] and field["default"] == field_default(path)


def test_unknown_names_are_refused_by_the_schema_too() -> None:
    assert SCHEMA["additionalProperties"] is False
    parts = [part for name, part in SCHEMA["properties"].items() if name != "version"]
    assert all(part["additionalProperties"] is False for part in parts)
    assert "$ref" not in str(SCHEMA) and "$defs" not in SCHEMA


@pytest.mark.parametrize(
    ("path", "key", "limit"),
    [
        ("training.rank", "maximum", 512),
        ("training.rank", "minimum", 1),
        ("training.learning_rate", "exclusiveMinimum", 0.0),
        ("data.seed", "exclusiveMaximum", 2**31),
        ("export.type", "enum", ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_0"]),
    ],
)
def test_limits_stand_in_the_schema(path: str, key: str, limit: Any) -> None:
    assert described(path)[key] == limit


def test_every_example_is_taken_by_the_settings() -> None:
    assert set(EXAMPLES) <= set(field_paths())
    for path in field_paths():
        for example in field_examples(path):
            assert Settings().with_value(path, example).get(path) == example
            assert example in described(path)["examples"]


def test_the_page_has_a_row_for_every_field() -> None:
    page = markdown()
    for path in field_paths():
        section, name = path.split(".")
        part = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
        (row,) = [line for line in part.splitlines() if line.startswith(f"| `{name}` |")]
        assert " ".join(str(field_info(path).description).split()).replace("|", "\\|") in row
        assert len(row.replace("\\|", "").split("|")) == 6
    assert "above 0 and up to 1" in page and "`true` is `layers`" in page


def test_the_page_in_the_package_is_current() -> None:
    kept = asset("docs/run-yaml.md").read_text(encoding="utf-8")
    assert kept == markdown(), "run: ollama-tune schema --markdown > assets/docs/run-yaml.md"
