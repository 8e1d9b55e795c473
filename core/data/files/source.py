"""Opens a data file: what kind it is, how its text is encoded, and its contents in chunks or lines."""

from __future__ import annotations

import codecs
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ollama_tune.core.data.files import compression
from ollama_tune.core.data.files.encodings import LEGACY, NAMES, WIDE, encoding_of, legacy, mostly_utf8
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import human_bytes, visible

HEAD = 64 * 1024
"""Bytes looked at to tell the kind and the encoding of a file."""

_CUTS = (b" ", b"\n", b'"', b",")
"""Bytes that are never part of a longer character in any encoding read here."""

CHUNK = 2**18
"""Bytes read at once."""

LONGEST_UNCUT = 2**22
"""Bytes of an old encoding without a blank, a quote or a comma; no such text goes on longer."""

LONGEST_LINE = 2**27
"""Bytes of a line that is still read; a longer one is set aside, so that it cannot fill the memory."""

_TABLES = ((b"PAR1", "Parquet"), (b"ARROW1\x00\x00", "Arrow"))
_STREAM = b"\xff\xff\xff\xff"
"""What an Arrow stream begins with: the mark before the length of its schema."""

_FOREIGN = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"\xd0\xcf\x11\xe0", "an old office document"),
    (b"{\\rtf", "a text document with layout (RTF)"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"SQLite format 3", "a database"),
    (b"GGUF", "a GGUF model"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"\x80\x04\x95", "a Python pickle, which could run programs and is never opened"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data itself"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
)

FORMATS = "JSONL, JSON, CSV, TSV, Parquet, Arrow or text"
_CONVERT = f"Unpack or export it first, a table as CSV for instance; read are {FORMATS} files."


def _whole_characters(data: bytes, codec: str) -> int:
    """How many bytes to take so that no character is cut."""
    if codec == "utf-8":
        for back, byte in enumerate(reversed(data[-3:]), 1):
            if byte >= 0xC0:
                needed = 2 + (byte >= 0xE0) + (byte >= 0xF0)
                return len(data) - (back if back < needed else 0)
            if byte < 0x80:
                break
        return len(data)
    marks = _CUTS[:2] if codec == "iso2022_jp" else _CUTS
    cut = 1 + max(data.rfind(mark) for mark in marks)
    return cut or (len(data) if len(data) > LONGEST_UNCUT else 0)


@dataclass(frozen=True)
class Source:
    """An opened kind of file: `head` is its unpacked beginning, `encoding` a Python codec name.

    `table` is `Parquet`, `Arrow` or `Arrow stream`, and empty for text; `packed` the name of the packing,
    empty for none; `size` the bytes on the disk as they were when it was opened.
    """

    path: Path
    size: int
    packed: str
    table: str
    head: bytes
    encoding: str

    @property
    def suffix(self) -> str:
        """The file's extension in lower case, without that of the packing."""
        path = Path(self.path.name.lower())
        return Path(path.stem).suffix if path.suffix in compression.SUFFIXES else path.suffix

    @property
    def spoken(self) -> str:
        """The encoding as a person calls it."""
        return NAMES.get(self.encoding, self.encoding.upper()) if self.encoding else "binary"

    @property
    def newlines(self) -> bool:
        """True where lines end in `\\n`, False for the lone `\\r` of old programs."""
        return "\n" in self.text or "\r" not in self.text

    @property
    def text(self) -> str:
        """The beginning as text."""
        return codecs.getincrementaldecoder(self.encoding)("replace").decode(self.head)


