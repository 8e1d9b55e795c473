"""Parts a row whose template shows an answer otherwise once another turn follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ollama_tune.core.data.chat.answers import find_answers
from ollama_tune.core.data.chat.marks import find_places
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message, Row
from ollama_tune.core.errors import TuneError


def samples(chat: ChatFormat, row: Row) -> list[Row]:
    """The rows to train on in place of this one: itself, unless some answer in it is unlike in use.

    Reasoning models see the thoughts of the present answer only, and some prompts open a thought that no
    earlier answer shows. An answer whose text the whole row has lost, or which does not follow its prompt
    there, gets a row that ends with it, if that is better; the answers before it are context in that row.
    """
    numbers = [i for i, m in enumerate(row.messages) if m.role == "assistant" and m.train]
    if len(numbers) < 2:
        return [row]
    alone = {number: _View.of(chat, row, number + 1, {number}) for number in numbers}
    made, waiting, end = [], set(numbers), len(row.messages)
    while waiting:
        view = _View.of(chat, row, end, waiting)
        kept = {n for n in waiting if view is None or n == end - 1 or view.shows(n, alone[n])}
        if kept:
            made.append(_part(row, end, kept))
        waiting -= kept
        end = max(waiting, default=0) + 1
    return made[::-1]


@dataclass(frozen=True)
class _View:
    """A row as far as some answer: what it leaves out, and which answers follow their prompts in it."""

    lost: frozenset[tuple[int, int]]
    exact: frozenset[int]

    @classmethod
    def of(cls, chat: ChatFormat, row: Row, end: int, numbers: set[int]) -> _View | None:
        """None where the template refuses it or nothing can be found in it."""
        context = _part(row, end, set())
        try:
            plain = chat.render(context.messages, tools=row.tools)
            lost = find_places(chat, context.messages, plain, row.tools).lost
            exact = {
                n for n in numbers if plain.startswith(chat.render(context.messages[:n], True, row.tools))
            }
            if numbers == {end - 1} and not exact:
                own = find_answers(chat, _part(row, end, numbers).messages, row.tools)
                exact = numbers if own.exact else exact
        except TuneError:
            return None
        return cls(lost, frozenset(exact))

    def shows(self, number: int, alone: _View | None) -> bool:
        """Whether an answer is as good here as in the row that ends with it."""
        if alone is None:
            return True
        lost, least = ({kind for n, kind in view.lost if n == number} for view in (self, alone))
        return lost <= least and (number in self.exact or number not in alone.exact)


def _part(row: Row, end: int, learned: set[int]) -> Row:
    numbered: Sequence[tuple[int, Message]] = list(enumerate(row.messages[:end]))
    messages = (replace(m, train=i in learned) if m.role == "assistant" else m for i, m in numbered)
    return replace(row, messages=tuple(messages))
