"""Proves an exported file: tensors against base + adapter, llama.cpp's words against transformers'."""

from __future__ import annotations

import gc
import struct
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.gguf import Exported, Source, open_source
from ollama_tune.core.export.llama import Completion, LlamaServer
from ollama_tune.core.export.probes import CONVERSATIONS, TEXTS
from ollama_tune.core.export.reference import Position, ReferenceAnswer, divergence
from ollama_tune.core.export.tensorcheck import check_tensors
from ollama_tune.core.export.values import Check, ExportStopped, Verdict, Verification, worst
from ollama_tune.core.text import one_line

Conversation = Sequence[Message]

PROMPTS = 8
POSITIONS = 6
REFERENCE_TOKENS = 64
LLAMA_TOKENS = 128
DECIDED = 0.1
"""Nats between the first and the second token above which the choice of the first is no coin toss."""


@dataclass(frozen=True)
class Gate:
    """Mean KL (nats) to pass and from which to fail, and the least share of equal first tokens."""

    passes: float
    fails: float
    agreement: float


# Three to seven times the divergence that llama.cpp publishes for 8B models (tools/perplexity/README.md).
GATES = {
    "f32": Gate(0.005, 0.02, 0.95),
    "f16": Gate(0.005, 0.02, 0.95),
    "bf16": Gate(0.005, 0.02, 0.95),
    "q8_0": Gate(0.01, 0.03, 0.94),
}


