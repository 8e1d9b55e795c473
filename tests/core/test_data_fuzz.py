"""Mutated files of every format go through reader, detector and tidy: rows or a sentence, nothing else."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_tune.core.data.files.lenient import Broken, parse
from ollama_tune.core.data.files.read import read_items
from ollama_tune.core.data.files.sample import sample_items
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable
from ollama_tune.core.data.schemas.detect import KNOWN, Detector
from ollama_tune.core.data.schemas.tidy import tidy
from ollama_tune.core.errors import TuneError

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Où est 东京?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "content": "there", "name": "f"},
    {"role": "assistant", "content": "There.", "weight": 1, "reasoning_content": "hm"},
]
ROWS = [
    {"messages": TURNS, "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"instruction": "Do", "input": "<noinput>", "output": "Done", "history": [["a", "b"]]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"question": "Which?", "choices": ["x", "y"], "answer": 1},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"text": "a nice day", "label": 1},
    {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "tie"},
    {"prompt": "q", "completions": [{"response": "a", "rank": 2}, {"response": "b", "rank": 1}]},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": "q", "completion": "b", "label": False},
    {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2.5},
]
TABLE = 'question;answer\n"a\nb";"say ""x"""\nWhat?;That.\nq;a\n'
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TEXT = "Human: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant: ok\n"


def tables() -> dict[str, bytes]:
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.table({"messages": [TURNS[1:2] + TURNS[4:]] * 20, "n": list(range(20))})
    page, stream = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, page, compression="none", use_dictionary=False)
    with ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return {"parquet": page.getvalue(), "arrow": stream.getvalue()}


SEEDS: dict[str, Callable[[], bytes]] = {
    "jsonl": LINES.encode,
    "json": lambda: json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    "wrapped": lambda: json.dumps({"train": ROWS, "test": ROWS[:2]}).encode(),
    "columns": lambda: json.dumps({"question": ["a", "b"], "answer": ["c", "d"]}).encode(),
    "python": lambda: "".join(f"{row!r}\n" for row in ROWS).encode(),
    "csv": TABLE.encode,
    "utf16": lambda: TABLE.encode("utf-16"),
    "gb18030": lambda: LINES.encode("gb18030"),
    "text": TEXT.encode,
    "gzip": lambda: gzip.compress(LINES.encode(), mtime=0),
    "parquet": lambda: tables()["parquet"],
    "arrow": lambda: tables()["arrow"],
}
NASTY = (
    *(b"{", b"}", b"[", b"]", b'"', b"'", b",", b":", b"\\", b"\n", b"\r", b";", b"\t", b"\0", b"/*", b"#"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\xe4\xbd", b"\\ud800", b"NaN", b"9" * 400, b"[" * 300),
    *(
        b"null",
        b"\x1b[2J",
        "\u202e\u2028\x85".encode(),
        b"PAR1",
        b"\x1f\x8b",
        b'{"role":',
        b"<|im_start|>user",
    ),
)
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 40),
        st.one_of(st.sampled_from(NASTY), st.binary(max_size=6), st.just(b"")),
    ),
    min_size=1,
    max_size=4,
)
PROFILE = settings(
    max_examples=250,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def mutated(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for place, length, payload in changes:
        at = int(place * len(content))
        content = content[:at] + payload + content[at + length :]
    return content


def through(path: Path) -> None:
    """All that happens to a file before it is trained on; a `TuneError` is an answer too."""
    log, detector = ProblemLog(), Detector()
    try:
        sample_items(path, 5, columns=KNOWN)
        for item in read_items(path, log, KNOWN).stream:
            try:
                messages = tidy(detector.convert(item.value, item.line, log).messages, item.line, log)
            except Unusable as reason:
                log.set_aside(reason.kind, reason.text, item.line)
                continue
            assert all(message.content.encode() is not None for message in messages)
    except TuneError as error:
        assert error.what and error.fix
        str(error).encode()
    for problem in log.problems():
        assert problem.text.isprintable()


@pytest.fixture(scope="module")
def seeds() -> dict[str, bytes]:
    return {name: make() for name, make in SEEDS.items()}


@PROFILE
@given(name=st.sampled_from(sorted(SEEDS)), changes=CHANGES)
def test_mutated_files_give_rows_or_a_sentence(
    seeds: dict[str, bytes], tmp_path: Path, name: str, changes: list[tuple[float, int, bytes]]
) -> None:
    path = tmp_path / "mutated"
    path.write_bytes(mutated(seeds[name], changes))
    through(path)


@settings(PROFILE, max_examples=200)
@given(text=st.text(st.sampled_from("{}[]()\"'\\,:#/*\n aN1.-eu0\ud800"), max_size=60), cut_off=st.booleans())
def test_repairs_never_fail_but_with_a_reason(text: str, cut_off: bool) -> None:
    try:
        _, end, _ = parse(text, cut_off=cut_off)
        assert 0 <= end <= len(text)
    except Broken as error:
        assert error.reason and 0 <= error.at <= len(text)


@settings(PROFILE, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    )
)
def test_whatever_python_or_json_writes_is_read_back(value: object) -> None:
    assert parse(json.dumps(value))[0] == value
    assert parse(repr(value))[0] == value


def test_every_seed_is_read_whole_before_it_is_mutated(seeds: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in seeds.items():
        path = tmp_path / name
        path.write_bytes(content)
        log = ProblemLog()
        assert len(list(read_items(path, log, KNOWN).stream)) >= 2
        through(path)
