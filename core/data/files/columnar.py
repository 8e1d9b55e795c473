"""Reads Parquet and Arrow files batch by batch; every cell becomes what JSON could hold."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ollama_tune.core.data.files.class_names import class_names, with_names
from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.source import Source, damaged
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.errors import TuneError

BATCH_BYTES = 2**20
"""Bytes of rows held at once, about."""
MOST_ROWS = 1024
"""Rows held at once."""
MOST_COLUMNS = 10_000
GROUPS = 8
"""Row groups or batches that a sample is taken from."""


def arrow() -> Any:
    """The pyarrow module, with the system's allocator: Arrow's own keeps 30 MB that a reader never needs."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    import pyarrow

    return pyarrow


def columnar_items(source: Source, log: ProblemLog) -> Iterator[Item]:
    """One item for every row, numbered from 1. Raises `TuneError` when the file is damaged."""
    number = 0
    with _errors(source):
        for batch in _parquet(source) if source.table == "Parquet" else _arrow(source):
            for value in rows_of(batch, log):
                number += 1
                yield Item(number, value)


@contextmanager
def _errors(source: Source) -> Iterator[None]:
    """What pyarrow raises means a damaged file; it has no error of its own for that."""
    try:
        yield
    except TuneError:
        raise
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, NotImplementedError) as error:
        raise damaged(source.path, error) from error
    except MemoryError as error:
        raise TuneError(
            f"{source.path} needs more memory than there is.", "Choose a smaller part of it."
        ) from error


