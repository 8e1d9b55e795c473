"""What in a row's text is worth a look before it is learned; told and counted, never changed.

Each check asks first for a piece of text that a case must hold, and only then looks closely: a row of a
thousand characters takes some twenty microseconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ollama_tune.core.data.rows.private import holds_card, holds_contact, holds_secret
from ollama_tune.core.data.values import Message

LOOKED_AT = 200_000
"""Characters of a text that are looked at."""
BEGINNING = 300
"""Characters of an answer in which a refusal stands."""
TAGS_SHARE = 0.2
REPEATED_SHARE = 0.3
REPEATED_WORDS = 20
"""An answer of at least so many words repeats itself when five words in a row make up that share of it."""
GARBLED = 2
"""So many broken letters make a text garbled; a single one may be meant."""

_TOKEN = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_/-]{1,40}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos|pad)>|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
_ANGLED = ("<|", "<｜", "_of_turn>", "<bos>", "<eos>", "<pad>", "SYS>>")
_BRACKETED = ("INST]", "_PROMPT]", "[TOOL", "/TOOL")
_REFUSAL = re.compile(
    r"\b(?:i['’]?m sorry|i apologi[sz]e|sorry),? (?:but )?(?:i|as an ai)\b[^.]{0,20}\b"
    r"(?:can['’]?t|cannot|can not|won['’]?t|am not able|['’]?m not able|['’]?m unable|am unable)\b"
    r"|\bi (?:can['’]?t|cannot|won['’]?t|am unable to|am not able to) (?:assist|help|fulfil|comply|engage)"
    r"|\bas an? (?:ai|artificial intelligence)\b[^.]{0,40}\bi (?:can['’]?t|cannot|don['’]?t|am unable|do not)"
)
_REFUSAL_SIGNS = (
    "sorry",
    "cannot",
    "can't",
    "can’t",
    "won't",
    "won’t",
    "unable",
    "not able",
    "as an ai",
    "apolog",
)
_LEFTOVERS = (
    "Regenerate response",
    "ChatGPT said:",
    "violates our usage policies",
    "violate our content policy",
    "last knowledge update",
    "contentReference[",
    "turn0search",
)
_PLACEHOLDER = re.compile(
    r"\{\{ ?[A-Za-z_][\w .]{0,40}\}\}"
    r"|\[(?:your|insert|enter|company|customer|recipient|client)\b[^\]\n]{0,40}\]"
    r"|<(?:insert|your)[ _-][^>\n]{1,40}>|\bLorem ipsum dolor\b",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,12}(?:\s[^<>]{0,300})?/?>")
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|apos|#\d{1,5}|#x[0-9A-Fa-f]{1,4});")
_GARBLED = re.compile(r"[ÃÂâð][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|\ufffd")
_FENCE = "```"


class Texts:
    """The texts of a row, as the checks look at them.

    `all` is everything said, `answer` what is learned last and `question` what that answers; `digits` counts
    the ASCII digits, and `label` is on where the answer is a label, which may be short.
    """

    __slots__ = ("all", "answer", "calls", "digits", "label", "question")

    def __init__(self, messages: Sequence[Message], label: bool = False) -> None:
        self.all = "\n".join([message.content[:LOOKED_AT] for message in messages])
        self.answer = messages[-1].content[:LOOKED_AT]
        self.calls = bool(messages[-1].tool_calls)
        self.question = next((m.content for m in reversed(messages[:-1]) if m.role == "user"), "")[:LOOKED_AT]
        raw = self.all.encode("utf-8", "replace")
        self.digits = len(raw) - len(raw.translate(None, b"0123456789"))
        self.label = label


def _holds(text: str, signs: tuple[str, ...]) -> bool:
    return any(map(text.__contains__, signs))


def _template_token(texts: Texts) -> bool:
    text = texts.all
    if ("<" in text and _holds(text, _ANGLED)) or ("[" in text and _holds(text, _BRACKETED)):
        return _TOKEN.search(text) is not None
    return text.startswith("<s>") or text.endswith("</s>")


def _refusal(texts: Texts) -> bool:
    beginning = texts.answer[:BEGINNING].lower()
    return _holds(beginning, _REFUSAL_SIGNS) and _REFUSAL.search(beginning) is not None


def _leftover(texts: Texts) -> bool:
    return _holds(texts.answer, _LEFTOVERS)


def _placeholder(texts: Texts) -> bool:
    text = texts.answer
    if not ("{{" in text or "[" in text or "<" in text or "Lorem" in text) or _FENCE in text:
        return False
    return _PLACEHOLDER.search(text) is not None


def _html(texts: Texts) -> bool:
    text = texts.all
    if _FENCE in text:
        return False
    if "&" in text and ";" in text and _ENTITY.search(text):
        return True
    if text.count("<") * 100 < len(text):
        return False
    tags = sum(len(tag) for tag in _TAG.findall(text))
    return tags > TAGS_SHARE * len(text)


def _garbled(texts: Texts) -> bool:
    text = texts.all
    return not text.isascii() and len(_GARBLED.findall(text)) >= GARBLED


def _repeated(texts: Texts) -> bool:
    words = texts.answer.split() if len(texts.answer) > 2 * REPEATED_WORDS else ()
    if len(words) < REPEATED_WORDS:
        return False
    often = max(REPEATED_SHARE * len(words) / 5, 1)
    if sum([count for count in Counter(words).values() if count > often]) <= REPEATED_SHARE * len(words):
        return False
    grams = Counter(zip(words, words[1:], words[2:], words[3:], words[4:], strict=False))
    return max(grams.values()) > often


def _echo(texts: Texts) -> bool:
    question, answer = texts.question, texts.answer
    return abs(len(question) - len(answer)) < 8 and answer.strip().lower() == question.strip().lower() != ""


def _short(texts: Texts) -> bool:
    return not (texts.label or texts.calls) and len(texts.answer) < 8 and len(texts.answer.strip()) < 2


@dataclass(frozen=True)
class Check:
    """A kind of finding: its stable name, its sentence, and whether a row has it."""

    kind: str
    text: str
    found: Callable[[Texts], bool]


CHECKS = (
    Check(
        "template-tokens",
        "A text holds control tokens of a chat template, which may end or begin a turn in its middle.",
        _template_token,
    ),
    Check(
        "secret",
        "A text seems to hold a secret (an API key, a token or a private key), which the model would learn.",
        lambda texts: holds_secret(texts.all),
    ),
    Check(
        "card-number",
        "A text seems to hold the number of a payment card.",
        lambda texts: texts.digits >= 13 and holds_card(texts.all),
    ),
    Check(
        "contact",
        "A text holds an e-mail address or a phone number.",
        lambda texts: holds_contact(texts.all, texts.digits),
    ),
    Check("refusal", "An answer refuses, so refusing is learned.", _refusal),
    Check("leftover", "An answer holds words of a chat program's page that do not belong to it.", _leftover),
    Check("placeholder", "An answer holds a placeholder that was never filled in.", _placeholder),
    Check("html", "A text is full of HTML tags, or holds entities such as &amp;.", _html),
    Check(
        "garbled",
        "A text holds broken letters such as Ã©: it was read in the wrong encoding before it came here.",
        _garbled,
    ),
    Check("repetition", "An answer repeats the same words over and over.", _repeated),
    Check("echo", "An answer only says its question again.", _echo),
    Check("short-answer", "An answer has fewer than two characters.", _short),
)

TEXTS = {check.kind: check.text for check in CHECKS}


def findings(messages: Sequence[Message], label: bool = False) -> Iterator[str]:
    """The kinds that a row has; `label` where its answer is a label, which may be short."""
    texts = Texts(messages, label)
    for check in CHECKS:
        if check.found(texts):
            yield check.kind
