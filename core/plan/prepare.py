"""From a model and a data file to a plan in one call, without torch and, where need be, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ollama_tune.core.data.chat.options import fit_options
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.tokens.lengths import (
    SAMPLE,
    encode_rows,
    estimate_lengths,
    is_encoded,
    sample_lengths,
)
from ollama_tune.core.data.tokens.sides import measure_rows
from ollama_tune.core.data.values import DatasetProfile, Lengths, Reading
from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.host import read_host
from ollama_tune.core.machine.probe import probe_machine
from ollama_tune.core.machine.values import Disk, Gpu, GpuReport, Machine, OllamaStatus
from ollama_tune.core.models.architectures import read_config
from ollama_tune.core.models.catalogue import find_listed, spec_of
from ollama_tune.core.models.chat_templates import chosen_template
from ollama_tune.core.models.describe import describe
from ollama_tune.core.models.locate import is_hub_id
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.pins import hub_news
from ollama_tune.core.plan.predict import read_model_config
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.room import settings_here
from ollama_tune.core.plan.settings import BUNDLED, Settings, field_paths, parse
from ollama_tune.core.plan.shape import Shape
from ollama_tune.core.plan.values import Plan
from ollama_tune.core.text import human_bytes, one_line

COUNTED = 20_000
"""Rows that are all turned into tokens for a plan, in seconds."""
NO_WEIGHTS = "The model's weights are not here; its size is counted from config.json."
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")


@dataclass(frozen=True)
class Prepared:
    """A plan with what it was made from."""

    plan: Plan
    machine: Machine
    spec: ModelSpec
    lengths: Lengths


def prepare(model: str, data: str, changed: Mapping[str, Any]) -> Plan:
    """Probe the box, read model and data, and recommend settings; `changed` are the person's own."""
    return prepare_for(model, data, changed).plan


def prepare_for(model: str, data: str, changed: Mapping[str, Any], gpu: Gpu | None = None) -> Prepared:
    """As `prepare`, for a card that is not in this box where one is given.

    The model may be a folder with a `config.json` alone, or a listed hub id that cannot be fetched; what is
    then only estimated stands among the plan's warnings.
    """
    spec, notes = _describe(model, changed.get("model.revision"))
    lengths, counted = _lengths(spec, data, _reading(changed), changed.get("model.chat_template"))
    machine = probe_machine() if gpu is None else _box_with(gpu)
    mine = {} if data == BUNDLED else {"data.path": data}
    plan = make_plan(machine, spec, lengths, mine | dict(changed))
    notes = [*notes, *counted, *hub_news(plan.settings)]
    if gpu is not None:
        free = human_bytes(gpu.free)
        notes.append(f"Planned for {gpu.name} with {free} free; that box's disk and Ollama are not checked.")
    return Prepared(replace(plan, warnings=(*notes, *plan.warnings)), machine, spec, lengths)


def prepare_file(file: Path, values: Mapping[str, Any], gpu: Gpu | None = None) -> Prepared:
    """As `prepare_for` of a run.yaml with these values by dotted path, as a run of it takes them."""
    settings, _ = settings_here(file, values, probe_machine if gpu is None else lambda: _box_with(gpu))
    return prepare_settings(settings, gpu)


def prepare_settings(settings: Settings, gpu: Gpu | None = None) -> Prepared:
    """The plan of settings that are all the person's own."""
    said = {path: settings.get(path) for path in field_paths()}
    return prepare_for(settings.model.source, settings.data.path, said, gpu)


def _box_with(gpu: Gpu) -> Machine:
    """A box with that card, of which nothing else is known."""
    nobody = OllamaStatus("", None, "This plan is for another box.", local=True)
    host = replace(read_host(), ram_total=0, ram_available=0)
    return Machine(GpuReport((gpu,), None, ""), host, Disk("", 0, 0), nobody)


