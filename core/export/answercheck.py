"""Compares what llama.cpp answers with an exported file with what the tuned model answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.export.llama import Completion, LlamaServer
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.reference import ReferenceAnswer, divergence
from ollama_tune.core.export.tokenizer import turn_end
from ollama_tune.core.export.values import Check, Verdict

LLAMA_TOKENS = 128
DECIDED = 0.1
"""Nats between the first and the second token above which the choice of the first is no coin toss."""
NF4_ALLOWANCE = 0.05
"""Nats allowed between a model trained on 4-bit weights and the same adapter on 16-bit ones (measured on a
small model: 0.002), where that cannot be measured."""

Top = Callable[[Sequence[int]], Mapping[int, float]]


@dataclass(frozen=True)
class Gate:
    """Mean KL (nats) to pass and from which to fail, and the least share of equal first tokens."""

    passes: float
    fails: float
    agreement: float


# Three to seven times the divergence that llama.cpp publishes for Llama-3-8B (tools/perplexity/README.md):
# q8_0 0.0014, q6_K 0.0055, q5_K_M 0.0108, q4_K_M 0.0313, q4_K_S 0.0431, q4_0 0.0719.
GATES = {
    "f32": Gate(0.005, 0.02, 0.95),
    "f16": Gate(0.005, 0.02, 0.95),
    "bf16": Gate(0.005, 0.02, 0.95),
    "q8_0": Gate(0.01, 0.03, 0.94),
    "q6_k": Gate(0.02, 0.06, 0.92),
    "q5_k_m": Gate(0.04, 0.10, 0.88),
    "q4_k_m": Gate(0.10, 0.20, 0.82),
    "q4_k_s": Gate(0.13, 0.25, 0.80),
    "q4_0": Gate(0.22, 0.44, 0.74),
}


@dataclass(frozen=True)
class Distance:
    """How far next-token probabilities are apart: mean and largest KL in nats, and equal first tokens.

    `agreement` counts the `decided` places only, where the reference prefers its first token clearly.
    """

    places: int
    mean: float
    largest: float
    agreement: float
    decided: int


def measure(reference: Sequence[ReferenceAnswer], top: Top, meter: Meter) -> Distance:
    """Ask `top` for the next tokens at every place of the reference, and compare."""
    distances, decided, equal = [], 0, 0
    for answer in reference:
        for position in answer.positions:
            meter.step()
            found = top((*answer.prompt_ids, *answer.answer_ids[: position.index]))
            distances.append(divergence(position.logprobs, found))
            first, second = sorted(position.logprobs.values(), reverse=True)[:2]
            if first - second > DECIDED:
                decided += 1
                equal += position.logprobs.get(max(found, key=found.__getitem__)) == first
    mean = sum(distances) / max(len(distances), 1)
    share = equal / decided if decided else 1.0
    return Distance(len(distances), mean, max(distances, default=0.0), share, decided)


def check_distribution(
    llama: LlamaServer,
    chat: ChatFormat,
    reference: Sequence[ReferenceAnswer],
    gate: Gate,
    slack: float,
    meter: Meter,
) -> Check:
    """Next-token probabilities in the middle of answers: mean KL decides, equal first tokens are shown."""
    plain = next(i for letter in "ae01" for i in chat.encode(letter)[0][:1] if i not in chat.stop_ids)
    found = measure(reference, lambda ids: llama.top(ids, LLAMA_TOKENS, plain), meter)
    if not found.places:
        text = "There is no answer of the tuned model to compare with; the other checks stand alone."
        return Check("probabilities", "warn", "not compared", text)
    verdict: Verdict = "fail" if not found.mean < gate.fails + slack else "pass"
    if verdict == "pass" and (found.mean > gate.passes + slack or found.agreement < gate.agreement):
        verdict = "warn"
    return Check(
        "probabilities",
        verdict,
        _figure(found),
        f"At {found.places} places of {len(reference)} answers llama.cpp's next-token probabilities "
        + _JUDGED[verdict],
        {
            "kl": round(found.mean, 8),
            "kl_largest": round(found.largest, 8),
            "first_token": round(found.agreement, 4),
            "places": found.places,
            "decided": found.decided,
            "kl_passes_below": gate.passes + slack,
            "kl_fails_from": gate.fails + slack,
            "first_token_least": gate.agreement,
            "slack": slack,
        },
    )


_JUDGED: dict[Verdict, str] = {
    "pass": "are those of the tuned model.",
    "warn": "differ from the tuned model more than usual for this type. Compare some answers by "
    "hand, or export with more bits.",
    "fail": "are not those of the tuned model. Do not use the file; export with more bits, and report "
    "it if that fails too.",
}


def _figure(found: Distance) -> str:
    return f"KL {found.mean:.2g}, first token {found.agreement:.0%}"


def check_bases(reference: Sequence[ReferenceAnswer], sixteen: Sequence[ReferenceAnswer]) -> Check:
    """What the adapter loses by going from the 4-bit weights it was trained on to 16-bit ones."""
    known = {
        (*answer.prompt_ids, *answer.answer_ids[: position.index]): position.logprobs
        for answer in sixteen
        for position in answer.positions
    }
    found = measure(reference, lambda ids: known[tuple(ids)], Meter(0))
    verdict: Verdict = "pass" if found.mean <= NF4_ALLOWANCE else "warn"
    text = "The adapter was trained on 4-bit weights; on the 16-bit ones of the file it answers "
    text += (
        "alike."
        if verdict == "pass"
        else "differently. Compare some answers by hand; training with quantization=none avoids it."
    )
    data = {
        "kl": round(found.mean, 8),
        "first_token": round(found.agreement, 4),
        "kl_passes_below": NF4_ALLOWANCE,
    }
    return Check("4-bit base", verdict, _figure(found), text, data)


def check_answers(
    llama: LlamaServer,
    chat: ChatFormat,
    reference: Sequence[ReferenceAnswer],
    max_new_tokens: int,
    meter: Meter,
) -> list[Check]:
    """Whole greedy answers: how many are the same, and whether they end where the tuned model ends."""
    equal, ends = 0, []
    for answer in reference:
        meter.step()
        limit = min(max_new_tokens, len(answer.answer_ids) + 1)
        equal += _words(chat, llama.complete(answer.prompt_ids, limit)) == answer.answer_ids
        if answer.ended:
            ends.append(llama.complete((*answer.prompt_ids, *answer.answer_ids), 2))
    ending = check_ending(chat, ends, _end_is_heard(llama, chat))
    if not reference:
        return [ending]
    verdict: Verdict = "pass" if 2 * equal >= len(reference) else "warn"
    text = "Greedy answers of llama.cpp against those of the tuned model, token by token."
    if verdict == "warn":
        text += f" {equal} of {len(reference)} are the same: where two tokens are nearly as likely, rounding "
        text += "decides. Compare some by hand."
    data = {"answers": len(reference), "equal": equal}
    return [Check("answers", verdict, f"{equal} of {len(reference)} equal", text, data), ending]


def _end_is_heard(llama: LlamaServer, chat: ChatFormat) -> bool:
    """Whether llama.cpp ends when the model says what ended answers in the training."""
    end = turn_end(chat)
    return end is None or llama.complete(chat.encode("a")[0], 2, forced=end).ended


def _words(chat: ChatFormat, found: Completion) -> tuple[int, ...]:
    return tuple(i for i in found.ids if i not in chat.stop_ids)


def check_ending(chat: ChatFormat, found: Sequence[Completion], heard: bool) -> Check:
    """After a whole answer: `found` must end at once; an end token that ends nothing is a fault.

    `heard` tells whether llama.cpp stops at the end token of the training.
    """
    ended = sum(end.ended for end in found)
    data = {"answers": len(found), "ended": ended, "end_token_heard": heard}
    figure = f"{ended} of {len(found)}"
    if not heard or any(chat.stop_ids & set(end.ids) for end in found if not end.ended):
        text = "The model says its end token and llama.cpp does not stop at it. Export again; report it if "
        return Check("ending", "fail", figure, text + "it stays so.", data)
    if not found:
        text = "llama.cpp stops at the end token, but the tuned model ended none of these answers by itself."
        return Check("ending", "skipped", "-", text, data)
    if ended < len(found):
        text = "Some answers go on where the tuned model ends. Compare them, or export with more bits."
        return Check("ending", "warn", figure, text, data)
    return Check("ending", "pass", figure, "Answers end by themselves with an end-of-generation token.", data)
