"""What shows only when all rows are known: copies, answers that contradict, and what all rows share."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.rows.keys import Keys
from ollama_tune.core.data.rows.scripts import ScriptMix
from ollama_tune.core.data.rows.store import HELD_OUT, Writer
from ollama_tune.core.data.values import Message, Row
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENOUGH_ROWS = 10
"""Below this many rows what they share says little."""
SHARED_CHARACTERS = 12
"""A beginning or end that all texts share is told from this length on."""
LONGEST_SHARED = 1000
QUOTED = 40

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near-duplicate"
HELD_OUT_COPY = "held-out-copy"


@dataclass(frozen=True)
class Found:
    """A kind of finding in words and the places of its rows; without rows `count` alone says how many."""

    kind: str
    text: str
    places: Any = ()
    count: int = 0
    severity: str = "warning"


class _Shared:
    """The longest beginning and the longest end that all texts have in common."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._beginning: str | None = None
        self._end = ""

    def add(self, text: str) -> None:
        """One more text."""
        if self._beginning is None:
            self._beginning, self._end = text[:LONGEST_SHARED], text[-LONGEST_SHARED:][::-1]
        elif self._beginning or self._end:
            self._beginning = _common(self._beginning, text)
            self._end = _common(self._end, text[-LONGEST_SHARED:][::-1])

    def findings(self, count: int) -> Iterator[Found]:
        """What all texts share, where it is more than a word or two."""
        for kind, verb, text in (
            ("same-beginning", "begin", self._beginning or ""),
            ("same-end", "end", self._end[::-1]),
        ):
            if len(text.strip()) >= SHARED_CHARACTERS:
                quoted = one_line(text.strip(), QUOTED)
                yield Found(kind, f"All {self._what} {verb} with “{quoted}”.", count=count)


def _common(first: str, second: str) -> str:
    if second.startswith(first):
        return first
    both = enumerate(zip(first, second, strict=False))
    return first[: next((at for at, (one, other) in both if one != other), len(second))]


class Wholes:
    """Takes every row once, keeps a few numbers of each, and then says what they tell together."""

    def __init__(self) -> None:
        from ollama_tune.core.data.rows.duplicates import Signatures

        self.scripts = ScriptMix()
        self._signatures = Signatures()
        self._prompts, self._answers = array("Q"), array("Q")
        self._questions, self._replies = _Shared("questions"), _Shared("answers")

    def add(self, row: Row, keys: Keys) -> None:
        """One row more, in the order in which they are written."""
        self._prompts.append(keys.prompt)
        self._answers.append(keys.answer)
        text = spoken_text(row.messages)
        self._signatures.add(text)
        self.scripts.add(text)
        question = next((message.content for message in row.messages if message.role == "user"), "")
        self._questions.add(question)
        self._replies.add(row.answer)

    def findings(self, writer: Writer, labelled: bool) -> Iterator[Found]:
        """All findings; the clusters of near-duplicates are put into the rows' column `group`."""
        import numpy as np

        columns = writer.columns
        conversations = np.frombuffer(columns["conversation"], np.uint64)
        copies = _later_copies(conversations)
        yield Found(
            DUPLICATE,
            "A row says the same as one that stands earlier.",
            np.flatnonzero(copies),
            severity="error",
        )
        yield self._contradictions(copies)
        yield from self._near(writer, copies)
        if len(writer) - int(copies.sum()) >= ENOUGH_ROWS:
            same = list(self._same_answers(copies)) if not labelled else []
            yield from same
            yield from self._questions.findings(len(writer))
            yield from self._replies.findings(len(writer)) if not same else ()

    def _contradictions(self, copies: NDArray[Any]) -> Found:
        import numpy as np

        places = np.flatnonzero(~copies)
        prompts = np.frombuffer(self._prompts, np.uint64)[places]
        answers = np.frombuffer(self._answers, np.uint64)[places]
        order = np.lexsort((answers, prompts))
        starts = np.concatenate(([True], prompts[order][1:] != prompts[order][:-1]))[: len(order)]
        group = np.cumsum(starts) - 1
        changed = np.concatenate(([False], answers[order][1:] != answers[order][:-1]))[: len(order)] & ~starts
        several = np.bincount(group, changed) > 0 if len(order) else np.zeros(0, np.bool_)
        found = np.sort(places[order[several[group]]])
        return Found("contradiction", "The same question has another answer in another row.", found)

    def _near(self, writer: Writer, copies: NDArray[Any]) -> Iterator[Found]:
        import numpy as np

        from ollama_tune.core.data.rows.duplicates import MOST, distinct

        def texts(places: Iterable[int]) -> list[str]:
            return [spoken_text(messages) for messages in writer.messages(places)]

        first = self._signatures.clusters(texts)
        place = np.arange(len(first))
        if len(first) < len(writer):
            text = f"Near-duplicates were looked for in the first {MOST:,} rows only."
            yield Found("near-duplicates-partly", text, count=len(writer) - len(first))
        later = np.flatnonzero((first != place) & ~copies[: len(first)])
        yield Found(NEAR_DUPLICATE, "A row says nearly the same as one that stands earlier.", later)
        clusters = np.bincount(first, minlength=len(first))[first] > 1
        group = np.frombuffer(writer.columns["group"], np.uint32)
        group[: len(first)][clusters] = first[clusters] + 1
        held = (np.frombuffer(writer.columns["bits"], np.uint64) & np.uint64(HELD_OUT)) != 0
        trained = distinct(group[~held & (group > 0)])
        leaked = np.flatnonzero(held & np.isin(group, trained) & ~copies)
        text = "A row kept for measuring says nearly the same as one that is learned."
        yield Found(HELD_OUT_COPY, text, leaked)

    def _same_answers(self, copies: NDArray[Any]) -> Iterator[Found]:
        import numpy as np

        answers = np.sort(np.frombuffer(self._answers, np.uint64)[~copies])
        turns = np.flatnonzero(np.concatenate(([True], answers[1:] != answers[:-1], [True])))
        count = int(np.diff(turns).max()) if len(answers) else 0
        if count == len(answers):
            yield Found(
                "constant-answer", "All answers are the same, so that is all that is learned.", count=count
            )
        elif count > len(answers) / 2:
            yield Found("same-answers", "More than half of the answers are the same.", count=count)


def spoken_text(messages: Iterable[Message]) -> str:
    """What tells rows apart: all texts but those of the system, which many rows share."""
    return "\n".join([message.content for message in messages if message.role != "system"])


def _later_copies(keys: NDArray[Any]) -> NDArray[Any]:
    """For each row whether one with the same key stands before it."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    copies = np.zeros(len(keys), np.bool_)
    copies[order[1:]] = keys[order][1:] == keys[order][:-1]
    return copies
