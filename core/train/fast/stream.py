"""Rows laid end to end in one stream of tokens, with an opening that several rows share laid only once.

What a causal model computes for a token depends on the tokens before it in its row, so the keys and values
of a shared opening serve every row that begins with it: loss and gradient stay those of the rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ollama_tune.core.data.values import Example

if TYPE_CHECKING:
    import numpy as np
    import torch

SHARE_FROM = 8
"""Tokens of the shortest opening that is shared."""
PIECE = 40
"""What a shared opening costs, in tokens of a row: its piece of attention of its own (measured on a CPU)."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens in the stream; `prefix` is the index of the segment that comes before it in its row."""

    start: int
    length: int
    prefix: int | None = None


@dataclass(frozen=True)
class Stream:
    """Rows as one sequence of tokens; all tensors have one dimension and are int64 on one device.

    `positions` restart with each row; a row behind a shared prefix starts at the prefix' length. `picked` are
    the places (rising) whose next token is supervised, `targets` those next tokens: both in the order of the
    rows. Tokens at the end of a row that no prediction depends on are left out; `useful_tokens` counts them,
    and a shared prefix once a row. `lengths` are those of the whole rows; with nothing shared, one a segment.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segments: tuple[Segment, ...]
    picked: torch.Tensor
    targets: torch.Tensor
    useful_tokens: int
    supervised_tokens: int
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Row:
    """Tokens of a row, the places in it whose next token is supervised, and what of it is laid.

    `opening` is what may be shared: everything before the first such place, and never the whole row.
    """

    ids: np.ndarray
    places: np.ndarray
    length: int
    opening: bytes

    @classmethod
    def of(cls, example: Example) -> _Row:
        import numpy as np

        ids = np.array(example.ids, dtype=np.int64)
        places = np.flatnonzero(np.array(example.trained[1:], dtype=bool))
        length = int(places[-1]) + 1 if len(places) else 1
        return cls(ids, places, length, ids[: places[0] if len(places) else 0].astype(">u4").tobytes())


def lay_stream(examples: Sequence[Example], device: str, *, share: bool = True) -> Stream:
    """Lay rows end to end, in their order, and copy the stream to the device in one piece.

    With `share`, a common opening becomes a segment of its own where that pays, before the first row that
    has it. It ends before the first place whose next token is supervised in any of its rows.
    """
    import numpy as np

    rows = [_Row.of(example) for example in examples]
    shared = shared_openings([row.opening for row in rows]) if share else {}
    ids, positions, picked, targets = [], [], [], []
    segments: list[Segment] = []
    laid: dict[int, int] = {}
    total = 0

    def lay(row: _Row, begin: int, end: int, prefix: int | None) -> None:
        nonlocal total
        ids.append(row.ids[begin:end])
        positions.append(np.arange(begin, end))
        segments.append(Segment(total, end - begin, prefix))
        total += end - begin

    for number, row in enumerate(rows):
        first, length = shared.get(number, (number, 0))
        if length and first not in laid:
            laid[first] = len(segments)
            lay(row, 0, length, None)
        picked.append(row.places + (total - length))
        targets.append(row.ids[row.places + 1])
        lay(row, length, row.length, laid.get(first))
    parts = _on_device([ids, positions, picked, targets], device)
    lengths = tuple(len(row.ids) for row in rows)
    return Stream(
        parts[0], parts[1], tuple(segments), parts[2], parts[3], sum(lengths), len(parts[3]), lengths
    )


def shared_openings(openings: Sequence[bytes]) -> dict[int, tuple[int, int]]:
    """Which rows share how much: a row's number -> the first row of its group, and the tokens shared.

    An opening has 4 bytes a token, the highest first, so that rows in order of bytes stand beside those they
    share most with. Of all ways to cut that order into groups, the one that gains most is taken: the tokens
    that need not be computed again, less `PIECE` a group.
    """
    width = 4 * SHARE_FROM
    order = sorted(
        (n for n, opening in enumerate(openings) if len(opening) >= width), key=openings.__getitem__
    )
    common = [_common(openings[a], openings[b]) for a, b in pairwise(order)]
    best: list[tuple[int, int, int]] = [(0, 0, 0)]
    for end in range(1, len(order) + 1):
        choice, shared = (best[-1][0], end - 1, 0), len(openings[order[end - 1]]) // 4
        for begin in range(end - 2, -1, -1):
            shared = min(shared, common[begin])
            if shared < SHARE_FROM:
                break
            gain = (end - 1 - begin) * shared - PIECE
            if best[begin][0] + gain > choice[0]:
                choice = best[begin][0] + gain, begin, shared
        best.append(choice)
    found: dict[int, tuple[int, int]] = {}
    end = len(order)
    while end:
        _, begin, shared = best[end]
        if shared:
            group = order[begin:end]
            found |= dict.fromkeys(group, (min(group), shared))
        end = begin
    return found


def _common(one: bytes, other: bytes) -> int:
    """Tokens that two openings have in common."""
    import numpy as np

    length = min(len(one), len(other)) // 4
    differ = np.frombuffer(one, ">u4", length) != np.frombuffer(other, ">u4", length)
    return int(differ.argmax()) if differ.any() else length


def _on_device(parts: Sequence[Sequence[np.ndarray]], device: str) -> tuple[torch.Tensor, ...]:
    """Each list of arrays as one tensor; all go to the device in one copy that is not waited for."""
    import numpy as np
    import torch

    sizes = [sum(map(len, part)) for part in parts]
    whole = torch.from_numpy(np.concatenate([array for part in parts for array in part]))
    if device.startswith("cuda"):
        whole = whole.pin_memory().to(device, non_blocking=True)
    return tuple(torch.split(whole, sizes))
