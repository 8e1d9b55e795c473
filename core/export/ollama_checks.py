"""The proof inside Ollama: the prompt the server makes, and what the model there answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.export.ollama import Answer, OllamaClient
from ollama_tune.core.export.questions import Question
from ollama_tune.core.export.values import Check, Progress, Stopped, Verdict
from ollama_tune.core.text import one_line

EXACT = ("f32", "f16", "bf16", "q8_0")
"""Types whose greedy answers are those of the tuned model."""
BEGINNING = 48
"""Characters of an answer that are compared in the coarser types: what follows hangs on the first choice."""
SIMILAR = 0.5
EXCERPT = 40
NEWER = "Update Ollama to the newest version and export again."


@dataclass(frozen=True)
class Subject:
    """The model under test and where it is; `forced` when the server renders prompts by code of its own."""

    client: OllamaClient
    model: str
    chat: ChatFormat
    type: str
    limit: int
    forced: bool
    stopped: Stopped


@dataclass(frozen=True)
class Observed:
    """What the server made of a question: the prompt's text, None where it is not shown, and its tokens as
    sent without a template, 0 where they are not counted."""

    question: Question
    rendered: str | None
    raw_tokens: int = 0
    answer: Answer | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """The server's counts of the prompt's tokens, those it tells."""
        chat = self.answer.prompt_tokens if self.answer else 0
        return tuple(count for count in (self.raw_tokens, chat) if count)


def check_model(
    subject: Subject,
    questions: Sequence[Question],
    others: Sequence[Question],
    progress: Progress,
) -> tuple[Check, Check]:
    """The checks "ollama prompt" and "ollama answer".

    `questions` are rendered, counted and answered; `others`, conversations of other shapes, are only
    rendered. Raises `TuneError` where the model cannot be loaded.
    """
    total = len(questions) + len(others)
    asked = [*_observe(subject, questions, _ask, progress, 0, total)]
    shown = [*_observe(subject, others, _render, progress, len(asked), total)]
    return _prompt_check(subject, asked, shown), _answer_check(subject, asked)


def _observe(
    subject: Subject,
    questions: Sequence[Question],
    work: Callable[[Subject, Question], Observed],
    progress: Progress,
    done: int,
    total: int,
) -> Iterator[Observed]:
    for number, question in enumerate(questions):
        yield work(subject, question)
        progress(done + number + 1, total)


def _render(subject: Subject, question: Question) -> Observed:
    return Observed(question, subject.client.rendered(subject.model, question.turns, subject.stopped))


def _ask(subject: Subject, question: Question) -> Observed:
    client, model, stopped = subject.client, subject.model, subject.stopped
    rendered = client.rendered(model, question.turns, stopped)
    prompt = _without_bos(subject.chat, question.text) if rendered is None else rendered
    raw = client.complete(model, prompt, stopped=stopped)
    known = question.reference
    limit = len(known.answer_ids) if known and not known.ended else subject.limit
    answer = client.chat(model, question.turns, max_new_tokens=limit, stopped=stopped)
    return Observed(question, rendered, raw.prompt_tokens, answer)


# the prompt


def _prompt_check(subject: Subject, asked: Sequence[Observed], shown: Sequence[Observed]) -> Check:
    """Compares texts (one leading BOS aside, which Ollama adds as a token) and counts of tokens."""
    seen = [one for one in (*asked, *shown) if one.rendered is not None]
    counts = [(one, count) for one in asked for count in one.counts]
    unlike = [one for one in seen if not _same_text(subject.chat, one)]
    miscounted = [(one, count) for one, count in counts if count != len(one.question.ids)]
    figures = {"texts": len(seen), "texts_unlike": len(unlike)}
    figures |= {"counts": len(counts), "counts_unlike": len(miscounted)}
    if unlike or miscounted:
        example = _text_example(subject.chat, unlike[0]) if unlike else _count_example(*miscounted[0])
        serious = bool(miscounted) or any(one.answer is not None for one in unlike)
        verdict, text = _wrong_prompt(subject.forced, serious, example)
        number = len(unlike) or len({id(one) for one, _ in miscounted})
        return Check("ollama prompt", verdict, f"{number} differ", text, figures)
    if not seen and not counts:
        text = "This Ollama shows neither prompts nor token counts, so they could not be compared; update it."
        return Check("ollama prompt", "skipped", "not shown", text, figures)
    compared = [f"the texts of {len(seen)} prompts"] if seen else []
    compared += [f"{len(counts)} token counts"] if counts else []
    text = f"In Ollama {' and '.join(compared)} equal those of the training."
    if not (seen and counts):
        text += f" It does not show {'token counts' if seen else 'the texts'}."
    if subject.forced:
        text += " It has a renderer of its own for this family; other conversations may differ."
    return Check("ollama prompt", "warn" if subject.forced else "pass", "equal", text, figures)


def _wrong_prompt(forced: bool, serious: bool, example: str) -> tuple[Verdict, str]:
    if forced:
        what = "Ollama has a renderer of its own for this family, which writes prompts unlike the training"
        return "warn", f"{what}: {example}. Try its answers before you rely on them."
    if serious:
        what = "Ollama gives the model another prompt than the training did"
        return "fail", f"{what}: {example}. Update Ollama and export again."
    what = "Conversations of some shapes become another prompt in Ollama than in the training"
    return "warn", f"{what}: {example}. Update Ollama, or keep to conversations like those of the data."


def _same_text(chat: ChatFormat, one: Observed) -> bool:
    return _without_bos(chat, one.rendered or "") == _without_bos(chat, one.question.text)


def _without_bos(chat: ChatFormat, text: str) -> str:
    return text.removeprefix(chat.bos_token) if chat.bos_token else text


def _text_example(chat: ChatFormat, one: Observed) -> str:
    found, expected = _without_bos(chat, one.rendered or ""), _without_bos(chat, one.question.text)
    place = common_length(found, expected)
    excerpts = (one_line(repr(text[max(place - 8, 0) : place + 16]), EXCERPT) for text in (found, expected))
    return f"{' for '.join(excerpts)} at character {place + 1}"


def _count_example(one: Observed, count: int) -> str:
    return f"{count} tokens for {len(one.question.ids)}"


# the answer


@dataclass(frozen=True)
class _Told:
    """An answer beside the tuned model's; thoughts that Ollama took out of it are put back."""

    chat: ChatFormat
    question: Question
    answer: Answer

    @property
    def expected(self) -> str | None:
        return None if self.question.reference is None else self._plain(self.question.reference.text)

    @property
    def given(self) -> str:
        return self._plain(f"{self.answer.thought} {self.answer.text}")

    def _plain(self, text: str) -> str:
        """Where thoughts were taken out, neither their marks nor the blanks around them can be compared."""
        if not self.answer.thought:
            return text.strip()
        return " ".join(text.replace("<think>", " ").replace("</think>", " ").split())

    @property
    def must_end(self) -> bool:
        return self.question.reference is not None and self.question.reference.ended

    @property
    def ended(self) -> bool:
        return self.answer.done_reason == "stop"

    @property
    def equal(self) -> bool:
        return self.expected == self.given

    @property
    def alike(self) -> float:
        """Share of the beginning of the expected answer that this one has."""
        beginning = (self.expected or "")[:BEGINNING]
        if not beginning:
            return float(self.equal)
        return common_length(beginning, self.given) / len(beginning)

    @property
    def mark(self) -> str:
        """A token of the template that stands in the text though the tuned model did not write it."""
        marks = (*self.chat.stop_texts, *self.chat.special_tokens.values())
        own = self.question.reference.text if self.question.reference else ""
        return next((m for m in marks if m.strip() and m in self.answer.text and m not in own), "")


