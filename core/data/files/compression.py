"""Opens packed files as a stream of their contents, and stops what unpacks without end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, cast

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import human_bytes

MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4")

FREE = 2**26
"""Bytes that may come out of any file before it is asked how they fitted in."""
DENSEST = 300
"""Bytes of text from one packed byte: rows of one template reach 100, a bomb 1,000 and more."""
MOST = 2**37
"""Bytes unpacked from one file; the 128 GiB of the largest data sets come in many files."""


def packing(head: bytes) -> str:
    """How a file that begins so is packed; empty for none."""
    return next((name for magic, name in MAGIC if head.startswith(magic)), "")


def unpacked(file: BinaryIO, packed: str) -> BinaryIO:
    """The contents of an opened file from the start. Raises `failures()`."""
    if not packed:
        return file
    if packed == "gzip":
        import gzip

        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if packed == "bz2":
        import bz2

        return cast(BinaryIO, bz2.BZ2File(file))
    if packed == "xz":
        import lzma

        return cast(BinaryIO, lzma.LZMAFile(file))
    from ollama_tune.core.data.files.columnar import arrow

    stream = arrow().CompressedInputStream(arrow().PythonFile(file), packed)
    return cast(BinaryIO, io.BufferedReader(_ArrowStream(stream), 2**16))


def failures() -> tuple[type[Exception], ...]:
    """What reading a file, packed or not, may raise."""
    import lzma
    import zlib

    return (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


class _ArrowStream(io.RawIOBase):
    """A stream of pyarrow with the errors of a file: it has no words of its own for damage."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def check_bomb(path: Path, packed_size: int, count: int) -> None:
    """Raise `TuneError` once `count` bytes are more than a file of that size should hold."""
    if count > MOST or (count > FREE and count > DENSEST * packed_size):
        raise TuneError(
            f"{path} unpacks to more than {human_bytes(count)} from {human_bytes(packed_size)}, "
            "as no data set does and an archive made to fill memory and disk does.",
            "If it is trusted, unpack it first and choose what comes out.",
        )
