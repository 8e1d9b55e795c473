"""Packed contents of files, in every packing that is read."""

from __future__ import annotations

import bz2
import gzip
import lzma

PACKERS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def packed(content: bytes, packing: str) -> bytes:
    """The content as a packed file; what Python has no module for is packed by pyarrow."""
    import pyarrow

    if packing in PACKERS:
        return PACKERS[packing](content)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, packing) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()
