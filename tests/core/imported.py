"""What tests ask of an imported config."""

from __future__ import annotations

from ollama_tune.core.plan.import_config import Field, Imported
from ollama_tune.core.plan.settings import Settings, load


def read(found: Imported) -> Settings:
    """The settings that a run reads from the written file."""
    path = found.path.with_name("run.yaml")
    path.write_text(found.to_yaml())
    return load(path)


def fields(found: Imported, name: str) -> list[Field]:
    return [field for field in found.fields if field.name == name]


def one(found: Imported, name: str) -> Field:
    (field,) = fields(found, name)
    return field
