"""Writes the GGUF in one pass: read rows, add the adapter, convert, write, hash; nothing is held whole."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.ggml import quantizer
from ollama_tune.core.export.importance import Importance
from ollama_tune.core.export.merge import MergedRows, open_merged
from ollama_tune.core.export.mix import FILE_TYPES, FileType, choose_types, file_bytes, padded
from ollama_tune.core.export.quantize import TensorType, encode, one_thread_each
from ollama_tune.core.export.tensors import TensorPlan, plan_tensors
from ollama_tune.core.export.tokenizer import tokenizer_fields
from ollama_tune.core.export.values import ExportStopped, Progress, Stopped
from ollama_tune.core.files import DISK_FULL, SMALLER, SPARE, atomic_file, disk_full, require_room
from ollama_tune.core.machine.host import read_host
from ollama_tune.core.models.architectures import Config, read_config
from ollama_tune.core.text import one_line

CHUNK = 1 << 17
"""Numbers that are computed at once: as many as stay in a CPU cache on their way."""
GGML_CHUNK = 1 << 19
"""The same where ggml's quantizer takes its time over each number: fewer turns of the interpreter."""
THREADS = 32
SYNC = 32 << 20
"""Bytes between two flushes to the disk: the end, or a stop, has little left to wait for."""

# llama.cpp changes its tokenizer when these are in a model's name, whatever the model is.
_TELLING = re.compile(r"phi-?3|jina", re.IGNORECASE)
_PLAIN_NAME = "tuned-model"


