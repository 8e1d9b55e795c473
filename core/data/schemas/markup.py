"""Finds the turns of a conversation in one text that carries the marks of a chat format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ollama_tune.core.data.schemas.roles import role_of

_STARTS = (
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<｜begin▁of▁sentence｜>",
    "[gMASK]",
    "<sop>",
)
_ENDS = (
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    *_STARTS,
)
_EXTRA_ROLES = {
    "[INST]": "user",
    "[/INST]": "assistant",
    "q": "user",
    "a": "assistant",
    "问": "user",
    "答": "assistant",
    "问题": "user",
    "prompter": "user",
    "CHATBOT_TOKEN": "assistant",
    "function response": "tool",
}
_ALPACA = re.compile(
    r"\ABelow is an? (?:instruction|question|input)\b[^#]{0,300}?"
    r"(?:completes the request|answers? the question)[^#\n]{0,40}\Z",
    re.DOTALL,
)
_LLAMA_SYSTEM = re.compile(r"<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)


@dataclass(frozen=True)
class Markup:
    """A chat format: its name, a text without which it cannot be present, and the heads of its turns."""

    name: str
    needle: str
    head: re.Pattern[str]


def _markup(name: str, needle: str, head: str) -> Markup:
    return Markup(name, needle, re.compile(head, re.MULTILINE))


_WORDS = "Human|Assistant|User|System|AI|Bot|Chatbot|GPT|Customer|Agent"

MARKUPS = (
    _markup("ChatML", "<|im_start|>", r"<\|im_start\|>(?P<role>\w+)(?:<\|im_sep\|>|[ \t]*\n|(?=$))"),
    _markup("Llama 3", "<|start_header_id|>", r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>"),
    _markup("Llama 4", "<|header_start|>", r"<\|header_start\|>(?P<role>\w+)<\|header_end\|>"),
    _markup("Gemma", "<start_of_turn>", r"<start_of_turn>(?P<role>\w+)[ \t]*(?:\n|$)"),
    _markup("Gemma 4", "<|turn>", r"<\|turn>(?P<role>\w+)[ \t]*(?:\n|$)"),
    _markup(
        "Harmony",
        "<|message|>",
        r"<\|start\|>(?P<role>\w+)(?:<\|channel\|>(?P<channel>\w+))?[^<\n]*"
        r"(?:<\|constrain\|>\w+)?<\|message\|>",
    ),
    _markup("Llama 2 or Mistral", "[/INST]", r"(?P<role>\[/?INST\])"),
    _markup("DeepSeek", "<｜Assistant｜>", r"<｜(?P<role>User|Assistant)｜>"),
    _markup("Granite", "<|start_of_role|>", r"<\|start_of_role\|>(?P<role>\w+)<\|end_of_role\|>"),
    _markup(
        "Command R",
        "<|CHATBOT_TOKEN|>",
        r"<\|START_OF_TURN_TOKEN\|><\|(?P<role>CHATBOT_TOKEN|USER_TOKEN|SYSTEM_TOKEN)\|>",
    ),
    _markup(
        "Phi or Zephyr",
        "<|assistant|>",
        r"<\|(?P<role>system|user|assistant|prompter|observation|tool)\|>[ \t]*\n?",
    ),
    _markup("bot tags", "<bot>", r"^[ \t]*<(?P<role>human|bot)>:"),
    _markup(
        "Alpaca headings",
        "###",
        r"(?:^#{2,4}|(?<!#)###) *(?P<role>Instruction|Input|Response|Question|Answer|Output|Context|"
        rf"{_WORDS})s? *(?::|(?=\n|$))",
    ),
    _markup(
        "Vicuna", "ASSISTANT:", r"(?:^|(?<=\s)|(?<=</s>))(?P<role>USER|ASSISTANT|SYSTEM|FUNCTION RESPONSE):"
    ),
    _markup("Human and Assistant", ":", rf"^(?:\[|<)?(?P<role>{_WORDS})(?:\]|>)?:"),
    _markup("question and answer lines", ":", r"^(?P<role>Question|Answer|Q|A):"),
    _markup("question and answer lines", "：", r"^(?P<role>问题|问|回答|答|用户|助手)："),
)
"""The formats that are recognised, those that cannot be mistaken for plain text first."""


def find_markup(text: str) -> Markup | None:
    """The first format that the text carries with a question and an answer; None for plain text."""
    for markup in MARKUPS:
        if markup.needle in text:
            roles = {_role(match) for match in markup.head.finditer(text)}
            if "user" in roles and "assistant" in roles:
                return markup
    return None


def marked_turns(text: str) -> list[dict[str, Any]] | None:
    """The turns in a text as objects with a role and a content; None where it carries no format.

    What stands before the first turn is the system text; only the sentence that Alpaca prints there is left
    out as a part of its marks.
    """
    markup = find_markup(text)
    if markup is None:
        return None
    matches = [match for match in markup.head.finditer(text) if _role(match)]
    before = _bare(text[: matches[0].start()])
    turns: list[dict[str, Any]] = []
    if before and not _ALPACA.match(before):
        turns.append({"role": "system", "content": before})
    for match, after in zip(matches, [*matches[1:], None], strict=True):
        content = _bare(text[match.end() : after.start() if after else len(text)])
        _add(turns, match, content)
    return turns


def open_turn(text: str) -> bool:
    """True for a prompt that ends with the head of an answer, where the answer stands in another column."""
    for markup in MARKUPS:
        if markup.needle in text or markup.needle in text + ":":
            matches = [match for match in markup.head.finditer(text) if _role(match)]
            if (
                len(matches) > 1
                and _role(matches[-1]) == "assistant"
                and not text[matches[-1].end() :].strip()
            ):
                return True
    return False


def _role(match: re.Match[str]) -> str | None:
    name = match["role"]
    plain = name.removesuffix("_TOKEN") if name != "CHATBOT_TOKEN" else name
    return _EXTRA_ROLES.get(plain) or _EXTRA_ROLES.get(plain.lower()) or _known(plain)


def _known(name: str) -> str | None:
    return "user" if name.lower() == "context" else role_of(name)


def _bare(text: str) -> str:
    """A text without the marks of beginning and end around it."""
    while True:
        text = text.strip()
        end = next((mark for mark in _ENDS if text.endswith(mark)), "")
        start = next((mark for mark in _STARTS if text.startswith(mark)), "")
        if not end and not start:
            return text
        text = text.removesuffix(end).removeprefix(start)


def _add(turns: list[dict[str, Any]], match: re.Match[str], content: str) -> None:
    role = str(_role(match))
    system = _LLAMA_SYSTEM.match(content) if match["role"] == "[INST]" else None
    if system:
        turns.append({"role": "system", "content": system[1]})
        content = content[system.end() :]
    if turns and turns[-1]["role"] == role == "user" and match["role"] in ("Input", "Context"):
        turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content}".strip()
        return
    turn = {"role": role, "content": content}
    if match.groupdict().get("channel"):
        turn["channel"] = match["channel"]
    turns.append(turn)
