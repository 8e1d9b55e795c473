"""Writes the GGUF in one pass: read rows, add the adapter, convert, write, hash; nothing is held whole."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.merge import Adapter, MergedRows, Weights
from ollama_tune.core.export.quantize import TYPES, TensorType, encode, one_thread_each, type_of
from ollama_tune.core.export.tensors import EMBEDDING, TensorPlan, plan_tensors
from ollama_tune.core.export.tokenizer import tokenizer_fields
from ollama_tune.core.export.values import ExportStopped
from ollama_tune.core.files import atomic_file
from ollama_tune.core.models.architectures import Config, read_config
from ollama_tune.core.text import human_bytes, one_line

CHUNK = 1 << 17
THREADS = 8
SPARE = 16 << 20

# llama.cpp changes its tokenizer when these are in a model's name, whatever the model is.
_TELLING = re.compile(r"phi-?3|jina", re.IGNORECASE)
_PLAIN_NAME = "tuned-model"

Progress = Callable[[int, int], None]
Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Source:
    """A tuned model ready to be read: its numbers, tensors and tokenizer keys, and the rows behind them."""

    config: Config
    plans: tuple[TensorPlan, ...]
    rows: MergedRows
    fields: dict[str, Any]

    def size(self, kind: TensorType) -> int:
        """Bytes of all tensors in a format, without the header."""
        return sum(_padded(type_of(p.shape, kind).size(p.rows, p.columns)) for p in self.plans)


@dataclass(frozen=True)
class Exported:
    """A finished GGUF: where it is, the digest of its bytes (64 hex digits), and its size in bytes."""

    path: Path
    sha256: str
    bytes: int
    type: str


@contextlib.contextmanager
def open_source(
    base: Path, adapter: Path | None, chat: ChatFormat, tokenizer: Mapping[str, Any] | None = None
) -> Iterator[Source]:
    """Read and check everything but the weights: architecture, adapter, tokenizer. Raises `TuneError`.

    `chat` is the tokenizer and template of the training; `tokenizer` replaces the keys made from it.
    """
    config = read_config(base)
    with contextlib.ExitStack() as stack:
        weights = Weights.of_model(base)
        stack.callback(weights.close)
        lora = Adapter(adapter) if adapter is not None else None
        if lora is not None:
            stack.callback(lora.close)
        plans = plan_tensors(config, weights.shapes, lora.modules if lora else ())
        if lora is not None:
            lora.check_targets(plans)
        vocabulary = weights.shapes[f"{EMBEDDING}.weight"][0]
        fields = config.fields(vocabulary) | dict(tokenizer or tokenizer_fields(chat, vocabulary))
        yield Source(config, tuple(plans), MergedRows(weights, lora), fields)


def export_gguf(
    base: Path,
    adapter: Path | None,
    output: Path,
    type: str,
    progress: Progress | None = None,
    stopped: Stopped | None = None,
    *,
    chat: ChatFormat | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    importance: Path | None = None,
    name: str | None = None,
) -> Exported:
    """Write base + adapter as `output` in the format `type` (f32, f16, bf16 or q8_0).

    `output` appears only when it is complete and on disk. `progress` gets bytes done and in all;
    `stopped` is asked at least every few milliseconds of work and raises `ExportStopped`.
    """
    kind = TYPES[type]
    _clear_leftovers(output)
    chat = chat or ChatFormat.from_folder(base)
    with open_source(base, adapter, chat, tokenizer) as source, _clear_disk_errors(output):
        require_space(output.parent, source.size(kind))
        with atomic_file(output) as file:
            sink = _Sink(file, source.size(kind), progress, stopped)
            _write_header(sink, source, kind, name or output.stem)
            sink.start_data()
            with contextlib.closing(_encoded(source, kind)) as blocks:
                for block in blocks:
                    sink.write(block)
    return Exported(output, sink.digest.hexdigest(), sink.written, type)


def require_space(folder: Path, needed: int) -> None:
    """Raise `TuneError` before any work when the disk cannot hold `needed` bytes and a little more."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise TuneError(
            f"The export needs {human_bytes(needed + SPARE)} on the disk of {folder}, "
            f"but {human_bytes(free)} are free.",
            "Free some space, or choose a smaller type.",
        )


