"""A Go template with the words of a chat template, for Ollama before 0.30, which cannot run Jinja.

What stands between two messages is found by rendering; a small Go template prints it by the roles before
and after. The result is believed only where it prints, for every conversation tried, what the training saw.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.chat.templates import BLANKS
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.probes import CONVERSATIONS

START, END = "start", "end"
ROLES = ("system", "user", "assistant")
_LETTERS = {role[0]: role for role in ROLES}
_USUAL = ("u", "su", "uau", "suau", "uauau")
"""The conversations that are trained on and asked in use: the words between their texts must be certain."""
_RARE = ("sau", "au", "usu", "uasu", "us", "uas", "s", "ua", "sa")
"""Others, from which words that no usual conversation shows are taken, where they fit."""

Pair = tuple[str, str]
"""The role of a message (or `end`) after the role of the one before it (or `start`)."""

_BLANK = r'" " "\t" "\n" "\r" "\v" "\f"'
_LEFT = '{{{{ define "{name}" }}}}{{{{ if . }}}}{{{{ if eq (slice . 0 1) {blank} }}}}'
_LEFT += '{{{{ template "{name}" (slice . 1) }}}}{{{{ else }}}}{rest}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}'
_RIGHT = '{{ define "r" }}{{ if . }}{{ $n := len (slice . 1) }}{{ if eq (slice . $n) ' + _BLANK
_RIGHT += ' }}{{ template "r" (slice . 0 $n) }}{{ else }}{{ . }}{{ end }}{{ end }}{{ end }}'
_DEFINITIONS = {
    "": "",
    "r": _RIGHT,
    "l": _LEFT.format(name="l", blank=_BLANK, rest="{{ . }}"),
    "lr": _LEFT.format(name="lr", blank=_BLANK, rest='{{ template "r" . }}'),
}
"""Go has no word for cutting off blanks; these cut one byte after the other. `len (slice . 1)` is len - 1."""


@dataclass(frozen=True)
class GoTemplate:
    """The text for `template` when a model is created in Ollama before 0.30, and where it falls short."""

    text: str
    limits: tuple[str, ...] = ()


@dataclass
class _Words:
    """What a chat template makes of a conversation.

    `gaps` are printed between two texts, `trims` says which blanks around the second are cut off (`l`, `r`,
    `lr` or none), `skips` that an empty system text counts as none.
    """

    gaps: dict[Pair, str] = field(default_factory=dict)
    trims: dict[Pair, str] = field(default_factory=dict)
    skips: bool = False


def go_template(chat: ChatFormat) -> GoTemplate | str:
    """The Go template of a chat format, or in one sentence why there is none.

    Equal to the training, without its BOS, for every conversation of a system text, questions and answers.
    """
    try:
        words = _Words(_gaps(chat))
        words.skips = _skips(chat)
        _find_trims(chat, words)
    except _InexpressibleError as error:
        return str(error)
    text = _write(words)
    for messages in (*CONVERSATIONS, *_CHECKS):
        if not _equal(chat, text, messages):
            return _THOUGHTS if messages is _THOUGHT else _CHANGES
    return GoTemplate(text, () if all(_equal(chat, text, messages) for messages in _LATE) else (_LATE_TEXT,))


def collate(messages: Sequence[Message]) -> list[Message]:
    """The messages as Ollama gives them to a Go template: neighbours of one role are one message."""
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            joined[-1] = Message(message.role, f"{joined[-1].content}\n\n{message.content}")
        else:
            joined.append(message)
    return joined


class _InexpressibleError(Exception):
    """The chat template is not a row of fixed words around texts."""


def _talk(*texts: str) -> tuple[Message, ...]:
    """Messages written as `u:text`, with the role's first letter."""
    return tuple(Message(_LETTERS[text[0]], text[2:]) for text in texts)


_THOUGHT = _talk("u:q", "a:<think>\nhm\n</think>\n\na", "u:r")
_CHECKS = (
    _talk("s:  \n be brief \t ", "u: q\n", "a:\r\n a b  ", "u:\t r"),
    _talk("s:", "u:q"),
    _talk("u:q", "a:", "u:r", "a:b", "u:t"),
    _talk("u:q", "u:r", "a:a", "a:b", "u:t"),
    _talk("u:   "),
    _talk("u:{{ .Content }} {{ end }}", "a:}}", "u:{{"),
    _THOUGHT,
)
_CHANGES = "It changes the texts of some messages, for which a Go template has no words."
_THOUGHTS = "It takes the thoughts out of earlier answers, for which a Go template has no words."
_LATE = (
    _talk("u:q", "a:a", "s:late", "u:r"),
    _talk("s:first", "u:q", "s:late", "u:r"),
    _talk("a:a", "u:q"),
)
_LATE_TEXT = (
    "Only conversations of a system text, questions and answers are as in the training; a later system text "
    "may be put elsewhere."
)


