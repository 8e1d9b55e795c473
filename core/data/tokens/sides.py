"""Pairs of answers as tokens: the row with the better answer and the one with the worse, side by side."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.rows.store import RejectedRows, StoredRows, worse
from ollama_tune.core.data.tokens.encoded import Examples, Held, Picked
from ollama_tune.core.data.tokens.lengths import encode_rows, measure
from ollama_tune.core.data.tokens.shorten import shorten_pair
from ollama_tune.core.data.values import Example, Lengths, Problem, Row
from ollama_tune.core.errors import TuneError

Progress = Callable[[int, int], None]

NO_PAIR = "A row holds no pair of answers, so it is left out: training.objective dpo learns from pairs."
ALIKE = "Both answers of a pair are the same tokens, so the pair is left out."
FIXES = dict.fromkeys(
    ("no-pair", "equal-answers"), "With training.objective set to sft the better answers are learned instead."
)
"""What helps with rows that are left out, by the kind of problem, where it is not a longer sequence."""
NO_PAIRS = (
    "training.objective dpo learns from rows with a better and a worse answer, and this data has none.",
    "Set training.objective to sft, or give data with columns such as chosen and rejected; answers that are "
    "each marked good or bad (KTO) are pairs where one question has both.",
)
"""Why preferences cannot be learned from a data set, and what to do."""


_NOTHING = Example("", (), (), ())


@dataclass(frozen=True)
class Pair(Example):
    """Both rows of a pair; as an example it has the tokens of both, one behind the other.

    In each row only tokens from the first one on in which they differ are trained: what they begin with has
    the same probability in both and cancels out. `place` numbers the pair among all of a run.
    """

    chosen: Example = _NOTHING
    rejected: Example = _NOTHING
    place: int = 0

    @classmethod
    def of(cls, chosen: Example, rejected: Example, place: int) -> Pair:
        """The pair of two examples."""
        same = _alike(chosen.ids, rejected.ids)
        sides = [
            Example(side.text, side.ids, (False,) * same + side.trained[same:], side.offsets, side.line)
            for side in (chosen, rejected)
        ]
        both = sides[0].ids + sides[1].ids, sides[0].trained + sides[1].trained
        return cls("", *both, (), chosen.line, sides[0], sides[1], place)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    both = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in both if a != b), min(len(one), len(other)))


class Pairs(Examples):
    """Pairs chosen from two sets of examples; `numbers` are (better, worse), indexes in each.

    Lengths count both rows of a pair together; those of single rows are in `sides`. `first` is the place of
    the first pair among all of a run.
    """

    def __init__(
        self, better: Examples, rejected: Examples, numbers: Sequence[tuple[int, int]], first: int = 0
    ) -> None:
        self._better, self._rejected, self._numbers, self._first = better, rejected, numbers, first
        self.counts = array("I", (better.counts[one] + rejected.counts[other] for one, other in numbers))
        self.rows = array("I", (better.rows[one] for one, _ in numbers))

    @cached_property
    def trained(self) -> Sequence[int]:  # type: ignore[override]
        """How many tokens of both rows are learned."""
        return array("I", map(self._learned, range(len(self))))

    @cached_property
    def supervised(self) -> Sequence[int]:
        """The same: the first token of a row is in both rows, or there is no question."""
        return self.trained

    @cached_property
    def sides(self) -> Examples:  # type: ignore[override]
        """The rows that the pairs are made of."""
        places = [place for one, other in self._numbers for place in ((0, one), (1, other))]
        return Picked([self._better, self._rejected], places)

    def _learned(self, index: int) -> int:
        one, other = self._raw(index)
        shorter = min(len(one[0]), len(other[0]))
        differ = int.from_bytes(one[0][:shorter], "little") ^ int.from_bytes(other[0][:shorter], "little")
        same = ((differ & -differ).bit_length() - 1) // 32 if differ else shorter // 4
        return one[1].count(1, same) + other[1].count(1, same)

    def _raw(self, index: int) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
        one, other = self._numbers[index]
        return self._better.raw(one), self._rejected.raw(other)

    def raw(self, index: int) -> tuple[bytes, bytes]:
        """As of every kind: both rows, one behind the other."""
        one, other = self._raw(index)
        return one[0] + other[0], one[1] + other[1]

    def get(self, index: int) -> Pair:
        """As of every kind."""
        one, other = self._numbers[index]
        return Pair.of(self._better.get(one), self._rejected.get(other), self._first + index)

    def with_shorter(self, changed: Mapping[int, tuple[Example, Example] | None]) -> Pairs:
        """The pairs with others in the place of some, or without them."""
        fitted = [(at, pair) for at, pair in changed.items() if pair is not None]
        rows = [self.rows[at] for at, _ in fitted]
        better, rejected = (
            _followed(old, Held([pair[side] for _, pair in fitted], array("I", rows)))
            for side, old in enumerate((self._better, self._rejected))
        )
        starts = len(self._better), len(self._rejected)
        new = {at: (starts[0] + n, starts[1] + n) for n, (at, _) in enumerate(fitted)}
        numbers = [
            new.get(at, pair) for at, pair in enumerate(self._numbers) if at in new or at not in changed
        ]
        return Pairs(better, rejected, numbers, self._first)

    def chosen(self, numbers: Sequence[int], first: int) -> Pairs:
        """Those with these numbers among these pairs, the first of them at a place of its own."""
        return Pairs(self._better, self._rejected, [self._numbers[at] for at in numbers], first)


def _followed(examples: Examples, others: Examples) -> Examples:
    """Two sets of examples, one after the other."""
    places = [(source, at) for source, some in enumerate((examples, others)) for at in range(len(some))]
    return Picked([examples, others], places)


def pair_numbers(rows: Sequence[Row]) -> Sequence[int]:
    """Which rows are pairs, by their number."""
    if isinstance(rows, StoredRows):
        return rows.pairs()
    return [number for number, row in enumerate(rows) if row.rejected]


def rejected_rows(rows: Sequence[Row], numbers: Sequence[int]) -> Sequence[Row]:
    """The pairs with these numbers as rows with their worse answers; stored ones stay on disk."""
    if isinstance(rows, StoredRows):
        return RejectedRows(rows.store, rows.chosen(numbers).places)
    return [worse(rows[number]) for number in numbers]


def encode_pairs(
    chat: ChatFormat, rows: Sequence[Row], sequence_length: int, progress: Progress | None = None
) -> tuple[Pairs, list[Problem]]:
    """The pairs among the rows of which both answers can be learned whole, and what is left out and why.

    Both rows of a pair that is too long lose the oldest turns that they share. `progress` is as for
    `encode_rows`, once for each side. Raises `TuneError` where there is no pair at all.
    """
    if not pair_numbers(rows):
        raise TuneError(*NO_PAIRS)
    better, _ = encode_rows(chat, rows, progress)
    pairs, log = _paired(chat, rows, better, progress), ProblemLog()
    lone = len(rows) - len(pair_numbers(rows))
    if lone:
        log.add("no-pair", NO_PAIR, lone, severity="error")
    sides = pairs.sides.counts
    long = [at for at in range(len(pairs)) if max(sides[2 * at], sides[2 * at + 1]) > sequence_length]
    pairs = pairs.with_shorter(_shortened(chat, rows, pairs, long, sequence_length, log)) if long else pairs
    alike = [at for at, trained in enumerate(pairs.trained) if not trained]
    if alike:
        log.add("equal-answers", ALIKE, len(alike), severity="error")
    kept = set(range(len(pairs))).difference(alike)
    return pairs.chosen(sorted(kept), 0), list(log.problems())


def _shortened(
    chat: ChatFormat, rows: Sequence[Row], pairs: Pairs, long: Sequence[int], length: int, log: ProblemLog
) -> dict[int, tuple[Example, Example] | None]:
    """What becomes of the pairs that are too long, by their places: shorter ones, or nothing."""
    found: dict[int, tuple[Example, Example] | None] = {}
    for at in long:
        row = rows[pairs.rows[at]]
        found[at] = shorten_pair(chat, row, length)
        if found[at] is None:
            text = f"An answer of a pair does not fit into {length:,} tokens; the pair is left out."
            log.set_aside("too-long", text, row.line)
        else:
            text = f"A pair is longer than {length:,} tokens; its oldest turns are left out, of both rows."
            log.warn("shortened", text, row.line)
    return found


def _paired(
    chat: ChatFormat, rows: Sequence[Row], better: Examples, progress: Progress | None = None
) -> Pairs:
    """The pairs whose two answers the template takes; of a row that gives several examples the last one
    counts, which ends with the answer."""
    numbers = pair_numbers(rows)
    rejected, _ = encode_rows(chat, rejected_rows(rows, numbers), progress)
    ends = {row: at for at, row in enumerate(better.rows)}
    others = {numbers[row]: at for at, row in enumerate(rejected.rows)}
    return Pairs(better, rejected, [(ends[n], others[n]) for n in numbers if n in ends and n in others])


def split_pairs(pairs: Pairs, held_out: Collection[int]) -> tuple[Pairs, Pairs]:
    """The pairs to learn from and those of the held-out rows, each with a place of its own."""
    sides: tuple[list[int], list[int]] = ([], [])
    for number, row in enumerate(pairs.rows):
        sides[row in held_out].append(number)
    return pairs.chosen(sides[0], 0), pairs.chosen(sides[1], len(sides[0]))


def measure_rows(chat: ChatFormat, rows: Sequence[Row], better: Examples) -> Lengths:
    """Token lengths of rows by their examples; where they hold pairs, those of the pairs too."""
    found = measure(better)
    if not pair_numbers(rows):
        return found
    return replace(found, pairs=measure(_paired(chat, rows, better)))