class _Meter:
    """Counts questions, tells the progress, and ends the work when asked."""

    def __init__(
        self, total: int, progress: Callable[[int, int], None] | None, stopped: Callable[[], bool] | None
    ) -> None:
        self._done, self._total = 0, total
        self._progress, self._stopped = progress, stopped

    def tick(self) -> None:
        self._done += 1
        if self._stopped is not None and self._stopped():
            raise ExportStopped()
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def verify(
    exported: Exported,
    base: Path,
    adapter: Path,
    reference: Sequence[ReferenceAnswer],
    *,
    chat: ChatFormat | None = None,
    conversations: Sequence[Conversation] = (),
    slack: float = 0.0,
    max_new_tokens: int = 64,
    progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Verification:
    """Compare the file with the tuned model; never raises for a bad file, but says `fail` and why.

    `reference` holds the tuned model's answers (`read_reference` or `compute_reference`), made with
    `max_new_tokens`; `conversations` are held-out prompts to render. `slack` (nats) widens the KL gates
    for a reference made on 4-bit weights.
    """
    chat = chat or ChatFormat.from_folder(base)
    chats = [*CONVERSATIONS, *conversations[: 2 * PROMPTS]]
    with open_source(base, adapter, chat) as source:
        questions = sum(len(answer.positions) + 1 for answer in reference)
        meter = _Meter(len(source.plans) + len(TEXTS) + 2 * len(chats) + questions, progress, stopped)
        checks = [*_tensor_checks(exported, source, meter)]
    longest = max((len(answer.prompt_ids) for answer in reference), default=0) + max_new_tokens
    try:
        with LlamaServer(exported.path, longest + 8, stopped) as llama:
            checks.append(check_tokens(llama, chat, base, chats, meter))
            checks.append(check_chat(llama, chat, chats, meter))
            checks.append(check_distribution(llama, chat, reference, GATES[exported.type], slack, meter))
            checks += check_answers(llama, chat, reference, max_new_tokens, meter)
    except ExportStopped:
        raise
    except TuneError as error:
        words = f"{error.what} {one_line(error.details[-300:], 300)}".strip()
        checks.append(Check("llama.cpp", "fail", "no answer", words))
    found = tuple(checks)
    return Verification(
        worst(found), found, exported.path.name, exported.sha256, exported.bytes, exported.type
    )


def _tensor_checks(exported: Exported, source: Source, meter: _Meter) -> Iterator[Check]:
    try:
        yield from check_tensors(exported, source, meter.tick)
    except ExportStopped:
        raise
    except (OSError, ValueError, KeyError, struct.error) as error:
        yield Check("tensors", "fail", "unreadable", f"The file cannot be read as GGUF: {error}.")


def check_tokens(
    llama: LlamaServer, chat: ChatFormat, base: Path, chats: Sequence[Conversation], meter: _Meter
) -> Check:
    """Token ids of difficult texts and of rendered prompts: ours, llama.cpp's and transformers'."""
    prompts = [text for messages in chats if (text := _rendered(chat, messages)) is not None]
    theirs = _transformers_tokenizer(base)
    wrong = strange = other = 0
    for text in (*TEXTS, *prompts):
        meter.tick()
        ours = chat.encode(text)[0]
        if llama.tokenize(text) != ours:
            wrong += 1
            strange += text in TEXTS and has_marks(text)
        other += theirs is not None and theirs(text) != ours
    total = len(TEXTS) + len(prompts)
    verdict: Verdict = "fail" if wrong > strange else "warn" if wrong or other else "pass"
    words = "llama.cpp, transformers and the training see the same tokens."
    if wrong:
        which = "all of them with combining marks" if wrong == strange else "and not only combining marks"
        words = f"llama.cpp cuts {wrong} texts differently from the training, {which}."
    elif other:
        words = f"llama.cpp sees the tokens of the training; transformers' tokenizer differs in {other}."
    return Check("tokens", verdict, f"{total - max(wrong, other)} of {total}", words)


def has_marks(text: str) -> bool:
    """True for text with combining marks: llama.cpp composes none, and some of its rules ignore them."""
    return any(unicodedata.category(character).startswith("M") for character in text)


def _transformers_tokenizer(base: Path) -> Callable[[str], tuple[int, ...]] | None:
    """None where transformers has no use for these files; the training never asks it either."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, ImportError):
        return None
    return lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rendered(chat: ChatFormat, messages: Conversation) -> str | None:
    """The prompt, or None where the model's template refuses such a conversation."""
    try:
        return chat.render(messages, add_generation_prompt=True)
    except TuneError:
        return None


def check_chat(llama: LlamaServer, chat: ChatFormat, chats: Sequence[Conversation], meter: _Meter) -> Check:
    """Prompts as the file's own template renders and tokenizes them against those of the training."""
    total = wrong = 0
    for messages in chats:
        meter.tick()
        ours = _rendered(chat, messages)
        if ours is None:
            continue
        total += 1
        turns = [{"role": m.role, "content": m.content} for m in chat.adapt(messages)]
        theirs = llama.render(turns)
        same = theirs == ours or (chat.bos_token or "") + theirs == ours
        wrong += not same or llama.tokenize(theirs, as_prompt=True) != chat.encode(ours)[0]
    return Check(
        "chat",
        "fail" if wrong else "pass",
        f"{total - wrong} of {total}",
        f"{wrong} conversations are rendered differently from the training."
        if wrong
        else "Conversations become the same text and tokens as in the training.",
    )


def check_distribution(
    llama: LlamaServer,
    chat: ChatFormat,
    reference: Sequence[ReferenceAnswer],
    gate: Gate,
    slack: float,
    meter: _Meter,
) -> Check:
    """Next-token probabilities in the middle of answers: mean KL decides, equal first tokens are shown."""
    plain = next(i for letter in "ae01" for i in chat.encode(letter)[0][:1] if i not in chat.stop_ids)
    distances, decided, equal = [], 0, 0
    for answer in reference:
        for position in answer.positions:
            meter.tick()
            ids = (*answer.prompt_ids, *answer.answer_ids[: position.index])
            found = llama.top(ids, LLAMA_TOKENS, plain)
            distances.append(divergence(position.logprobs, found))
            first, second = sorted(position.logprobs.values(), reverse=True)[:2]
            if first - second > DECIDED:
                decided += 1
                equal += position.logprobs.get(max(found, key=found.__getitem__)) == first
    if not distances:
        return Check("probabilities", "skipped", "-", "There is no held-out prompt to compare on.")
    mean, share = sum(distances) / len(distances), equal / decided if decided else 1.0
    verdict: Verdict = "fail" if not mean < gate.fails + slack else "pass"
    if verdict == "pass" and (mean > gate.passes + slack or share < gate.agreement):
        verdict = "warn"
    return Check(
        "probabilities",
        verdict,
        f"KL {mean:.2g}, first token {share:.0%}",
        f"At {len(distances)} places of {len(reference)} answers llama.cpp's next-token probabilities "
        f"{'are those of the tuned model' if verdict == 'pass' else 'differ from the tuned model'}.",
    )


def check_answers(
    llama: LlamaServer,
    chat: ChatFormat,
    reference: Sequence[ReferenceAnswer],
    max_new_tokens: int,
    meter: _Meter,
) -> list[Check]:
    """Whole greedy answers: how many are the same, and whether they end where the tuned model ends."""
    equal, ends = 0, []
    for answer in reference:
        meter.tick()
        equal += _words(chat, llama.complete(answer.prompt_ids, max_new_tokens)) == answer.answer_ids
        if answer.ended:
            ends.append(llama.complete((*answer.prompt_ids, *answer.answer_ids), 2))
    if not reference:
        return []
    verdict: Verdict = "pass" if 2 * equal >= len(reference) else "warn"
    text = "Greedy answers of llama.cpp against those of the tuned model, token by token."
    return [Check("answers", verdict, f"{equal} of {len(reference)} equal", text), _ending(chat, ends)]


def _words(chat: ChatFormat, found: Completion) -> tuple[int, ...]:
    return tuple(i for i in found.ids if i not in chat.stop_ids)


def _ending(chat: ChatFormat, found: Sequence[Completion]) -> Check:
    """After a whole answer: `found` must end at once; an end token that ends nothing is a fault."""
    if not found:
        return Check("ending", "skipped", "-", "The tuned model ended none of these answers by itself.")
    ended = sum(end.ended for end in found)
    deaf = any(chat.stop_ids & set(end.ids) for end in found if not end.ended)
    verdict: Verdict = "fail" if deaf else "pass" if ended == len(found) else "warn"
    text = {
        "pass": "Answers end by themselves with an end-of-generation token.",
        "warn": "Some answers go on where the tuned model ends.",
        "fail": "The model says its end token and llama.cpp does not stop at it.",
    }[verdict]
    return Check("ending", verdict, f"{ended} of {len(found)}", text)


def compute_reference(
    base: Path,
    adapter: Path,
    chat: ChatFormat,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[ReferenceAnswer, ...]:
    """What the tuned model answers, computed now by transformers and PEFT from base + adapter."""
    from ollama_tune.core.evaluate.generate import Generator

    usable = [messages for messages in conversations if _rendered(chat, messages) is not None]
    prompts = [chat.prompt_ids(messages) for messages in usable[:PROMPTS]]
    generator = Generator(_tuned_model(base, adapter), chat)
    answers = generator.greedy(prompts, max_new_tokens, tuned=True, stopped=stopped)
    if stopped():
        raise ExportStopped
    made = []
    for prompt, answer in zip(prompts, answers, strict=True):
        count = max(len(answer.ids), 1)
        places = sorted({i * count // POSITIONS for i in range(POSITIONS)})
        at = [len(prompt) - 1 + place for place in places]
        tops = generator.top_tokens((*prompt, *answer.ids), at, REFERENCE_TOKENS)
        positions = tuple(Position(place, dict(top)) for place, top in zip(places, tops, strict=True))
        made.append(ReferenceAnswer(tuple(prompt), answer.ids, answer.text, answer.ended, positions))
    del generator
    gc.collect()
    return tuple(made)


def _tuned_model(base: Path, adapter: Path) -> Any:
    """Base + adapter on the GPU in bfloat16; on the CPU in 32 bit where that fits, else in 16."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    cuda = torch.cuda.is_available()
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    roomy = not cuda and 3 * size < psutil.virtual_memory().available
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32 if roomy else torch.bfloat16,
        device_map={"": "cuda" if cuda else "cpu"},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return PeftModel.from_pretrained(model, str(adapter), local_files_only=True).eval()