def _equal(chat: ChatFormat, text: str, messages: Sequence[Message]) -> bool:
    """True too where the model's own template refuses the conversation: there is nothing to be equal to."""
    joined = collate(messages)
    wanted = _prompt(chat, joined)
    return wanted is None or run(text, joined) == wanted


def _prompt(chat: ChatFormat, messages: Sequence[Message]) -> str | None:
    """The prompt without the BOS that Ollama adds itself, or None where the template refuses."""
    try:
        text = chat.render(messages, add_generation_prompt=True)
    except TuneError:
        return None
    return text.removeprefix(chat.bos_token or "") if _begins_with_bos(chat) else text


def _begins_with_bos(chat: ChatFormat) -> bool:
    text = chat.render([Message("user", "q")], add_generation_prompt=True)
    return bool(chat.bos_token) and text.startswith(str(chat.bos_token))


def _gaps(chat: ChatFormat) -> dict[Pair, str]:
    """What is printed between two texts, from conversations of all shapes."""
    gaps: dict[Pair, str] = {}
    for shape in _USUAL:
        for pair, gap in _shown(chat, shape):
            if gaps.setdefault(pair, gap) != gap:
                raise _InexpressibleError(
                    "What it prints between two messages depends on more than their roles."
                )
    for shape in _RARE:
        with contextlib.suppress(_InexpressibleError):
            for pair, gap in _shown(chat, shape):
                gaps.setdefault(pair, gap)
    return gaps


def _shown(chat: ChatFormat, shape: str) -> list[tuple[Pair, str]]:
    """The gaps of one conversation, none where the template refuses it."""
    messages = _talk(*(f"{letter}:Q7{letter}{i}x" for i, letter in enumerate(shape)))
    text = _prompt(chat, messages)
    if text is None:
        return []
    if re.findall(r"Q7[sua]\d+x", text) != [message.content for message in messages]:
        raise _InexpressibleError("It leaves out, repeats or moves the text of a message.")
    roles = [START, *(message.role for message in messages), END]
    return list(zip(pairwise(roles), re.split(r"Q7[sua]\d+x", text), strict=True))


def _skips(chat: ChatFormat) -> bool:
    """True when an empty system text changes nothing."""
    question = _talk("u:q")
    return _prompt(chat, [Message("system", ""), *question]) == _prompt(chat, question)


def _find_trims(chat: ChatFormat, words: _Words) -> None:
    """Put the blanks that the template cuts off into `words.trims`, one message of each shape at a time."""
    for shape in (*_USUAL, *_RARE):
        plain = [f"{letter}:{letter}" for letter in shape]
        roles = [START, *(_LETTERS[letter] for letter in shape)]
        for i, pair in enumerate(pairwise(roles)):
            talks = [
                _talk(*plain[:i], f"{shape[i]}:{blanked}", *plain[i + 1 :])
                for blanked in ("x \t\n", "\n\t x", " \r\nx ")
            ]
            if pair not in words.trims and not _fit(chat, words, pair, talks) and shape in _USUAL:
                raise _InexpressibleError(
                    "It changes the blanks around the texts of messages in a way of its own."
                )


def _fit(chat: ChatFormat, words: _Words, pair: Pair, talks: Sequence[Sequence[Message]]) -> bool:
    for way in _DEFINITIONS:
        words.trims[pair] = way
        if all(_equal(chat, _write(words), messages) for messages in talks):
            return True
    del words.trims[pair]
    return False


def _write(words: _Words) -> str:
    """One pass over the messages; `$before` is the role of the message before, or `start`."""
    roles = "".join(
        f'{{{{ {"else " if i else ""}if eq .Role "{role}" }}}}{_message(words, role)}'
        for i, role in enumerate(ROLES)
    )
    loop = f"{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}"
    ways = {*words.trims.values()}
    definitions = "".join(
        text for way, text in _DEFINITIONS.items() if way in ways or (way == "r" and "lr" in ways)
    )
    last = {before: _plain(gap) for (before, role), gap in words.gaps.items() if role == END}
    return f'{definitions}{{{{ $before := "{START}" }}}}{loop}{_choice(last)}'


def _message(words: _Words, role: str) -> str:
    shown = {
        before: _plain(gap) + _content(words.trims.get((before, role), ""))
        for (before, after), gap in words.gaps.items()
        if after == role
    }
    text = f'{_choice(shown)}{{{{ $before = "{role}" }}}}'
    return f"{{{{ if .Content }}}}{text}{{{{ end }}}}" if role == "system" and words.skips else text


