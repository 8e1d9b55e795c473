"""Compares how llama.cpp reads and renders text with an exported file with how the training did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.probes import VARIABLES
from ollama_tune.core.export.prompts import (
    Conversation,
    Ids,
    Prompt,
    in_own_data,
    is_odd,
    is_plain,
    too_many,
)
from ollama_tune.core.export.template import template_limits
from ollama_tune.core.export.values import Check, ExportStopped, Verdict

Encode = Callable[[str], Ids]

_AGAIN = "Export again; if it stays so, report the model's name."


def check_tokens(llama: LlamaServer, prompts: Sequence[Prompt], theirs: Encode | None, meter: Meter) -> Check:
    """Token ids of rendered prompts, difficult texts among them: ours, llama.cpp's and transformers'.

    `theirs` is transformers' own tokenizer, where it can read the files of the model.
    """
    wrong, other = [], 0
    for prompt in prompts:
        meter.step()
        if llama.tokenize(prompt.text) != prompt.ids:
            wrong.append(prompt)
        other += theirs is not None and theirs(prompt.text) != prompt.ids
    harmful = in_own_data(wrong) or not all(prompt.odd for prompt in wrong)
    verdict: Verdict = "fail" if too_many(wrong) else "warn" if harmful or other else "pass"
    words = "llama.cpp, transformers and the training see the same tokens."
    if verdict == "fail":
        words = f"llama.cpp cuts {len(wrong)} texts differently from the training. {_AGAIN}"
    elif wrong:
        words = (
            f"llama.cpp cuts {len(wrong)} unusual texts differently from the training, such as those with "
            "combining marks. Compose such characters (Unicode NFC) in what you send to the model."
        )
    elif other:
        words = (
            f"llama.cpp sees the tokens of the training; transformers' tokenizer differs in {other}. "
            "That matters only where you use the adapter with transformers."
        )
    total = len(prompts)
    data = {"texts": total, "llama_differs": len(wrong), "transformers_differs": other}
    return Check("tokens", verdict, f"{total - max(len(wrong), other)} of {total}", words, data)


@dataclass(frozen=True)
class _Pair:
    """One conversation: whether llama.cpp makes the same text and tokens of it as the training, and always.

    `trained` is the number of BOS tokens it began with in the training, `begun` in llama.cpp, and `added`
    how many llama.cpp puts in front of the same prompt when it comes as plain text without BOS. `odd`: its
    tokens cannot be the same in llama.cpp.
    """

    same: bool
    odd: bool
    steady: bool
    trained: int
    begun: int
    added: int


def check_chats(
    llama: LlamaServer, chat: ChatFormat, conversations: Iterable[Conversation], meter: Meter
) -> list[Check]:
    """Two checks, `chat` and `BOS`, over conversations of plain texts that the training could render."""
    pairs, left_out = [], 0
    for messages in conversations:
        meter.step()
        if not is_plain(messages):
            left_out += 1
        elif (ours := rendered(chat, messages)) is not None:
            pairs.append(_pair(llama, chat, messages, ours))
    return [_chat(pairs, left_out), _bos(pairs)]


def rendered(chat: ChatFormat, messages: Conversation) -> str | None:
    """The prompt, or None where the model's template refuses such a conversation."""
    try:
        return chat.render(messages, add_generation_prompt=True)
    except TuneError:
        return None


def _pair(llama: LlamaServer, chat: ChatFormat, messages: Conversation, ours: str) -> _Pair:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    theirs = _rendered_by(llama, turns, None)
    steady = all(_rendered_by(llama, turns, variables) == theirs for variables in VARIABLES)
    ids, found = chat.encode(ours)[0], llama.tokenize(theirs or "", as_prompt=True)
    bos = chat.bos_token or ""
    body, mark = ours.removeprefix(bos), chat.encode(bos)[0] if bos else ()
    return _Pair(
        same=theirs in (ours, body) and found == ids,
        odd=theirs in (ours, body) and is_odd(chat, messages),
        steady=steady,
        trained=_leading(ids, mark),
        begun=_leading(found, mark),
        added=len(llama.tokenize(body, as_prompt=True)) - len(llama.tokenize(body)),
    )


def _rendered_by(
    llama: LlamaServer, turns: Sequence[Mapping[str, str]], variables: Mapping[str, Any] | None
) -> str | None:
    """None where the file's template refuses the conversation."""
    try:
        return llama.render(turns, variables)
    except ExportStopped:
        raise
    except TuneError:
        return None


def _leading(ids: Ids, mark: Ids) -> int:
    """How often `mark` stands at the beginning."""
    count = 0
    while mark and ids[count * len(mark) : (count + 1) * len(mark)] == mark:
        count += 1
    return count


def check_template(chat: ChatFormat) -> list[Check]:
    """The check `template`, where the chat template cannot do what a person may expect of it.

    It passes: such a limit is the base model's own, and Ollama has it just as the training had.
    """
    limits = template_limits(chat)
    if not limits:
        return []
    figure = f"{len(limits)} limit{'s' if len(limits) > 1 else ''}"
    return [Check("template", "pass", figure, " ".join(limits), {"limits": limits})]


def _chat(pairs: Sequence[_Pair], left_out: int) -> Check:
    wrong = sum(not pair.same and not pair.odd for pair in pairs)
    odd = sum(not pair.same and pair.odd for pair in pairs)
    moved = sum(not pair.steady for pair in pairs)
    text = "Conversations become the text and tokens of the training, whatever options a client sends."
    if wrong:
        text = f"{wrong} conversations are rendered differently from the training. {_AGAIN}"
    elif moved:
        text = (
            f"{moved} conversations change with options that a client may send, such as enable_thinking. "
            "Train again with this version, which fixes them in the template."
        )
    elif odd:
        text = (
            f"{odd} conversations with combining marks or spaces at edges become other tokens in llama.cpp."
        )
    verdict: Verdict = "fail" if wrong else "warn" if moved or odd else "pass"
    if left_out:
        text += (
            f" {left_out} with tools or thoughts were left out: each engine hands those on in its own form."
        )
    data = {"conversations": len(pairs), "wrong": wrong, "moved_by_options": moved, "unusual": odd}
    data |= {"left_out": left_out}
    return Check("chat", verdict, f"{len(pairs) - max(wrong, moved, odd)} of {len(pairs)}", text, data)


def _bos(pairs: Sequence[_Pair]) -> Check:
    """The mark of the beginning: as often as in the training, by the template and for plain prompts alike."""
    wrong = [pair for pair in pairs if {pair.begun, pair.added} != {pair.trained}]
    trained = max((pair.trained for pair in pairs), default=0)
    data = {"prompts": len(pairs), "wrong": len(wrong), "trained": trained}
    if wrong:
        worst = next((pair for pair in wrong if pair.added != pair.trained), wrong[0])
        figure = f"{worst.added if worst.added != worst.trained else worst.begun} for {worst.trained}"
        text = (
            f"{len(wrong)} of {len(pairs)} prompts would begin with another number of BOS tokens than in the "
            f"training. {_AGAIN}"
        )
        return Check("BOS", "fail", figure, text, data)
    if trained > 1:
        text = f"Prompts begin with {trained} BOS tokens, as in the training; one is usual for this model."
        return Check("BOS", "warn", str(trained), text + " Look at the chat template of the base.", data)
    words = "exactly one BOS token" if trained else "no BOS token"
    return Check("BOS", "pass", str(trained), f"Every prompt begins with {words}, as in the training.", data)