def open_source(path: Path) -> Source:
    """Look at a file; `TuneError` in plain words when it is not a readable file of text or a table."""
    size = _checked_size(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            packed = compression.packing(head)
            if packed:
                file.seek(0)
                head = _filled(compression.unpacked(file, packed))
    except compression.failures() as error:
        raise failed(path, error) from error
    table = _table(head)
    if table and packed:
        raise TuneError(f"{shown(path)} is a packed {table} file.", "Unpack it first.")
    if table:
        return Source(path, size, packed, table, head, "")
    _check_foreign(path, head)
    encoding = encoding_of(head, len(head) < HEAD)
    if encoding is None:
        raise TuneError(
            f"{shown(path)} is a binary file, which holds no text to read.", f"Choose a {FORMATS} file."
        )
    return Source(path, size, packed, "", head, encoding)


def _filled(file: BinaryIO) -> bytes:
    head = b""
    while len(head) < HEAD and (data := file.read(HEAD - len(head))):
        head += data
    return head


def _table(head: bytes) -> str:
    for magic, name in _TABLES:
        if head.startswith(magic):
            return name
    return "Arrow stream" if head.startswith(_STREAM) and 0 in head[4:8] else ""


def _checked_size(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise TuneError(f"There is no file {shown(path)}.", "Check the name and the folder.") from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise TuneError(f"{shown(path)} is a folder, not a file of examples.", "Choose a file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise TuneError(f"{shown(path)} is a device or pipe, not a file.", f"Choose a {FORMATS} file.")
    if status.st_size == 0:
        raise empty(path)
    return status.st_size


def _check_foreign(path: Path, head: bytes) -> None:
    if not head.removeprefix(codecs.BOM_UTF8).strip():
        raise empty(path)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:32].lower()
    kind = next((kind for magic, kind in _FOREIGN if head.startswith(magic) or start.startswith(magic)), "")
    if head[257:262] == b"ustar":
        kind = "a TAR archive"
    if kind:
        raise TuneError(f"{shown(path)} is {kind}; it holds no rows to read.", _CONVERT)


def chunks(source: Source, log: ProblemLog) -> Iterator[bytes]:
    """The contents in chunks, in an encoding whose line ends are single bytes, without a mark before them.

    Of a file that grows meanwhile only what was there at first is read. Raises `TuneError` for a bomb, and
    where reading fails.
    """
    wide = codecs.getincrementaldecoder(source.encoding)("replace") if source.encoding in WIDE else None
    failures = compression.failures()
    try:
        for number, data in enumerate(_raw_chunks(source, log)):
            if wide:
                data = wide.decode(data).encode("utf-8", "surrogatepass")
            yield data.removeprefix(codecs.BOM_UTF8) if number == 0 else data
    except failures as error:
        raise failed(source.path, error) from error


def _raw_chunks(source: Source, log: ProblemLog) -> Iterator[bytes]:
    count = 0
    with source.path.open("rb") as raw, compression.unpacked(raw, source.packed) as file:
        while data := file.read(CHUNK):
            if source.packed:
                compression.check_bomb(source.path, source.size, count + len(data))
            elif count + len(data) > source.size:
                log.warn("file-grew", "The file grew while it was read; what was added is not used.")
                yield data[: source.size - count]
                return
            count += len(data)
            yield data
    if not source.packed and count < source.size:
        log.warn("file-shrank", "The file became shorter while it was read; the end of it is missing.")


def byte_lines(source: Source, log: ProblemLog) -> Iterator[bytes]:
    """The lines without their ends, cut at `\\n` only: JSON takes a carriage return for a blank.

    A line that is too long for the memory is set aside and comes as an empty one, so that the count fits.
    """
    rest, number = bytearray(), 1
    for data in chunks(source, log):
        first, *lines = data.split(b"\n")
        _extend(rest, first)
        if not lines:
            continue
        yield _bounded(rest, number, log)
        rest = bytearray(lines.pop())
        yield from lines
        number += 1 + len(lines)
    if rest:
        yield _bounded(rest, number, log)


def _ended_lines(source: Source, log: ProblemLog) -> Iterator[bytes]:
    """The lines with their ends, cut at `\\n`, `\\r\\n` and a lone `\\r` (bytes know no other separators)."""
    rest, number = bytearray(), 1
    for data in chunks(source, log):
        if rest.endswith(b"\r") and not data.startswith(b"\n"):
            yield _bounded(rest, number, log)
            rest, number = bytearray(), number + 1
        first, *lines = data.splitlines(True)
        _extend(rest, first)
        if not lines and not rest.endswith(b"\n"):
            continue
        yield _bounded(rest, number, log)
        rest = bytearray(lines.pop() if lines and not lines[-1].endswith(b"\n") else b"")
        yield from lines
        number += 1 + len(lines)
    if rest:
        yield _bounded(rest, number, log)


def _extend(rest: bytearray, part: bytes) -> None:
    """Add the next part of a line; of one that is too long only that it is, and its end."""
    rest += part if len(rest) <= LONGEST_LINE else part[-2:]


def _bounded(line: bytearray, number: int, log: ProblemLog) -> bytes:
    if len(line) <= LONGEST_LINE:
        return bytes(line)
    log.set_aside("bad-line", f"A line is longer than {human_bytes(LONGEST_LINE)}.", number)
    return b"\n"


class Decoder:
    """Turns lines into text. What does not fit the encoding of the file costs a warning, never the line."""

    def __init__(self, source: Source, log: ProblemLog) -> None:
        self.codec = source.encoding if source.encoding in LEGACY else "utf-8"
        self._log = log
        if self.codec != "utf-8":
            name = NAMES[self.codec]
            log.warn("encoding", f"The file is not UTF-8; it was read as {name}, so check its letters.")

    def __call__(self, line: bytes, number: int) -> str:
        """The text of line `number`, counted from 1."""
        try:
            return line.decode(self.codec)
        except UnicodeDecodeError:
            pass
        if self.codec == "utf-8" and not mostly_utf8(line):
            codec = legacy(line)
            text = f"A line is not UTF-8; it was read as {NAMES[codec]}."
            self._log.warn("encoding-line", text, number)
            return line.decode(codec, "replace")
        text = "A line holds bytes that are no text; each became the replacement character \ufffd."
        self._log.warn("encoding-line", text, number)
        return line.decode(self.codec, "replace")


def text_lines(source: Source, log: ProblemLog) -> Iterator[str]:
    """The lines as text with their ends, never cut at other Unicode separators, which are data."""
    decode = Decoder(source, log)
    for number, line in enumerate(_ended_lines(source, log), 1):
        yield decode(line, number)


def text_chunks(source: Source, log: ProblemLog) -> Iterator[str]:
    """The text in chunks that are cut anywhere, for formats where a line means nothing."""
    decode = Decoder(source, log)
    rest, number = b"", 1
    for data in chunks(source, log):
        data = rest + data
        cut = _whole_characters(data, decode.codec)
        rest = data[cut:]
        if cut:
            yield decode(data[:cut], number)
            number += data.count(b"\n", 0, cut)
    if rest:
        yield decode(rest, number)


def shown(path: Path) -> str:
    """A path for a message: no control characters, no half characters."""
    return visible(str(path))


def empty(path: Path) -> TuneError:
    """The file has nothing in it."""
    return TuneError(f"{shown(path)} is empty: there is no row to learn from.", "Choose another file.")


def unreadable(path: Path, error: Exception) -> TuneError:
    """The operating system does not let us."""
    reason = getattr(error, "strerror", None) or str(error)
    return TuneError(
        f"{shown(path)} cannot be read: {reason}.", "Check its permissions.", details=repr(error)
    )


def failed(path: Path, error: Exception) -> TuneError:
    """Either the operating system does not let us, or the packers' libraries find bad data."""
    return unreadable(path, error) if getattr(error, "errno", None) else damaged(path, error)


def damaged(path: Path, error: Exception) -> TuneError:
    """The bytes are not what they claim to be."""
    return TuneError(
        f"{shown(path)} is damaged or cut off.", "Make or download it again.", details=repr(error)
    )