def _content(way: str) -> str:
    return f'{{{{ template "{way}" .Content }}}}' if way else "{{ .Content }}"


def _choice(texts: Mapping[str, str]) -> str:
    """A text by the role before; the most frequent one needs no condition."""
    befores: dict[str, list[str]] = {}
    for before, text in texts.items():
        befores.setdefault(text, []).append(before)
    usual = max(befores, key=lambda text: len(befores[text]), default="")
    others = [text for text in befores if text != usual]
    if not others:
        return usual
    cases = "".join(
        f"{{{{ {'else ' if i else ''}if eq $before {' '.join(map(json.dumps, befores[text]))} }}}}{text}"
        for i, text in enumerate(others)
    )
    return f"{cases}{{{{ else }}}}{usual}{{{{ end }}}}"


def _plain(text: str) -> str:
    """A text that Go prints as it is."""
    return text.replace("{{", '{{ "{{" }}')


# --- reading it again ------------------------------------------------------------------------------------

_ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)
_TEST = re.compile(r'(?:else )?if eq (\$before|\.Role)((?: "[a-z]+")+)')
_TRIM = re.compile(r'(?:template "(l|r|lr)" )?\.Content')
_SET = re.compile(r'\$before :?= "([a-z]+)"')


@dataclass
class _State:
    """Where a run of the template is: the role before, the message at hand, and what was printed."""

    before: str = ""
    message: Message = field(default_factory=lambda: Message("", ""))
    printed: list[str] = field(default_factory=list)


def run(text: str, messages: Sequence[Message]) -> str:
    """What Go prints for a template of the forms that `go_template` writes; ValueError for any other."""
    for definition in _DEFINITIONS.values():
        text = text.removeprefix(definition)
    state = _State()
    rest = _block(_tokens(text), state, messages, True)
    if rest:
        raise ValueError("the template has an end too many")
    return "".join(state.printed)


def _tokens(text: str) -> list[tuple[str, str]]:
    """Pairs of kind (`text` or `action`) and content."""
    parts = _ACTION.split(text)
    found = [("action" if i % 2 else "text", part) for i, part in enumerate(parts)]
    if any("{{" in part for kind, part in found if kind == "text"):
        raise ValueError("an action of another form")
    return [token for token in found if token != ("text", "")]


def _block(
    tokens: list[tuple[str, str]], state: _State, messages: Sequence[Message], live: bool
) -> list[tuple[str, str]]:
    """Run up to the `else` or `end` that closes this block; returns what is left, beginning with that."""
    while tokens:
        kind, content = tokens[0]
        if kind == "action" and (content == "end" or content.startswith("else")):
            return tokens
        tokens = tokens[1:]
        if kind == "text":
            if live:
                state.printed.append(content)
        elif content == "range .Messages":
            tokens = _range(tokens, state, messages, live)
        elif content.startswith("if "):
            tokens = _if(content, tokens, state, messages, live)
        else:
            _act(content, state, live)
    return tokens


def _range(
    tokens: list[tuple[str, str]], state: _State, messages: Sequence[Message], live: bool
) -> list[tuple[str, str]]:
    rest = _block(tokens, state, messages, False)
    for state.message in messages if live else ():
        _block(tokens, state, messages, True)
    return _closed(rest)


def _if(
    content: str, tokens: list[tuple[str, str]], state: _State, messages: Sequence[Message], live: bool
) -> list[tuple[str, str]]:
    while True:
        chosen = live and _true(content, state)
        tokens = _block(tokens, state, messages, chosen)
        live = live and not chosen
        if tokens and tokens[0][1].startswith("else"):
            content, tokens = tokens[0][1], tokens[1:]
        else:
            return _closed(tokens)


def _true(content: str, state: _State) -> bool:
    if content == "else":
        return True
    if content == "if .Content":
        return bool(state.message.content)
    test = _TEST.fullmatch(content)
    if test is None:
        raise ValueError(f"a condition of another form: {content}")
    value = state.before if test[1] == "$before" else state.message.role
    return value in re.findall(r'"([a-z]+)"', test[2])


def _closed(tokens: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if not tokens or tokens[0] != ("action", "end"):
        raise ValueError("a block without an end")
    return tokens[1:]


def _act(content: str, state: _State, live: bool) -> None:
    assigned, trimmed = _SET.fullmatch(content), _TRIM.fullmatch(content)
    if not assigned and not trimmed and content != '"{{"':
        raise ValueError(f"an action of another form: {content}")
    if not live:
        return
    if assigned:
        state.before = assigned[1]
    elif trimmed:
        text, way = state.message.content, trimmed[1] or ""
        text = text.lstrip(BLANKS) if "l" in way else text
        state.printed.append(text.rstrip(BLANKS) if "r" in way else text)
    else:
        state.printed.append("{{")
