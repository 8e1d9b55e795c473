"""What the base and the tuned model answer to the held-out questions, before and after training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Row
from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.metrics import exact_match
from ollama_tune.core.export.about import digest_of
from ollama_tune.core.export.reference import PROMPTS, TOKENS, places
from ollama_tune.core.files import write_atomic
from ollama_tune.core.train.session import Session

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.generate import Answer, Generator

SAMPLES = 3
PREFERRED = ("reward_margin", "reward_accuracy")


@dataclass(frozen=True)
class Held:
    """The rows kept out of training that the models answer, with their prompts as token ids."""

    rows: tuple[Row, ...]
    prompts: tuple[tuple[int, ...], ...]


def held_of(chat: ChatFormat, rows: Iterable[Row], limit: int, count: int) -> Held:
    """The first `count` rows whose question the template can render in at most `limit` tokens."""
    asked: list[tuple[Row, tuple[int, ...]]] = []
    for row in rows:
        if len(asked) == count:
            break
        try:
            prompt = chat.prompt_ids(row.prompt, row.tools)
        except TuneError:
            continue
        if len(prompt) <= limit:
            asked.append((row, prompt))
    return Held(tuple(row for row, _ in asked), tuple(prompt for _, prompt in asked))


def measure_base(session: Session, generator: Generator, held: Held, loss: float | None) -> float | None:
    """Ask the base model and write the figures and samples; returns the share of exact answers."""
    answers = _ask(session, generator, held, tuned=False)
    for row, answer in list(zip(held.rows, answers, strict=True))[:SAMPLES]:
        session.emit("sample", **_sample(row, base=answer.text, tuned=None))
    return _report(session, held, answers, loss, step=0, model="base")


def measure_tuned(
    session: Session, generator: Generator, held: Held, loss: float | None, step: int
) -> float | None:
    """The same of the tuned model; the samples show both answers, the base's from the log, and the figures of
    preferences are those that were measured at that step."""
    answers, log = _ask(session, generator, held, tuned=True), session.folder.events()
    before = {event["prompt"]: event["base"] for event in log if event.kind == "sample"}
    then = [e for e in log if e.kind == "evaluation" and e["step"] == step and e["model"] == "tuned"]
    preferred = {name: then[-1][name] for name in PREFERRED if then and name in then[-1].data}
    for row, answer in list(zip(held.rows, answers, strict=True))[:SAMPLES]:
        session.emit("sample", **_sample(row, base=before.get(question(row)), tuned=answer.text))
    return _report(session, held, answers, loss, step=step, model="tuned", **preferred)


def _ask(session: Session, generator: Generator, held: Held, *, tuned: bool) -> list[Answer]:
    return generator.greedy(
        held.prompts,
        session.settings.evaluation.max_new_tokens,
        tuned=tuned,
        stopped=session.stopped,
        progress=session.progress("evaluating_tuned" if tuned else "evaluating_base", "rows"),
    )


def _report(
    session: Session,
    held: Held,
    answers: Sequence[Answer],
    loss: float | None,
    *,
    step: int,
    model: str,
    **more: float,
) -> float | None:
    """Write the `evaluation` event and return the share of answers that equal the reference."""
    hits = sum(exact_match(answer.text, row.answer) for row, answer in zip(held.rows, answers, strict=True))
    rate = hits / len(held.rows) if held.rows else None
    told = {"rows": len(held.rows), "model": model, **more}
    session.emit("evaluation", step=step, loss=loss, exact_match=rate, **told)
    return rate


def question(row: Row) -> str:
    """What a row asks: the text of its last turn."""
    return row.prompt[-1].content if row.prompt else ""


def _sample(row: Row, *, base: str | None, tuned: str | None) -> dict[str, Any]:
    return {"prompt": question(row), "reference": row.answer, "base": base, "tuned": tuned}


def write_reference(session: Session, generator: Generator, held: Held) -> None:
    """Write `reference.json`: what the tuned model answers and how sure it is, to compare an export with.

    `{"adapter_sha256": str, "prompts": [{"prompt_ids": [...], "answer_ids": [...], "text": str, "ended":
    bool, "positions": [{"index": i, "ids": [...], "logprobs": [...]}]}]}`: the greedy answer without its end
    mark, and whether the model ended it by itself; at up to six places of the answer the 64 most likely ids
    after prompt_ids + answer_ids[:index], with natural logarithms of their probabilities, most likely first.
    The digest names the published adapter or model, so that no other is compared with these answers.
    """
    prompts = held.prompts[:PROMPTS]
    longest = session.settings.evaluation.max_new_tokens
    answers = generator.greedy(prompts, longest, tuned=True) if prompts else []
    written = [
        _reference(generator, prompt, answer)
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer.ids or answer.ended  # else memory did not suffice for it
    ]
    assert session.folder.tuned is not None
    tree = {"adapter_sha256": digest_of(session.folder.tuned), "prompts": written}
    write_atomic(session.folder.path / "reference.json", json.dumps(tree))


def _reference(generator: Generator, prompt: Sequence[int], answer: Answer) -> dict[str, Any]:
    chosen = places(len(answer.ids))
    ids = [*prompt, *answer.ids]
    found = generator.top_tokens(ids, [len(prompt) - 1 + index for index in chosen], TOKENS)
    positions = [
        {"index": index, "ids": [i for i, _ in top], "logprobs": [round(p, 5) for _, p in top]}
        for index, top in zip(chosen, found, strict=True)
    ]
    return {
        "prompt_ids": list(prompt),
        "answer_ids": list(answer.ids),
        "text": answer.text,
        "ended": answer.ended,
        "positions": positions,
    }
