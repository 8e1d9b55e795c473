"""Takes over an adapter that another program trained, as a run whose training is done."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export.adapter import Adapter
from ollama_tune.core.export.adapter_config import CONFIG, WEIGHTS
from ollama_tune.core.export.outputs import TOKENIZER_FILES
from ollama_tune.core.files import FREED, sync_folder, write_atomic
from ollama_tune.core.models.describe import describe
from ollama_tune.core.models.tokenizer_files import chat_template, read_json
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.settings import ALL_LINEAR, Settings
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, create_run
from ollama_tune.core.text import one_line

_FOUR_BIT = re.compile(r"-(?:unsloth-)?bnb-4bit$", re.IGNORECASE)
_GIVE_BASE = "Name the model it was trained on with --base: a folder, or a Hugging Face id."


def adopt(adapter: Path, base: str | None = None, name: str | None = None) -> RunFolder:
    """A new run around a copy of an adapter folder of PEFT, Unsloth, LLaMA-Factory or Axolotl.

    `base` is a folder or hub id, by default the one that the adapter names; of a hub id only the small
    files are fetched here, the export downloads its weights. `name` is the model's name in Ollama. Raises
    `TuneError` for what cannot be merged or exported, and leaves no run behind then.
    """
    adapter = find_adapter(adapter)
    config = read_json(adapter / CONFIG) or {}
    Adapter(adapter).close()
    source, revision = _base(config, base)
    spec = _described(source, revision, given=base is not None)
    if spec.export_reason:
        raise TuneError(spec.export_reason, "Merge it with the program that trained it.")
    chat = _chat(adapter, spec.folder)
    settings = _settings(config, adapter, source, revision, name)
    folder = create_run(settings, name or adapter.name)
    try:
        _copy(adapter, folder.adapter)
        write_atomic(folder.chat_template_path, chat.template)
        _tell(folder, adapter, source)
    except BaseException as error:
        shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise TuneError(
                f"The adapter cannot be copied to {folder.path}: {error.strerror}.",
                f"Make room ({FREED}), or set OLLAMA_TUNE_HOME to another folder.",
            ) from error
        raise
    return folder


def find_adapter(path: Path) -> Path:
    """The folder itself if it holds an adapter; else a `UsageError` that names the newest one inside it."""
    path = path.expanduser().absolute()
    if (path / CONFIG).is_file():
        return path
    inside = [found.parent for found in path.glob(f"*/{CONFIG}")]
    if inside:
        newest = max(inside, key=lambda folder: (folder / CONFIG).stat().st_mtime)
        raise UsageError(
            f"{path} holds no adapter, but folders with one.", f"Give one of them, such as {newest}."
        )
    raise UsageError(f"{path} holds no adapter ({CONFIG} is missing).", "Give the folder that holds it.")


def _base(config: Mapping[str, Any], given: str | None) -> tuple[str, str | None]:
    """Source and revision of the base; a 4-bit repository is refused with the name of its original."""
    named = str(config.get("base_model_name_or_path") or "")
    source = given or named
    if not source:
        raise UsageError("The adapter does not say which model it was trained on.", _GIVE_BASE)
    if _FOUR_BIT.search(source):
        original = _FOUR_BIT.sub("", source)
        raise UsageError(
            f"The weights of {one_line(source, 80)} are rounded to 4 bit, and an adapter is merged into the "
            "original ones.",
            f"Give the 16-bit original with --base, most likely {one_line(original, 80)}.",
        )
    revision = config.get("revision") if source == named else None
    return source, str(revision) if revision else None


def _described(source: str, revision: str | None, *, given: bool) -> ModelSpec:
    try:
        return describe(source, revision)
    except TuneError as error:
        if given:
            raise
        raise TuneError(
            f"The adapter was trained on {one_line(source, 120)}, which cannot be used here: {error.what}",
            _GIVE_BASE,
        ) from error


def _chat(adapter: Path, base: Path) -> ChatFormat:
    """The adapter's tokenizer and template where it has them, else the base's."""
    own = (adapter / TOKENIZER_FILES[0]).is_file()
    template = chat_template(adapter) or chat_template(base)
    return ChatFormat.from_folder(adapter if own else base, datetime.now(), template=template, config=base)


def _settings(
    config: Mapping[str, Any], adapter: Path, source: str, revision: str | None, name: str | None
) -> Settings:
    """What the adapter tells of its training; without rows of data nothing is held out."""
    targets = config.get("target_modules")
    told = {
        "training.rank": config.get("r"),
        "training.alpha": config.get("lora_alpha"),
        "training.dropout": config.get("lora_dropout"),
        "training.targets": sorted(map(str, targets)) if isinstance(targets, list) else targets or ALL_LINEAR,
    }
    settings = Settings().with_values(
        {
            "model.source": source,
            "model.revision": revision,
            "data.path": str(adapter),
            "data.validation_split": 0.0,
            "evaluation.rows": 0,
            "export.name": name,
        }
    )
    for path, value in told.items():
        settings = _with(settings, path, value)
    return settings


def _with(settings: Settings, path: str, value: Any) -> Settings:
    """A figure that is not allowed here is left out; the adapter's own file counts anyway."""
    try:
        return settings.with_value(path, value)
    except UsageError:
        return settings


def _copy(adapter: Path, target: Path) -> None:
    """Copy what an export reads; a training that still writes into the old folder must not change it."""
    part = target.with_name(f".{target.name}.part")
    part.mkdir(mode=0o700)
    for name in (CONFIG, WEIGHTS, "chat_template.jinja", *TOKENIZER_FILES):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, part / name)
            sync_folder(part / name)
    part.rename(target)
    sync_folder(target.parent)


def _tell(folder: RunFolder, adapter: Path, source: str) -> None:
    """The log of a run that was trained elsewhere: no steps, no losses, and where it came from."""
    log = EventWriter(folder.events_path)
    try:
        where = one_line(str(adapter), 200)
        log.write("phase", name="imported", text=f"Took over the adapter in {where}, trained on {source}.")
        log.write(
            "done",
            stage="train",
            imported=str(adapter),
            steps=0,
            best_step=None,
            best_loss=None,
            base_exact_match=None,
            tuned_exact_match=None,
        )
    finally:
        log.close()
