"""The rows of a run as what is learned from and what is measured on, with what was left out told."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.tokens.encoded import Examples, Picked
from ollama_tune.core.data.tokens.lengths import encode_rows
from ollama_tune.core.data.tokens.shorten import fit_rows
from ollama_tune.core.data.tokens.sides import FIXES, encode_pairs, split_pairs
from ollama_tune.core.data.values import Problem, Row
from ollama_tune.core.text import human_rows
from ollama_tune.core.train.session import Session


def encode(
    session: Session, chat: ChatFormat, rows: Sequence[Row], held_out: set[int]
) -> tuple[Examples, Examples]:
    """The examples to learn from and those of the held-out rows, none longer than the sequence length."""
    progress = session.progress("reading_data", "rows")
    limit = session.settings.training.sequence_length
    if session.settings.training.objective == "dpo":
        pairs, problems = encode_pairs(chat, rows, limit, progress)
        _tell(session, problems)
        return split_pairs(pairs, held_out)
    encoded, _ = encode_rows(chat, rows, progress)
    examples, problems = fit_rows(chat, rows, encoded, limit, progress)
    _tell(session, problems)
    learned = [number for number, tokens in enumerate(examples.supervised) if tokens]
    sides: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for number in learned:
        sides[examples.rows[number] in held_out].append((0, number))
    return Picked([examples], sides[0]), Picked([examples], sides[1])


def _tell(session: Session, problems: Sequence[Problem]) -> None:
    for problem in problems:
        fix = FIXES.get(problem.kind, "A larger training.sequence_length helps.")
        session.warn(f"{problem.text} This is so with {human_rows(problem.count)}.", fix)