def _parquet(source: Source, groups: list[int] | None = None) -> Iterator[Any]:
    """Batches of a Parquet file, read page by page, so that a large row group costs no more memory."""
    arrow()
    from pyarrow import parquet

    with parquet.ParquetFile(source.path, pre_buffer=False, buffer_size=2**16) as file:
        meta = file.metadata
        if len(file.schema_arrow) > MOST_COLUMNS:
            raise _too_wide(source, len(file.schema_arrow))
        size = sum(meta.row_group(i).total_byte_size for i in range(min(meta.num_row_groups, 100)))
        rows = sum(meta.row_group(i).num_rows for i in range(min(meta.num_row_groups, 100)))
        batch = max(min(BATCH_BYTES * max(rows, 1) // max(size, 1), MOST_ROWS), 1)
        names = [field.name for field in file.schema_arrow if not _is_media(field.type)]
        yield from file.iter_batches(
            batch_size=batch, row_groups=groups, columns=_top(file, names), use_threads=False
        )


def _top(file: Any, names: list[str]) -> list[str] | None:
    """The columns to read; None for all of them, which also spares a look-up of names that are odd."""
    return None if len(names) == len(file.schema_arrow) else names


def _arrow(source: Source, picked: list[int] | None = None) -> Iterator[Any]:
    """Batches of an Arrow file or stream, in slices where they are large.

    Each is checked first: pyarrow trusts the offsets in it, and wrong ones would end the whole process.
    """
    with arrow().OSFile(str(source.path)) as file:
        from pyarrow import ipc

        if source.table == "Arrow":
            reader = ipc.open_file(file)
            batches = (reader.get_batch(i) for i in picked or range(reader.num_record_batches))
        else:
            reader = ipc.open_stream(file)
            batches = iter(reader)
        if len(reader.schema) > MOST_COLUMNS:
            raise _too_wide(source, len(reader.schema))
        for batch in batches:
            batch.validate(full=True)
            step = max(min(BATCH_BYTES * max(batch.num_rows, 1) // max(batch.nbytes, 1), MOST_ROWS), 1)
            for start in range(0, batch.num_rows, step):
                yield batch.slice(start, step)


def sample_columnar(source: Source, count: int, rng: random.Random) -> tuple[list[Item], int]:
    """Rows from random row groups or batches, and how many there are (exact but for Arrow streams)."""
    with _errors(source):
        if source.table == "Arrow stream":
            return _sample_stream(source, count)
        total, starts = (_parquet_groups if source.table == "Parquet" else _arrow_groups)(source)
        groups = sorted(rng.sample(range(len(starts)), min(GROUPS, len(starts))))
        some: list[Item] = []
        for group in groups if count else []:
            batches = (_parquet if source.table == "Parquet" else _arrow)(source, [group])
            rows = itertools.chain.from_iterable(rows_of(batch, ProblemLog()) for batch in batches)
            wanted = -(-count // len(groups))
            some += [Item(starts[group] + i, row) for i, row in enumerate(itertools.islice(rows, wanted), 1)]
        return some[:count], total


def _parquet_groups(source: Source) -> tuple[int, list[int]]:
    arrow()
    from pyarrow import parquet

    with parquet.ParquetFile(source.path, pre_buffer=False) as file:
        counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        return file.metadata.num_rows, list(itertools.accumulate(counts, initial=0))[:-1]


def _arrow_groups(source: Source) -> tuple[int, list[int]]:
    """Writers make batches of one size but for the last: so the first and the last tell the rows."""
    with arrow().OSFile(str(source.path)) as file:
        from pyarrow import ipc

        reader = ipc.open_file(file)
        batches = reader.num_record_batches
        if not batches:
            return 0, []
        size, last = reader.get_batch(0).num_rows, reader.get_batch(batches - 1).num_rows
        return size * (batches - 1) + last, [size * i for i in range(batches)]


def _sample_stream(source: Source, count: int) -> tuple[list[Item], int]:
    """The first rows; the number of all by the bytes they took."""
    with arrow().OSFile(str(source.path)) as file:
        from pyarrow import ipc

        some: list[Item] = []
        rows, reader = 0, ipc.open_stream(file)
        for batch in itertools.islice(reader, 64):
            batch.validate(full=True)
            room = count - len(some)
            found = rows_of(batch.slice(0, room), ProblemLog()) if room > 0 else []
            some += [Item(rows + i, row) for i, row in enumerate(found, 1)]
            rows += batch.num_rows
            if room <= 0 and file.tell() > BATCH_BYTES:
                break
        return some, round(rows * source.size / max(file.tell(), 1))


def _too_wide(source: Source, columns: int) -> TuneError:
    return TuneError(
        f"{source.path} has {columns:,} columns, which is no table of questions and answers.",
        "Keep the columns that matter.",
    )


def rows_of(batch: Any, log: ProblemLog) -> list[dict[str, Any]]:
    """The rows of a batch as plain values: text, numbers, lists, objects."""
    columns = []
    classes = class_names(batch.schema.metadata)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if _is_media(column.type):
            text = "Columns that hold pictures, sounds or other bytes were left out."
            log.warn("media", text, None, count=0)
            continue
        cells = _plain(column)
        columns.append((name, with_names(cells, classes[name]) if name in classes else cells))
    names = [name for name, _ in columns]
    return [
        dict(zip(names, cells, strict=True)) for cells in zip(*(cells for _, cells in columns), strict=True)
    ]


def _is_media(kind: Any) -> bool:
    """True for the struct of `bytes` and `path` in which `datasets` keeps pictures and sounds."""
    from pyarrow import types

    if not types.is_struct(kind):
        return False
    return {"bytes", "path"} == {kind.field(i).name for i in range(kind.num_fields)}


def _plain(column: Any) -> list[Any]:
    """The cells of a column. Dates and decimals become text, as they would be read; bytes UTF-8 text."""
    kind = column.type
    if isinstance(kind, arrow().BaseExtensionType):
        column, kind = column.storage, kind.storage_type
    if _is_simple(kind):
        return list(column.to_pylist())
    try:
        return list(column.cast(_text_type(kind)).to_pylist())
    except (ValueError, NotImplementedError, TypeError):
        return [_value(cell) for cell in _cells(column)]


def _cells(column: Any) -> Iterator[Any]:
    """Cell by cell, because one that Python has no value for must not cost the others."""
    for cell in column:
        try:
            yield cell.as_py()
        except (ValueError, ArithmeticError, TypeError):
            yield str(cell)


def _is_simple(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_simple(kind.value_type)
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        fields = [kind.field(i).type for i in range(kind.num_fields)]
        return len(set(names)) == len(names) and all(map(_is_simple, fields))
    if types.is_dictionary(kind):
        return _is_simple(kind.value_type)
    simple = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
    return any(check(kind) for check in (*simple, types.is_boolean, types.is_null))


def _text_type(kind: Any) -> Any:
    """The type with text in the place of what JSON has no form for."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return arrow().list_(_text_type(kind.value_type))
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return arrow().struct([(field.name, _text_type(field.type)) for field in fields])
    if types.is_map(kind):
        raise TypeError(kind)
    return kind if _is_simple(kind) else arrow().string()


def _value(cell: Any) -> Any:
    """A cell of Python as plain values; a map, which comes as pairs, as an object."""
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(cell, dict):
        return {str(key): _value(inner) for key, inner in cell.items()}
    if isinstance(cell, list):
        if cell and all(isinstance(pair, tuple) and len(pair) == 2 for pair in cell):
            return {str(key): _value(inner) for key, inner in cell}
        return [_value(inner) for inner in cell]
    return cell if cell is None or isinstance(cell, (str, int, float, bool)) else str(cell)