def _describe(model: str, revision: str | None) -> tuple[ModelSpec, list[str]]:
    """The model from its files, from a lone config.json, or from the list that ships with the tool."""
    if model != BUNDLED and not is_hub_id(model) and _lacks_weights(Path(model)):
        return _of_config(Path(model).absolute()), [NO_WEIGHTS]
    listed = find_listed(model)
    try:
        return describe(model, revision), []
    except TuneError as error:
        if listed is None:
            raise
        return spec_of(listed), [f"{one_line(error.what, 160)} The figures are from the shipped list."]


def _lacks_weights(folder: Path) -> bool:
    """Whether there is a config.json and no file of weights of any format."""
    if not (folder / "config.json").is_file():
        return False
    return not any(path.suffix in WEIGHT_FILES for path in folder.iterdir())


def _of_config(folder: Path) -> ModelSpec:
    """A model of which only the configuration is known: all weights counted in 16 bit."""
    config = read_model_config(folder)
    shape = Shape.of_config(config)
    context = config.get("max_position_embeddings")
    try:
        read_config(folder)
        reason = ""
    except TuneError as error:
        reason = error.what
    return ModelSpec(
        source=str(folder),
        folder=folder,
        name=folder.name,
        architecture=str((config.get("architectures") or [""])[0]),
        model_type=shape.model_type,
        parameters=shape.parameters,
        weight_bytes=2 * shape.parameters,
        weight_dtype="BF16",
        hidden_size=shape.H,
        intermediate_size=shape.I,
        layers=shape.L,
        heads=shape.heads,
        key_value_heads=shape.K // shape.width,
        head_dim=shape.width,
        vocabulary_size=shape.V,
        tied_embeddings=shape.tied,
        context_length=context if isinstance(context, int) and context > 0 else 2048,
        chat_template=None,
        licence="",
        export_reason=reason,
    )


def _reading(changed: Mapping[str, Any]) -> Reading:
    """How the person wants the data to be read."""
    mine = {name[5:]: value for name, value in changed.items() if name.startswith("data.")}
    return parse({"data": mine}).data.reading()


def _lengths(spec: ModelSpec, data: str, reading: Reading, form: str | None) -> tuple[Lengths, list[str]]:
    """Token lengths of the rows, estimated where the model has no tokenizer here or the rows are many.

    Many rows are counted by the run itself, or by the wizard in the background; what was counted is kept.
    """
    profile = load_dataset(data, reading)
    lengths, notes = _counted(spec, data, profile, form)
    return replace(lengths, kind=profile.kind), [*_of_data(profile), *notes]


def _of_data(profile: DatasetProfile) -> list[str]:
    """What nobody hears who never looked at the data: rows that are not used, choices that were taken."""
    aside = profile.total - profile.usable
    words = f"{aside:,} of the data's {profile.total:,} rows are left out: `ollama-tune data` says why."
    return [words] * bool(aside) + [asked.told for asked in profile.questions]


def _counted(
    spec: ModelSpec, data: str, profile: DatasetProfile, form: str | None
) -> tuple[Lengths, list[str]]:
    if not (spec.folder / "tokenizer.json").is_file():
        note = "Tokens are estimated from the rows' bytes, as the model's tokenizer is not here."
        return estimate_lengths(profile.rows), [note]
    chat = ChatFormat.from_folder(spec.folder, template=chosen_template(spec.folder, form))
    chat = fit_options(chat, profile.rows)
    count = len(profile.rows)
    if count > COUNTED and not is_encoded(chat, profile.rows):
        note = f"Tokens are estimated from {SAMPLE:,} of the {count:,} rows; the run counts them all."
        return sample_lengths(chat, profile.rows, count), [note]
    examples, problems = encode_rows(chat, profile.rows)
    if not examples:
        reason = problems[0].text if problems else "The file has no usable row."
        raise TuneError(f"Nothing in {data} can be trained on: {reason}", "Use other data or another model.")
    return measure_rows(chat, profile.rows, examples), []
