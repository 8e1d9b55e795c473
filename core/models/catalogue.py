"""The short list of open base models that ships with the tool, so that a plan needs neither hub nor files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from ollama_tune.core.models.families import ARCHITECTURES
from ollama_tune.core.models.locate import repository_folder
from ollama_tune.core.models.values import ModelChoice, ModelSpec
from ollama_tune.core.paths import asset, models_dir


@dataclass(frozen=True)
class CatalogueModel:
    """A base model's public facts, by the names of `ModelSpec`; `id` is the hub's.

    `gated` models are given to people who accepted a licence; None where the list does not know.
    `offered` are those that a beginner gets without a question, one a size.
    """

    id: str
    architecture: str
    licence: str
    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary_size: int
    context_length: int
    tied_embeddings: bool
    gated: bool | None = None
    offered: bool = False

    @property
    def name(self) -> str:
        """What the model is called, without its maker."""
        return self.id.split("/")[-1]


@cache
def catalogue() -> tuple[CatalogueModel, ...]:
    """Every listed model, the smallest first."""
    import yaml

    listed = yaml.safe_load(asset("models.yaml").read_text(encoding="utf-8"))
    return tuple(sorted((CatalogueModel(**entry) for entry in listed), key=lambda model: model.parameters))


def find_listed(source: str) -> CatalogueModel | None:
    """The listed model of a hub id; upper and lower case are the same to the hub."""
    return next((model for model in catalogue() if model.id.lower() == source.lower()), None)


def listed_choices(here: Collection[str]) -> list[ModelChoice]:
    """The listed models for the screen, without those whose ids are here already."""
    return [
        ModelChoice(model.id, "catalogue", model.id, 2 * model.parameters, _note(model))
        for model in catalogue()
        if model.id not in here
    ]


def _note(model: CatalogueModel) -> str:
    asked = "; its licence has to be accepted on the hub" if model.gated else ""
    return f"not downloaded, licence {model.licence}{asked}"


def spec_of(model: CatalogueModel) -> ModelSpec:
    """The model as a plan sees it, before anything of it is here.

    Weights count as 16 bit each. The chat template is not known yet, and neither is what its tokenizer
    would do to the export: `describe` reads both from the hub.
    """
    family = ARCHITECTURES[model.architecture]
    return ModelSpec(
        source=model.id,
        folder=repository_folder(models_dir(), model.id),
        name=model.name,
        architecture=model.architecture,
        model_type=family.model_type,
        parameters=model.parameters,
        weight_bytes=2 * model.parameters,
        weight_dtype="BF16",
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        layers=model.layers,
        heads=model.heads,
        key_value_heads=model.key_value_heads,
        head_dim=model.head_dim,
        vocabulary_size=model.vocabulary_size,
        tied_embeddings=model.tied_embeddings,
        context_length=model.context_length,
        chat_template=None,
        licence=model.licence,
        export_reason="",
    )
