"""Encodes rows and measures how long they are in tokens, exactly or by a sample."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from ollama_tune.core.data.chat.mask import parts_of
from ollama_tune.core.data.chat.notes import NOTES, in_order
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.rows.store import RejectedRows, StoredRows, worse
from ollama_tune.core.data.tokens.batched import Batched, Part, one_by_one
from ollama_tune.core.data.tokens.encoded import Examples, counted, find, hold, store
from ollama_tune.core.data.values import LENGTH_STEP, Example, Lengths, Problem, Row
from ollama_tune.core.errors import TuneError

_TOGETHER = 32
"""Rows that are turned into tokens at once."""
_AT_ONCE = 128
STORE_FROM = 1000
"""So many rows are kept in a file; fewer are encoded again before a file would pay."""
SAMPLE = 2000
MASKED = 400
"""Rows of a sample that are masked exactly; they tell the trained share of the others."""
BYTES_A_TOKEN = 3.5
MESSAGE_TOKENS = 5

Progress = Callable[[int, int], None]
Turn = Callable[[Sequence[Part]], Sequence[Example | TuneError]]


def encode_rows(
    chat: ChatFormat, rows: Sequence[Row], progress: Progress | None = None
) -> tuple[Examples, list[Problem]]:
    """The examples of the rows that can be masked exactly, in order, and the problems met.

    `progress` is called with (rows done, rows in all) every few rows and at the end. Many rows go to a file
    in the cache, from where a second call for the same rows and model takes them at once.
    """

    stored = len(rows) >= STORE_FROM
    turn = Batched(chat).examples if stored else partial(one_by_one, chat)

    def write(add: Callable[[Example, int], None]) -> Sequence[Problem]:
        log, done, waiting = ProblemLog(), 0, iter(rows)
        while part := list(islice(waiting, _TOGETHER)):
            for number, example in _encoded(chat, part, turn, log):
                add(example, done + number)
            done += len(part)
            if progress is not None:
                progress(done, len(rows))
        return log.problems()

    return store(content_key(chat, rows), write) if stored else hold(write)


def is_encoded(chat: ChatFormat, rows: Sequence[Row]) -> bool:
    """Whether `encode_rows` would answer at once."""
    return len(rows) < STORE_FROM or find(content_key(chat, rows)) is not None


def content_key(chat: ChatFormat, rows: Iterable[Row]) -> str:
    """Names what decides the examples: the rows, the tokenizer, the template, and the code that masks."""
    digest = hashlib.blake2b(digest_size=20)
    paths = sorted((Path(__file__).parents[1] / "chat").glob("*.py"))
    paths += [chat.folder / "tokenizer.json", chat.folder / "tokenizer_config.json"]
    for path in paths:
        digest.update(path.read_bytes() if path.is_file() else b"-")
    digest.update(repr((chat.template, chat.stop_texts, chat.eos_token, chat.bos_token)).encode())
    if isinstance(rows, StoredRows):
        digest.update(rows.key.encode())
    else:
        for row in rows:
            digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _encoded(
    chat: ChatFormat, rows: Sequence[Row], turn: Turn, log: ProblemLog
) -> Iterator[tuple[int, Example]]:
    """The examples of some rows, each with the number of its row among them."""
    found = [_parts(chat, row, log) for row in rows]
    examples = iter(turn([part for parts in found for part in parts]))
    for number, (row, parts) in enumerate(zip(rows, found, strict=True)):
        made = list(islice(examples, len(parts)))
        refused = next((example for example in made if isinstance(example, TuneError)), None)
        if refused is not None:
            log.set_aside("refused", refused.what, row.line)
            continue
        yield from ((number, example) for example in made if isinstance(example, Example))


def _parts(chat: ChatFormat, row: Row, log: ProblemLog) -> list[Part]:
    try:
        parts, notes = parts_of(chat, row)
    except TuneError as error:
        log.set_aside("refused", error.what, row.line)
        return []
    for note in in_order(notes):
        log.warn(note, NOTES[note], row.line)
    if any(chat.holds_special_token(message.content) for message in row.messages):
        log.warn(
            "control-tokens", "A text holds the model's own control tokens; it may confuse turns.", row.line
        )
    return parts


def measure(examples: Sequence[Example]) -> Lengths:
    """Token lengths; percentiles by nearest rank. All zero without examples."""
    known = counted(examples)
    found, sides = _measured(known.counts, known.trained), known.sides
    return replace(found, sides=_measured(sides.counts, sides.trained)) if sides else found


def sample_lengths(chat: ChatFormat, rows: Sequence[Row], total: int) -> Lengths:
    """Token lengths of `total` rows by at most 2,000 of them, taken at random from `rows`.

    All tokens are all characters x (tokens a character), which is far more exact than rows x (tokens a row):
    stored rows know their characters; a `total` that was itself estimated by the bytes of these rows comes
    to the same. Percentiles, histogram and longest row are those of the sample; rows that the template
    refuses are not among them.
    """
    texts: list[str] = []
    chosen: list[Row] = []
    for row in _chosen(rows):
        with contextlib.suppress(TuneError):
            texts.append(chat.render(row.messages, tools=row.tools))
            chosen.append(row)
    if not chosen:
        return _measured([], [])
    counts = list(_token_counts(chat, texts))
    share = _trained_share(chat, chosen[:MASKED])
    found = _measured(counts, [round(share * _answer_bytes(row)) for row in chosen])
    scale = _scale(rows, chosen, total)
    pairs = _sampled_pairs(chat, chosen, counts, share)
    if pairs is not None:
        pairs = _extrapolated(pairs, round(total * pairs.rows / len(chosen)), scale)
    return replace(_extrapolated(found, total, scale), pairs=pairs)


def _extrapolated(found: Lengths, total: int, scale: float) -> Lengths:
    """The lengths of a sample as those of `total` rows with so many times its tokens."""
    if found.sides is not None:
        found = replace(found, sides=_extrapolated(found.sides, 2 * total, scale))
    tokens = found.tokens * scale
    return Lengths(
        rows=total,
        tokens=round(tokens),
        trained_tokens=round(tokens * found.trained_tokens / max(found.tokens, 1)),
        median=found.median,
        percentile_95=found.percentile_95,
        percentile_99=found.percentile_99,
        longest=found.longest,
        longest_answer=found.longest_answer,
        histogram=_scaled(found.histogram, total),
        exact=False,
        sides=found.sides,
    )


def _sampled_pairs(
    chat: ChatFormat, rows: Sequence[Row], counts: Sequence[int], share: float
) -> Lengths | None:
    """Lengths of the pairs among rows of so many tokens each; None where there are none."""
    known = [(row, count) for row, count in zip(rows, counts, strict=True) if row.rejected]
    texts, pairs = [], []
    for row, count in known:
        with contextlib.suppress(TuneError):
            texts.append(chat.render(row.rejected, tools=row.tools))
            pairs.append((row, worse(row), count))
    others = list(_token_counts(chat, texts))
    sides = [n for (_, _, count), other in zip(pairs, others, strict=True) for n in (count, other)]
    learned = [round(share * _answer_bytes(side)) for one, other, _ in pairs for side in (one, other)]
    return of_pairs(sides, learned) if sides else None


def _token_counts(chat: ChatFormat, texts: Sequence[str]) -> Iterator[int]:
    """Tokens of each text; some at a time, as what the tokenizer gives back is large."""
    for start in range(0, len(texts), _AT_ONCE):
        part = list(texts[start : start + _AT_ONCE])
        yield from map(len, chat.tokenizer.encode_batch_fast(part, add_special_tokens=False))


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """At most 2,000 rows, the same ones each time."""
    if len(rows) <= SAMPLE:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(len(rows)).sample(range(len(rows)), SAMPLE))]


def _scale(rows: Sequence[Row], chosen: Sequence[Row], total: int) -> float:
    """How much more there is in all rows than in the chosen ones."""
    known = sum(len(message.content) + len(message.reasoning) for row in chosen for message in row.messages)
    if not isinstance(rows, StoredRows) or isinstance(rows, RejectedRows) or not known:
        return total / len(chosen)
    return rows.characters / known


def _answer_bytes(row: Row) -> int:
    learned = [message for message in row.messages if message.role in ("assistant", "text")]
    answers = (message for message in learned if message.train)
    return sum(len((answer.content + answer.reasoning).encode("utf-8", "replace")) + 4 for answer in answers)


def _trained_share(chat: ChatFormat, rows: Sequence[Row]) -> float:
    """Trained tokens for each byte of an answer, by rows that are masked exactly."""
    tokens = size = 0
    for row in rows:
        made = _encoded(chat, [row], partial(one_by_one, chat), ProblemLog())
        found = sum(sum(example.trained) for _, example in made)
        tokens += found
        size += _answer_bytes(row) if found else 0
    return tokens / size if size else 0.0


def _scaled(histogram: Sequence[int], total: int) -> tuple[int, ...]:
    """The same shape for so many rows in all: each bound is rounded, so the sum is exact."""
    seen, known, bound = 0, max(sum(histogram), 1), 0
    scaled = []
    for count in histogram:
        seen += count
        before, bound = bound, round(total * seen / known)
        scaled.append(bound - before)
    return tuple(scaled)


def estimate_lengths(rows: Sequence[Row]) -> Lengths:
    """Token lengths where there is no tokenizer: 3.5 bytes a token and five tokens around each message.

    English takes about 4.5 bytes, code and most other languages 3 to 4; so the figure is rather high.
    """
    sizes = [_estimated(row) for row in rows]
    found = _measured([tokens for tokens, _ in sizes], [trained for _, trained in sizes])
    pairs = [_estimated(side) for row in rows if row.rejected for side in (row, worse(row))]
    both = of_pairs([n for n, _ in pairs], [n for _, n in pairs]) if pairs else None
    return replace(found, exact=False, pairs=both and replace(both, exact=False))


def _estimated(row: Row) -> tuple[int, int]:
    """All tokens of a row, and those of its answers."""
    texts = [(message.role, message.content.encode("utf-8", "replace")) for message in row.messages]
    sizes = [(role, math.ceil(len(text) / BYTES_A_TOKEN)) for role, text in texts]
    answers = sum(size + 1 for role, size in sizes if role == "assistant")
    return sum(size + MESSAGE_TOKENS for _, size in sizes), answers


def of_pairs(counts: Sequence[int], trained: Sequence[int]) -> Lengths:
    """Lengths of pairs from all and trained tokens of their rows, the two of a pair one after the other."""
    both = (list(map(sum, zip(part[::2], part[1::2], strict=True))) for part in (counts, trained))
    return replace(_measured(*both), sides=_measured(counts, trained))


def _measured(counts: Sequence[int], trained: Sequence[int]) -> Lengths:
    """From all and trained tokens of each row."""
    lengths = sorted(counts)

    def percentile(share: float) -> int:
        return lengths[max(math.ceil(share * len(lengths)) - 1, 0)] if lengths else 0

    return Lengths(
        rows=len(lengths),
        tokens=sum(lengths),
        trained_tokens=sum(trained),
        median=percentile(0.5),
        percentile_95=percentile(0.95),
        percentile_99=percentile(0.99),
        longest=lengths[-1] if lengths else 0,
        longest_answer=max(trained, default=0),
        histogram=_histogram(lengths),
    )


def _histogram(lengths: Sequence[int]) -> tuple[int, ...]:
    counts = Counter((length - 1) // LENGTH_STEP for length in lengths if length)
    return tuple(counts[step] for step in range(max(counts, default=-1) + 1))
