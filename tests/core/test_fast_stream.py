"""How rows are laid in a stream: nothing is lost, nothing learned is shared, the order stays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_tune.core.data.values import Example
from ollama_tune.core.train.fast import stream as streams
from ollama_tune.core.train.fast.stream import Segment, Stream, lay_stream


def example(ids: list[int], first: int, until: int | None = None) -> Example:
    """A row of which the tokens from `first` on (up to `until`) are learned."""
    trained = tuple(first <= place < (len(ids) if until is None else until) for place in range(len(ids)))
    return Example("", tuple(ids), trained, ())


at_leisure = settings(deadline=None)
"""The first example of all imports torch."""


@st.composite
def batches(draw: st.DrawFn) -> list[Example]:
    """Rows with a few common openings, in any order, learned in any places."""
    token = st.integers(0, 2)
    openings = draw(st.lists(st.lists(token, min_size=1, max_size=60), min_size=1, max_size=3))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.sampled_from(openings)) + draw(st.lists(token, max_size=6))
        rest = draw(st.lists(st.booleans(), max_size=12))
        trained = ([False] * len(ids) + rest)[-len(ids) :]
        rows.append(Example("", tuple(ids), tuple(trained), ()))
    return rows


def wanted(row: Example) -> list[int]:
    return [token for token, learned in zip(row.ids[1:], row.trained[1:], strict=True) if learned]


def row_segments(stream: Stream) -> list[Segment]:
    """The segments that end a row: all but the shared openings."""
    shared = {segment.prefix for segment in stream.segments}
    return [segment for number, segment in enumerate(stream.segments) if number not in shared]


def tokens(stream: Stream, segment: Segment) -> list[int]:
    """The tokens of a row up to the end of a segment, with those it shares."""
    before = [] if segment.prefix is None else tokens(stream, stream.segments[segment.prefix])
    own: list[int] = stream.ids[segment.start : segment.start + segment.length].tolist()
    return before + own


@at_leisure
@given(batches(), st.booleans())
def test_every_row_can_be_rebuilt_up_to_its_last_learned_token(rows: list[Example], share: bool) -> None:
    stream = lay_stream(rows, "cpu", share=share)
    for row, segment in zip(rows, row_segments(stream), strict=True):
        whole = tokens(stream, segment)
        learned = [place for place, is_learned in enumerate(row.trained) if is_learned and place]
        assert whole == list(row.ids[: learned[-1] if learned else 1])
        positions = stream.positions[segment.start : segment.start + segment.length].tolist()
        assert positions == list(range(len(whole) - segment.length, len(whole)))


@at_leisure
@given(batches(), st.booleans())
def test_what_is_learned_is_that_of_the_rows_in_their_order(rows: list[Example], share: bool) -> None:
    stream = lay_stream(rows, "cpu", share=share)
    assert stream.targets.tolist() == [token for row in rows for token in wanted(row)]
    assert stream.supervised_tokens == len(stream.targets) == len(stream.picked)
    assert stream.useful_tokens == sum(len(row.ids) for row in rows)
    picked = stream.picked.tolist()
    assert picked == sorted(set(picked))
    seen = []
    for row, segment in zip(rows, row_segments(stream), strict=True):
        begin = segment.start - int(stream.positions[segment.start])
        inside = [place for place in picked if segment.start <= place < segment.start + segment.length]
        seen += inside
        assert [row.ids[place - begin + 1] for place in inside] == wanted(row)
    assert seen == picked, "a shared opening holds nothing that is learned"


@at_leisure
@given(batches())
def test_segments_fill_the_stream_and_prefixes_stand_before_their_rows(rows: list[Example]) -> None:
    stream = lay_stream(rows, "cpu")
    end = 0
    for number, segment in enumerate(stream.segments):
        assert segment.start == end and segment.length > 0
        end += segment.length
        if segment.prefix is not None:
            assert segment.prefix < number and stream.segments[segment.prefix].prefix is None
            assert stream.segments[segment.prefix].length >= streams.SHARE_FROM
    assert end == len(stream.ids) == len(stream.positions)
    assert end <= len(lay_stream(rows, "cpu", share=False).ids)


def test_rows_with_one_opening_hold_it_once() -> None:
    system = list(range(100, 150))
    rows = [example([*system, 1, 2, 3], 51), example([7, 8, 9], 1), example([*system, 4, 5], 51)]
    stream = lay_stream(rows, "cpu")
    lengths = [(segment.length, segment.prefix) for segment in stream.segments]
    assert lengths == [(50, None), (2, 0), (2, None), (1, 0)]
    assert stream.ids.tolist() == [*system, 1, 2, 7, 8, 4]
    assert stream.targets.tolist() == [2, 3, 8, 9, 5]
    assert stream.useful_tokens == 53 + 3 + 52


def test_sharing_ends_where_the_first_row_is_learned() -> None:
    same = list(range(90))
    stream = lay_stream([example(same, 80), example(same, 50)], "cpu")
    assert stream.segments[0].length == 49
    assert stream.picked.tolist()[0] == 49 + 30


def test_groups_are_those_that_save_most() -> None:
    short, long = list(range(20)), list(range(20)) + list(range(900, 1000))
    rows = [
        example([*opening, 5000 + n, 1], 121) for n, opening in enumerate([long, short + [3] * 100, long])
    ]
    assert [s.length for s in lay_stream(rows, "cpu").segments] == [120, 1, 121, 1]
    many = [example([*short, *range(n, n + 3), 1], 22) for n in range(2000, 2080, 4)]
    laid = lay_stream([*many, rows[0]], "cpu").segments
    assert laid[0].length == 20 and all(segment.prefix == 0 for segment in laid[1:])


@pytest.mark.parametrize(
    ("rows", "length", "pays"),
    [
        (2, streams.PIECE, False),
        (2, streams.PIECE + 1, True),
        (streams.PIECE, streams.SHARE_FROM, True),
        (streams.PIECE, streams.SHARE_FROM - 1, False),
    ],
)
def test_an_opening_is_shared_where_that_pays(rows: int, length: int, pays: bool) -> None:
    same = list(range(length))
    laid = lay_stream([example([*same, 50 + n, 1], length + 1) for n in range(rows)], "cpu").segments
    assert (laid[-1].prefix is not None) is pays


def test_tokens_that_nothing_learned_sees_are_left_out() -> None:
    stream = lay_stream([example(list(range(30)), 10, until=12)], "cpu")
    assert stream.ids.tolist() == list(range(11))
    assert stream.useful_tokens == 30 and stream.targets.tolist() == [10, 11]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 1)), max_size=5))
def test_no_cut_of_the_sorted_rows_gains_more(made: list[tuple[int, int, int]]) -> None:
    ordered = sorted([first] * 8 + [1] * length + [last] for first, length, last in made)

    def common(rows: list[list[int]]) -> int:
        count = 0
        while all(len(row) > count for row in rows) and len({row[count] for row in rows}) == 1:
            count += 1
        return count

    def gain(begin: int, end: int) -> int:
        shared = common(ordered[begin:end])
        return max((end - begin - 1) * shared - streams.PIECE, 0) if shared >= streams.SHARE_FROM else 0

    def most(end: int) -> int:
        """By trying every last group."""
        return max((most(begin) + gain(begin, end) for begin in range(end)), default=0)

    raw = [b"".join(token.to_bytes(4, "big") for token in row) for row in ordered]
    found = streams.shared_openings(raw)
    firsts = dict(found.values())
    saved = sum(shared for _, shared in found.values()) - sum(firsts.values())
    assert saved - streams.PIECE * len(firsts) == most(len(ordered))