@dataclass(frozen=True)
class Source:
    """A tuned model ready to be read: its numbers, tensors and tokenizer keys, and the rows behind them."""

    config: Config
    plans: tuple[TensorPlan, ...]
    rows: MergedRows
    fields: dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """What is written: the tuned model, the format of each tensor, and how much their columns matter."""

    source: Source
    types: Mapping[str, TensorType]
    importance: Importance | None

    def encode(self, plan: TensorPlan, matrix: int, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of rows [start, stop), which belong to one of the tensor's stacked matrices."""
        columns = self.importance.of(plan, matrix) if self.importance else None
        return encode(self.source.rows.rows(plan, start, stop), self.types[plan.name], columns)


@dataclass(frozen=True)
class Exported:
    """A finished GGUF: where it is, the digest of its bytes (64 hex digits), and its size in bytes.

    `importance` tells whether an importance matrix was used; it changes the mix of some types.
    """

    path: Path
    sha256: str
    bytes: int
    type: str
    importance: bool = False


@contextlib.contextmanager
def open_source(
    base: Path, adapter: Path | None, chat: ChatFormat, tokenizer: Mapping[str, Any] | None = None
) -> Iterator[Source]:
    """Read and check everything but the weights: architecture, adapter, tokenizer. Raises `TuneError`.

    `chat` is the tokenizer and template of the training; `tokenizer` replaces the keys made from it.
    """
    config = read_config(base)
    with open_merged(base, adapter) as rows:
        plans = plan_tensors(config, rows.shapes, rows.adapted_modules)
        rows.check(plans)
        vocabulary = next(plan.rows for plan in plans if plan.name == "token_embd.weight")
        tokenizer = tokenizer_fields(chat, vocabulary) if tokenizer is None else tokenizer
        fields = config.fields(vocabulary) | dict(tokenizer)
        yield Source(config, tuple(plans), rows, fields)


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
    """Write base + adapter as `output` in the type `type`, one of `FILE_TYPES`.

    `output` appears only when it is complete and on disk. `progress` gets bytes done and in all;
    `stopped` is asked at least every few milliseconds of work and raises `ExportStopped`.
    `tokenizer` and `name` are written as they are when both are given: the tokenizer's probe chose them
    together. `importance` is a run's importance matrix; the types that round to the nearest need none.
    """
    file_type = FILE_TYPES[type]
    if file_type.mixed:
        quantizer()
    matrix = Importance.read(importance) if importance is not None and file_type.mixed else None
    _clear_leftovers(output)
    chat = chat or ChatFormat.from_folder(base)
    written_name = name if name and tokenizer is not None else plain_name(name or output.stem)
    with open_source(base, adapter, chat, tokenizer) as source:
        size = file_bytes(source.plans, source.config, type, matrix is not None)
        types = choose_types(source.plans, source.config, type, matrix is not None)
        job = _Job(source, types, matrix)
        with _clear_disk_errors(output, size):
            require_space(output.parent, size)
            with atomic_file(output) as file, contextlib.closing(_encoded(job)) as blocks:
                sink = _Sink(file, size, progress, stopped)
                _write_header(sink, job, file_type, written_name)
                sink.start_data()
                for block in blocks:
                    sink.write(block)
    return Exported(output, sink.digest.hexdigest(), sink.written, type, matrix is not None)


def plain_name(name: str) -> str:
    """A `general.name` that leaves llama.cpp's tokenizer as it is: it treats some names specially."""
    return _PLAIN_NAME if _TELLING.search(name) else name


def require_space(folder: Path, needed: int) -> None:
    """Raise `TuneError` before any work when the disk cannot hold `needed` bytes and a little more."""
    require_room(folder, needed + SPARE, SMALLER)


class _Sink:
    """A file that counts and hashes what goes through it, tells the progress, and stops when asked."""

    def __init__(
        self, file: BinaryIO, total: int, progress: Progress | None, stopped: Stopped | None
    ) -> None:
        self._file, self._progress, self._stopped = file, progress, stopped
        self.digest = hashlib.sha256()
        self.written = 0
        self._total, self._start, self._synced = total, 0, 0

    def write(self, data: bytes | memoryview) -> int:
        """Write a piece."""
        if self._stopped is not None and self._stopped():
            raise ExportStopped()
        self._file.write(data)
        self.digest.update(data)
        self.written += len(data)
        if self.written - self._synced > SYNC:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._synced = self.written
        if self._progress is not None and self._start:
            self._progress(self.written - self._start, self._total)
        return len(data)

    def start_data(self) -> None:
        """Pad the header; the tensors begin here and count as progress."""
        self.write(bytes(padded(self.written) - self.written))
        self._start = self.written

    def flush(self) -> None:
        """As the GGUF writer asks; the file is synced once, at its end."""


def _write_header(sink: _Sink, job: _Job, file_type: FileType, name: str) -> None:
    source = job.source
    writer = gguf.GGUFWriter(None, source.config.architecture.name)
    fields = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(file_type.number),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    if job.importance is not None:
        fields["quantize.imatrix.dataset"] = "held-out rows of the tuning data"
        fields["quantize.imatrix.entries_count"] = job.importance.count(source.plans)
    for key, value in (fields | source.fields).items():
        _add_field(writer, key, value)
    for plan in source.plans:
        used = job.types[plan.name]
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


def _encoded(job: _Job) -> Generator[memoryview, None, None]:
    """The bytes of every tensor in order, each padded; chunks are computed side by side."""
    threads = min(THREADS, read_host().cores)
    with one_thread_each(), ThreadPoolExecutor(threads) as pool:
        jobs = ((_chunk, job, plan, *span) for plan in job.source.plans for span in _spans(plan, job))
        try:
            yield from _in_order(pool, jobs, 2 * threads)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[tuple[Any, ...]], ahead: int) -> Iterator[Any]:
    """Results in the order of the jobs with only a few jobs ahead, so that memory stays bounded."""
    waiting: deque[Future[Any]] = deque()
    for function, *arguments in jobs:
        waiting.append(pool.submit(function, *arguments))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _spans(plan: TensorPlan, job: _Job) -> Iterator[tuple[int, int, int]]:
    """Matrix and row ranges of a chunk each: whole heads where rows are permuted, never two experts."""
    chunk = CHUNK if job.types[plan.name].encode else GGML_CHUNK
    matrices = plan.shape[0] if len(plan.shape) == 3 else 1
    rows = plan.rows // matrices
    head = plan.rows // plan.heads if plan.heads else 1
    step = max(chunk // plan.columns // head, 1) * head
    for matrix in range(matrices):
        for start in range(matrix * rows, (matrix + 1) * rows, step):
            yield matrix, start, min(start + step, (matrix + 1) * rows)


def _chunk(job: _Job, plan: TensorPlan, matrix: int, start: int, stop: int) -> memoryview:
    try:
        data = job.encode(plan, matrix, start, stop)
    except ValueError as error:
        raise TuneError(
            f"The weight {one_line(plan.key, 100)} holds {error}.",
            "Export as bf16 or q8_0; if that fails too, train again with a smaller learning rate.",
        ) from error
    if stop < plan.rows:
        return data.data
    size = job.types[plan.name].size(plan.rows, plan.columns)
    return np.pad(data, (0, padded(size) - size)).data


def _clear_leftovers(output: Path) -> None:
    """Remove temporary files that a killed export of the same name left."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.*.part"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _clear_disk_errors(output: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise disk_full(output.parent, size + SPARE, SMALLER) from error
        raise TuneError(
            f"The GGUF could not be written to {output.parent}: {error.strerror or error}.",
            "Check the folder and export again.",
        ) from error
