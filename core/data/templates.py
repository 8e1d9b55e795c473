"""Runs a model's chat template in a sandbox, with the options and helpers that transformers gives it.

A template is a program from the internet: it sees only plain texts, cannot change what it is given,
and is stopped when it loops or prints without end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_OUTPUT = 2**26
"""Characters one rendering may have."""
MOST_LOOPS = 1_000_000
"""Values that `range` may give out in one rendering."""
LONGEST_PRODUCT = 1_000_000
"""Length of a text or list made by repeating, and the bits of a number."""


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter this one leaves HTML characters as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _PlainDict:
    """`dict` for templates: callable, but without the attributes of the type."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


def _fail(message: object) -> None:
    from jinja2 import TemplateError

    raise TemplateError(str(message))


def _too_large(operator: str, left: Any, right: Any) -> bool:
    if operator == "**":
        bits = left.bit_length() if isinstance(left, int) else 64
        return isinstance(right, int) and bits * abs(right) > LONGEST_PRODUCT
    for text, times in ((left, right), (right, left)):
        if isinstance(text, (str, list, tuple)) and isinstance(times, int):
            return len(text) * times > LONGEST_PRODUCT
    return False


def _environment(now: datetime, take: Callable[[int], None]) -> ImmutableSandboxedEnvironment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

    class Generation(Extension):
        """`{% generation %}` marks answers for other tools; its text is printed as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_print"), [], [], body).set_lineno(line)

        def _print(self, caller: Callable[[], str]) -> str:
            return caller()

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _too_large(operator, left, right):
                raise OverflowError("the template repeats a text too often")
            return super().call_binop(context, operator, left, right)

    def counted_range(*arguments: int) -> range:
        values = safe_range(*arguments)
        take(len(values))
        return values

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _fail
    environment.globals["strftime_now"] = now.strftime
    environment.globals["dict"] = _PlainDict()
    environment.globals["range"] = counted_range
    return environment


class ChatTemplate:
    """A compiled chat template with the model's special tokens.

    `now` is what `strftime_now` tells, held still so that every row of a run shows the same date.
    Raises `TuneError` when the template is not valid Jinja.
    """

    def __init__(self, source: str, variables: Mapping[str, str], now: datetime | None = None) -> None:
        from jinja2 import TemplateError

        self.source = source
        self._variables = dict(variables)
        self._loops = 0
        try:
            environment = _environment(now or datetime.now(), self._take)
            self._compiled: Template = environment.from_string(source)
        except (TemplateError, RecursionError, ValueError) as error:
            raise TuneError(
                "The chat template of this model is damaged: it is not a valid Jinja template.",
                "Download the model again or choose another one.",
                details=repr(error),
            ) from error

    def _take(self, count: int) -> None:
        self._loops += count
        if self._loops > MOST_LOOPS:
            raise OverflowError("the template loops too often")

    def render(self, turns: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """The text of a conversation; `TuneError` with the template's own words when it refuses it."""
        self._loops = 0
        try:
            return self._print([dict(turn) for turn in turns], add_generation_prompt)
        except Exception as error:
            said = one_line(str(error), 200).rstrip(".") or type(error).__name__
            raise TuneError(
                f"The chat template of this model refuses this conversation: {said}.",
                "Change the roles or the order of its messages, or choose another model.",
                details=repr(error),
            ) from error

    def _print(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        pieces, length = [], 0
        for piece in self._compiled.generate(
            messages=turns,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        ):
            length += len(piece)
            if length > LONGEST_OUTPUT:
                raise OverflowError("the template prints without end")
            pieces.append(piece)
        return "".join(pieces)