class _Sink:
    """A file that counts and hashes what goes through it, tells the progress, and stops when asked."""

    def __init__(
        self, file: BinaryIO, total: int, progress: Progress | None, stopped: Stopped | None
    ) -> None:
        self._file, self._progress, self._stopped = file, progress, stopped
        self.digest = hashlib.sha256()
        self.written = 0
        self._total, self._start = total, 0

    def write(self, data: bytes | memoryview) -> int:
        """Write a piece."""
        if self._stopped is not None and self._stopped():
            raise ExportStopped()
        self._file.write(data)
        self.digest.update(data)
        self.written += len(data)
        if self._progress is not None and self._start:
            self._progress(self.written - self._start, self._total)
        return len(data)

    def start_data(self) -> None:
        """Pad the header; the tensors begin here and count as progress."""
        self.write(bytes(_padded(self.written) - self.written))
        self._start = self.written

    def flush(self) -> None:
        """As the GGUF writer asks; the file is synced once, at its end."""


def _write_header(sink: _Sink, source: Source, kind: TensorType, name: str) -> None:
    writer = gguf.GGUFWriter(None, source.config.architecture.name)
    fields = {
        "general.type": "model",
        "general.name": _PLAIN_NAME if _TELLING.search(name) else name,
        "general.file_type": int(kind.file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    for key, value in (fields | source.fields).items():
        _add_field(writer, key, value)
    for plan in source.plans:
        used = type_of(plan.shape, kind)
        writer.add_tensor_info(
            plan.name, plan.shape, np.dtype(np.float32), used.size(plan.rows, plan.columns), used.ggml
        )
    writer.fout, writer.state = [sink], WriterState.EMPTY  # the writer would open a path by itself
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = (
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (float, writer.add_float32),
        (str, writer.add_string),
        (list, writer.add_array),
    )
    next(add for kind, add in adders if isinstance(value, kind))(key, value)


def _padded(size: int) -> int:
    return int(gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT))


def _encoded(source: Source, kind: TensorType) -> Generator[memoryview, None, None]:
    """The bytes of every tensor in order, each padded; chunks are computed side by side."""
    with one_thread_each(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        jobs = ((_chunk, source, plan, kind, *span) for plan in source.plans for span in _spans(plan))
        try:
            yield from _in_order(pool, jobs)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
    """Results in the order of the jobs with only a few jobs ahead, so that memory stays bounded."""
    waiting: deque[Future[Any]] = deque()
    for function, *arguments in jobs:
        waiting.append(pool.submit(function, *arguments))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _spans(plan: TensorPlan) -> Iterator[tuple[int, int]]:
    """Row ranges that fit a CPU cache, whole heads where rows are permuted."""
    head = plan.rows // plan.heads if plan.heads else 1
    step = max(CHUNK // plan.columns // head, 1) * head
    for start in range(0, plan.rows, step):
        yield start, min(start + step, plan.rows)


def _chunk(source: Source, plan: TensorPlan, kind: TensorType, start: int, stop: int) -> memoryview:
    used = type_of(plan.shape, kind)
    try:
        data = encode(source.rows.rows(plan, start, stop), used)
    except ValueError as error:
        raise TuneError(
            f"The weight {one_line(plan.key, 100)} holds {error}.",
            "Export as bf16 or q8_0; if that fails too, train again with a smaller learning rate.",
        ) from error
    if stop < plan.rows:
        return data.data
    size = used.size(plan.rows, plan.columns)
    return np.pad(data, (0, _padded(size) - size)).data


def _clear_leftovers(output: Path) -> None:
    """Remove temporary files that a killed export of the same name left."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.*.part"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _clear_disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise TuneError(
            f"The GGUF could not be written to {output.parent}: {error.strerror or error}.",
            "Free some space and export again." if full else "Check the folder and export again.",
        ) from error