def common_length(one: str, other: str) -> int:
    """How many characters two texts share from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _answer_check(subject: Subject, asked: Sequence[Observed]) -> Check:
    told = [_Told(subject.chat, one.question, one.answer) for one in asked if one.answer is not None]
    if not told:
        text = "No prompt leaves room for an answer in the model's context, so none was asked for."
        return Check("ollama answer", "skipped", "not asked", text)
    broken = _broken(told)
    return broken if broken else _compared(subject.type, told)


def _broken(told: Sequence[_Told]) -> Check | None:
    """What makes a model useless whatever its type: marks of the template in the text, no end."""
    mark = next((one.mark for one in told if one.mark), "")
    if mark:
        text = f"An answer in Ollama shows {one_line(mark, 30)}, a mark of the template. {NEWER}"
        return Check("ollama answer", "fail", "marks in text", text, {"mark": mark})
    ending = [one for one in told if one.must_end]
    endless = [one for one in ending if not one.ended]
    if not endless or 2 * len(endless) < len(ending):
        return None
    reason = endless[0].answer.done_reason or "missing"
    text = f"{len(endless)} of {len(ending)} answers in Ollama do not end (done_reason {reason}). {NEWER}"
    return Check("ollama answer", "fail", "no end", text, {"endless": len(endless), "ending": len(ending)})


def _compared(type_: str, told: Sequence[_Told]) -> Check:
    known = [one for one in told if one.expected is not None]
    if not known:
        return _unknown(told)
    equal, alike = sum(one.equal for one in known), fmean(one.alike for one in known)
    endless = sum(one.must_end and not one.ended for one in known)
    ending = sum(one.must_end for one in known)
    figures = {"known": len(known), "equal": equal, "alike": alike, "ending": ending, "endless": endless}
    if type_ in EXACT:
        good, figure = equal == len(known), f"{equal} of {len(known)} equal"
    else:
        good, figure = alike >= SIMILAR, f"{alike:.0%} alike"
        figures["alike_limit"] = SIMILAR
    verdict: Verdict = "pass" if good and not endless else "warn"
    return Check("ollama answer", verdict, figure, _meaning(type_, good, known), figures)


def _meaning(type_: str, good: bool, told: Sequence[_Told]) -> str:
    known, ending = len(told), [one for one in told if one.must_end]
    endless = sum(not one.ended for one in ending)
    prompts = "a held-out prompt" if known == 1 else f"{known} held-out prompts"
    if endless:
        return f"{endless} of the answers in Ollama do not end; try the model before you rely on it."
    if not good:
        text = f"To {prompts} the model in Ollama does not answer as the tuned one"
        return f"{text}; try it, or {'update Ollama' if type_ in EXACT else 'choose a finer type'}."
    if type_ in EXACT:
        text = f"To {prompts} Ollama gives the tuned model's answer"
    else:
        text = f"To {prompts} Ollama begins as the tuned model does, as close as {type_} comes"
    return f"{text} and stops." if ending else f"{text}; none was short enough to see it stop."


def _unknown(told: Sequence[_Told]) -> Check:
    """Without known answers, as with a system prompt that the data lacks, only their end can be seen."""
    ended = sum(one.ended for one in told)
    figures = {"answers": len(told), "ended": ended}
    if ended:
        text = "The model in Ollama answers and stops; no answer is known to compare with."
        return Check("ollama answer", "pass", f"{ended} of {len(told)} end", text, figures)
    text = "No answer in Ollama ended within its limit, and none is known to compare with. Try the model."
    return Check("ollama answer", "warn", "no end seen", text, figures)
