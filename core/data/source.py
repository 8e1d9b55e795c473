"""Opens a data file: what kind of file it is, how its text is encoded, and its lines one by one."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import human_bytes

HEAD = 64 * 1024
"""Bytes looked at to tell the kind and the encoding of a file."""

LARGEST = 2**30
"""Bytes of text, unpacked. All rows are held in memory (1.5 to 4 times their size in the file), and a
gibibyte is some 700,000 conversations: far more than one machine learns from in days."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_FOREIGN = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"\xd0\xcf\x11\xe0", "an old office document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"SQLite format 3", "a database"),
    (b"GGUF", "a GGUF model"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"ARROW1", "an Arrow file"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data itself"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)

FORMATS = "JSONL, JSON, CSV, TSV or Parquet"


@dataclass(frozen=True)
class Source:
    """An opened kind of file: `head` is its unpacked beginning, `encoding` a Python codec name."""

    path: Path
    packed: bool
    head: bytes
    encoding: str

    @property
    def suffix(self) -> str:
        """The file's extension in lower case, without `.gz`."""
        name = self.path.name.lower().removesuffix(".gz")
        return Path(name).suffix

    def open(self) -> BinaryIO:
        """The unpacked bytes from the start."""
        return cast(BinaryIO, gzip.open(self.path, "rb") if self.packed else self.path.open("rb"))


def open_source(path: Path) -> Source:
    """Look at a file; `TuneError` in plain words when it is not a readable file of text or Parquet."""
    size = _checked_size(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        packed = head.startswith(b"\x1f\x8b")
        if packed:
            with gzip.open(path, "rb") as unpacked:
                head = unpacked.read(HEAD)
    except OSError as error:
        raise unreadable(path, error) from error
    except (EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    _check_foreign(path, head)
    if not packed and size > LARGEST and not head.startswith(b"PAR1"):
        raise too_large(path)
    return Source(path, packed, head, "" if head.startswith(b"PAR1") else _encoding(path, head))


def _checked_size(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise TuneError(f"There is no file {path}.", "Check the name and the folder.") from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise TuneError(f"{path} is a folder, not a file of examples.", _files_in(path))
    if not stat.S_ISREG(status.st_mode):
        raise TuneError(f"{path} is a device or pipe, not a file.", f"Choose a {FORMATS} file.")
    if status.st_size == 0:
        raise empty(path)
    return status.st_size


def _files_in(folder: Path) -> str:
    kinds = {".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet"}
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in kinds)
    except OSError:
        names = []
    return f"Choose a file in it, such as {', '.join(names[:3])}." if names else f"Choose a {FORMATS} file."


def _check_foreign(path: Path, head: bytes) -> None:
    if not head.strip():
        raise empty(path)
    start = head.lstrip().lower()
    for magic, kind in _FOREIGN:
        if head.startswith(magic) or (magic.startswith(b"<") and start.startswith(magic)):
            raise TuneError(f"{path} is {kind}, which holds no rows to read.", f"Choose a {FORMATS} file.")


def _encoding(path: Path, head: bytes) -> str:
    """Byte order mark, else the zero bytes of UTF-16, else UTF-8, else Windows-1252."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    zeros = [head[side::2].count(0) for side in (0, 1)]
    if sum(zeros):
        half = len(head) // 2
        if max(zeros) > 0.3 * half and min(zeros) < 0.05 * half:
            return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        raise TuneError(f"{path} is a binary file, which holds no text to read.", f"Choose a {FORMATS} file.")
    return "utf-8" if _mostly_utf8(head) else "cp1252"


def _mostly_utf8(head: bytes) -> bool:
    text = head.decode("utf-8", "replace")
    bad = text[:-1].count("�")
    good = sum(1 for character in text if not character.isascii()) - bad
    return bad == 0 or good > bad


def read_lines(source: Source, log: ProblemLog) -> Iterator[str]:
    """The lines with their ends (`\\n`, `\\r\\n` or a lone `\\r`), never cut at other Unicode separators."""
    try:
        with source.open() as file:
            yield from _lines(source, _Limited(file, source.path), log)
    except OSError as error:
        raise unreadable(source.path, error) from error
    except (EOFError, zlib.error, UnicodeError) as error:
        raise damaged(source.path, error) from error


def read_all(source: Source, log: ProblemLog) -> str:
    """The whole text."""
    return "".join(read_lines(source, log))


class _Limited(io.RawIOBase):
    """A file that ends in a `TuneError` when more comes out than memory should hold."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path, self._count = file, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._count += count
        if self._count > LARGEST:
            raise too_large(self._path)
        return int(count)


def _lines(source: Source, file: _Limited, log: ProblemLog) -> Iterator[str]:
    buffered = io.BufferedReader(file, 2**20)
    if source.encoding not in ("utf-8", "utf-8-sig", "cp1252"):
        yield from io.TextIOWrapper(buffered, encoding=source.encoding, newline="")
        return
    if source.encoding == "cp1252":
        log.warn("encoding", "The file is not UTF-8; it was read as Windows-1252, so check its accents.")
    number = 0
    for line in buffered:
        if number == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        for part in _at_returns(line):
            number += 1
            yield _decode(part, source.encoding, number, log)


def _at_returns(line: bytes) -> list[bytes]:
    """Cut at lone carriage returns, which end lines in files of old programs."""
    body, end = (line[:-2], line[-2:]) if line.endswith(b"\r\n") else (line, b"")
    if b"\r" not in body:
        return [line]
    parts = body.split(b"\r")
    whole = [part + b"\r" for part in parts[:-1]]
    return [*whole, parts[-1] + end] if parts[-1] + end else whole


def _decode(line: bytes, encoding: str, number: int, log: ProblemLog) -> str:
    if encoding != "cp1252":
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            log.warn("encoding-line", "A line is not UTF-8; it was read as Windows-1252.", number)
    return line.decode("cp1252", "replace")


def empty(path: Path) -> TuneError:
    """The file has nothing in it."""
    return TuneError(f"{path} is empty: there is no row to learn from.", "Choose another file.")


def unreadable(path: Path, error: Exception) -> TuneError:
    """The operating system does not let us."""
    reason = getattr(error, "strerror", None) or str(error)
    return TuneError(f"{path} cannot be read: {reason}.", "Check its permissions.", details=repr(error))


def damaged(path: Path, error: Exception) -> TuneError:
    """The bytes are not what they claim to be."""
    return TuneError(f"{path} is damaged or cut off.", "Make or download it again.", details=repr(error))


def too_large(path: Path) -> TuneError:
    """More text than fits the memory sensibly."""
    return TuneError(
        f"{path} holds more than {human_bytes(LARGEST)} of text, which would fill the memory.",
        "Take a part of it; some ten thousand good rows teach more than millions.",
    )
