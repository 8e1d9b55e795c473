"""What an export leaves besides the GGUF: a merged 16-bit folder, the adapter as folder or GGUF."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter import EMBEDDING, canonical
from ollama_tune.core.export.adapter_config import CONFIG, WEIGHTS
from ollama_tune.core.export.merge import MergedRows, open_merged
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.quantize import one_thread_each
from ollama_tune.core.export.tensors import TensorPlan
from ollama_tune.core.export.values import Progress, Stopped
from ollama_tune.core.export.weights import TORCH_NAMES
from ollama_tune.core.files import atomic_folder
from ollama_tune.core.models.architectures import require_json
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.models.weights import INDEX, SINGLE
from ollama_tune.core.text import one_line

SHARD = 5_000_000_000
"""Bytes of one file of a merged model at most, as transformers writes them."""
CHUNK = 1 << 18
"""Numbers computed at once: what fits a CPU's cache."""
UNSYNCED = 1 << 28
"""Bytes written between two flushes to the disk, so that the last one, which no stop can end, is short."""
BLOCK = 1 << 22
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
TEMPLATE = "chat_template.jinja"


def write_merged_folder(
    base: Path,
    adapter: Path | None,
    chat: ChatFormat,
    output: Path,
    progress: Progress | None = None,
    stopped: Stopped | None = None,
    *,
    dtype: str | None = None,
) -> Path:
    """Write base + adapter as a model folder in the base's own number format, a tensor's rows at a time.

    With `dtype` (as safetensors spells it) in that one.

    `output` is a folder that appears when it is complete and replaces an older one of its name; `chat` is the
    tokenizer and template of the training. Returns `output`; raises `TuneError` and `ExportStopped`.
    """
    with open_merged(base, adapter) as rows, atomic_folder(output) as part, one_thread_each():
        tensors = [_Tensor(name, shape, dtype or rows.dtype(name)) for name, shape in rows.shapes.items()]
        rows.check([tensor.plan for tensor in tensors])
        meter = Meter(sum(tensor.bytes for tensor in tensors), progress, stopped)
        _write_shards(part, tensors, rows, meter)
        _write_config(base, part, rows, dtype)
        _copy_tokenizer(base, chat, part)
    return output


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the merged folder in the order of its base; `dtype` as safetensors spells it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def plan(self) -> TensorPlan:
        """How to read it, in the base's own order."""
        return TensorPlan(self.name, (self.name,), (self.name.rpartition(".")[0],), self.shape)

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * (4 if self.dtype == "F32" else 2)


def _write_shards(part: Path, tensors: list[_Tensor], rows: MergedRows, meter: Meter) -> None:
    shards = _shards(tensors)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        with (part / name).open("wb") as file:
            _write_safetensors(file, shard, rows, meter)
    if len(shards) > 1:
        places = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": sum(t.bytes for t in tensors)}, "weight_map": places}
        (part / INDEX).write_text(json.dumps(index, indent=2))


def _shards(tensors: list[_Tensor]) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def _write_safetensors(file: BinaryIO, tensors: list[_Tensor], rows: MergedRows, meter: Meter) -> None:
    """One safetensors file: 8 bytes of length, the header as JSON padded to 8 bytes, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [place, place + tensor.bytes],
        }
        place += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    unsynced = 0
    for tensor in tensors:
        for piece in _pieces(tensor, rows):
            file.write(piece)
            meter.step(len(piece))
            unsynced += len(piece)
            if unsynced > UNSYNCED:
                os.fsync(file.fileno())
                unsynced = 0


def _pieces(tensor: _Tensor, rows: MergedRows) -> Iterator[memoryview]:
    """The tensor's bytes, rounded once; a number that does not fit the format is an error."""
    import torch

    plan = tensor.plan
    step = max(CHUNK // plan.columns, 1)
    for start in range(0, plan.rows, step):
        values = rows.rows(plan, start, min(start + step, plan.rows))
        rounded = values.to(getattr(torch, TORCH_NAMES[tensor.dtype])).contiguous()
        if not bool(torch.isfinite(rounded).all()):
            raise TuneError(
                f"The weight {one_line(tensor.name, 100)} holds a number that is infinite or too large for "
                f"{tensor.dtype}.",
                "Train again with a smaller learning rate.",
            )
        yield rounded.view(torch.uint8).numpy().reshape(-1).data


def _write_config(base: Path, part: Path, rows: MergedRows, dtype: str | None) -> None:
    """The base's config.json and generation_config.json with the vocabulary and the head as they are now."""
    config = require_json(base / "config.json")
    if dtype is not None:
        config["dtype"] = TORCH_NAMES[dtype]
    shapes = {canonical(name): shape for name, shape in rows.shapes.items()}
    for table in (config, config.get("text_config")):
        if isinstance(table, dict) and "vocab_size" in table:
            table["vocab_size"] = shapes[f"{EMBEDDING}.weight"][0]
        if isinstance(table, dict) and rows.head_parted:
            table["tie_word_embeddings"] = False
    (part / "config.json").write_text(json.dumps(config, indent=2))
    generation = read_json(base / "generation_config.json")
    if generation is not None:
        (part / "generation_config.json").write_text(json.dumps(generation, indent=2))


def _copy_tokenizer(base: Path, chat: ChatFormat, part: Path) -> None:
    """The tokenizer's files, and the template as the training used it, which alone counts."""
    for name in TOKENIZER_FILES:
        source = next((folder / name for folder in (chat.folder, base) if (folder / name).is_file()), None)
        if source is not None:
            (part / name).write_bytes(source.read_bytes())
    config = read_json(part / "tokenizer_config.json")
    if config is not None and config.pop("chat_template", None) is not None:
        (part / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
    (part / TEMPLATE).write_text(chat.template, encoding="utf-8")


def copy_adapter(
    adapter: Path,
    output: Path,
    base: Path,
    progress: Progress | None = None,
    stopped: Stopped | None = None,
    *,
    chat: ChatFormat | None = None,
) -> Path:
    """Copy a PEFT adapter as a folder of its own with tokenizer and template, ready for other programs.

    `output` appears when it is complete and replaces an older one of its name. Returns it.
    """
    chat = chat or ChatFormat.from_folder(adapter if (adapter / TOKENIZER_FILES[0]).is_file() else base)
    sources = [adapter / CONFIG, adapter / WEIGHTS]
    meter = Meter(sum(path.stat().st_size for path in sources), progress, stopped)
    with atomic_folder(output) as part:
        for path in sources:
            with path.open("rb") as source, (part / path.name).open("wb") as target:
                while block := source.read(BLOCK):
                    target.write(block)
                    meter.step(len(block))
        _copy_tokenizer(base, chat, part)
    return output
