"""Everything an export can know before its first byte: names, files, room on the disks, and Ollama's word."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export.adapter_config import WEIGHTS
from ollama_tune.core.export.gguf import open_source, require_space
from ollama_tune.core.export.mix import FILE_TYPES, file_bytes
from ollama_tune.core.export.order import Emit, Order, progress
from ollama_tune.core.export.values import ExportStopped, Stopped
from ollama_tune.core.export.wire import patiently
from ollama_tune.core.models.download import download
from ollama_tune.core.models.locate import is_complete, is_hub_id, resolve, snapshots
from ollama_tune.core.models.weights import weight_names
from ollama_tune.core.plan.exportable import export_obstacle
from ollama_tune.core.plan.names import check_ollama_name
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.chat import run_chat
from ollama_tune.core.runs.folder import RunFolder

UNVERIFIED, FAILED = ".unverified.gguf", ".failed.gguf"
VOCABULARY_BYTES = 60
"""Bytes that an entry of the vocabulary takes in a file's header, with its score, kind and merges."""

Conversations = list[tuple[Message, ...]]


@dataclass(frozen=True)
class Prepared:
    """An order that can be carried out: held-out prompts, rows of the embedding, and bytes of the file."""

    order: Order
    conversations: Conversations
    vocabulary: int
    bytes: int
    importance: Path | None


def prepare(folder: RunFolder, emit: Emit, stopped: Stopped) -> Prepared:
    """Check all that can be checked before work begins; raises `TuneError` where the export cannot succeed.

    What an Ollama server says against the model costs warnings only: the file is worth having without it.
    """
    emit("phase", name="preparing", text="Checking the name, the model, the adapter and the disk.")
    order = _order(folder, emit, stopped)
    _clear_leftovers(folder.export)
    importance = _importance(order)
    vocabulary, size = patiently(lambda: _size(order, importance is not None), stopped)
    require_space(folder.export, size + _extra_bytes(order))
    _ask_ollama(order, size, emit, stopped)
    return Prepared(order, patiently(lambda: held_out(order), stopped), vocabulary, size, importance)


def _order(folder: RunFolder, emit: Emit, stopped: Stopped) -> Order:
    settings, wanted = folder.settings(), folder.export_settings()
    if obstacle := export_obstacle(settings):
        raise TuneError(obstacle, f"Ask it with `ollama-tune ask {folder.name}`.")
    if wanted.name is None:
        raise UsageError("The export has no name.", "Set export.name to the model's name in Ollama.")
    name = check_ollama_name(wanted.name)
    if folder.tuned is None:
        raise TuneError(
            f"The run {folder.name} has no tuned model yet.",
            f"Finish its training with `ollama-tune resume {folder.name}`.",
        )
    whole = settings.training.method == "full"
    base = folder.model if whole else _base(settings, emit, stopped)
    folder.export.mkdir(mode=0o700, exist_ok=True)
    chat = patiently(lambda: run_chat(folder, base), stopped)
    return Order(folder, settings, wanted, name, f"{_plain(name)}-{wanted.type}", base, chat)


def _plain(name: str) -> str:
    """The name in Ollama as part of a file's name: without its account, its tag after a dash."""
    model, _, tag = name.rpartition("/")[2].partition(":")
    return model if tag == "latest" else f"{model}-{tag}"


def _base(settings: Settings, emit: Emit, stopped: Stopped) -> Path:
    """The base model's folder; a hub id's weights are downloaded where they are missing."""
    source, revision = settings.model.source, settings.model.revision
    if not is_hub_id(source) or any(map(is_complete, snapshots(source, revision))):
        return resolve(source, revision)
    emit("phase", name="downloading", text=f"Downloading the base model {source}.")
    report = progress(emit, "downloading", "B")

    def told(done: int, total: int) -> None:
        if stopped():
            raise ExportStopped
        report(done, total)

    return patiently(lambda: download(source, revision, told), stopped)


def _clear_leftovers(folder: Path) -> None:
    """Remove what a killed export left; this worker holds the run, so nobody else writes here."""
    for leftover in [*folder.glob(f"*{UNVERIFIED}"), *folder.glob(".*.part")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _importance(order: Order) -> Path | None:
    """The run's importance matrix, where it is wanted, there, and of use to the type."""
    path = order.folder.importance_path
    useful = order.wanted.importance and FILE_TYPES[order.wanted.type].mixed
    return path if useful and path.is_file() else None


def _size(order: Order, importance: bool) -> tuple[int, int]:
    """Rows of the embedding, and bytes of the file; raises `TuneError` for what cannot be exported."""
    with open_source(order.base, order.adapter, order.chat, tokenizer={}) as source:
        tensors = file_bytes(source.plans, source.config, order.wanted.type, importance)
        rows = next(plan.rows for plan in source.plans if plan.name == "token_embd.weight")
    return rows, tensors + rows * VOCABULARY_BYTES


def _extra_bytes(order: Order) -> int:
    """Bytes of what is written besides the file; an adapter GGUF holds 32-bit numbers."""
    adapter = (order.adapter / WEIGHTS).stat().st_size if order.adapter else 0
    merged = sum((order.base / name).stat().st_size for name in weight_names(order.base))
    sizes = {"merged": merged + adapter, "adapter": adapter, "adapter_gguf": 2 * adapter}
    return sum(sizes[form] for form in order.wanted.also)


def _ask_ollama(order: Order, size: int, emit: Emit, stopped: Stopped) -> None:
    from ollama_tune.core.export.preflight import preflight
    from ollama_tune.core.machine.ollama import read_ollama

    if not order.wanted.push:
        return
    status = read_ollama()
    if not status.reachable:
        return
    notes = patiently(lambda: preflight(status.url, order.name, size), stopped)
    for note in notes:
        if note.verdict in ("warn", "fail"):
            left = "The file is written and proved all the same, and kept."
            emit("warning", what=note.text, fix=left if note.verdict == "fail" else "Nothing has to be done.")


def held_out(order: Order) -> Conversations:
    """Prompts of rows held out of the training; none where the data is gone or nothing was held out."""
    from ollama_tune.core.data.load import load_dataset
    from ollama_tune.core.data.split import split_rows

    data = order.settings.data
    try:
        rows = split_rows(load_dataset(data.path, data.reading()).rows, data.validation_split, data.seed)[1]
    except TuneError:
        return []
    return [row.prompt for row in rows if row.prompt and row.messages[-1].role == "assistant"]
