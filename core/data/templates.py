"""Runs a model's chat template in a sandbox, with the options and helpers that transformers gives it.

A template is a program from the internet: it sees only plain texts, cannot change what it is given,
and is stopped when it loops or prints without end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_OUTPUT = 2**26
"""Characters one rendering may have."""
MOST_LOOPS = 1_000_000
"""Values that `range` may give out in one rendering."""
LONGEST_PRODUCT = 1_000_000
"""Length of a text or list made by repeating, and the bits of a number."""
BLANKS = " \t\n\r\v\f"
"""What `trim` and `strip` take away: as in llama.cpp, which the tuned model will be asked through. (Python
takes away the blanks of all scripts, such as the no-break space; transformers has no say in Ollama.)"""


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


def _trim(value: Any, chars: str | None = None) -> str:
    return str(value).strip(chars or BLANKS)


def _strip_method(text: str, name: str) -> Callable[..., str]:
    def strip(chars: str | None = None) -> str:
        stripped: str = getattr(text, name)(chars or BLANKS)
        return stripped

    return strip


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


def _environment(take: Callable[[int], None]) -> ImmutableSandboxedEnvironment:
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

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, str) and attribute in ("strip", "lstrip", "rstrip"):
                return _strip_method(obj, attribute)
            return super().getattr(obj, attribute)

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
    environment.filters["trim"] = _trim
    environment.globals["raise_exception"] = _fail
    environment.globals["dict"] = _PlainDict()
    environment.globals["range"] = counted_range
    return environment


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, RecursionError, ValueError) as error:
        raise TuneError(
            "The chat template of this model is damaged: it is not a valid Jinja template.",
            "Download the model again or choose another one.",
            details=repr(error),
        ) from error


def outer_names(source: str) -> tuple[nodes.Template, set[str]]:
    """The syntax tree of a template, and the names it leaves to whoever renders it to define.

    `strftime_now` is one of them; the helpers that every engine has are not. Raises `TuneError` when
    the template is not valid Jinja.
    """
    from jinja2 import meta

    with _damage_told():
        environment = _environment(lambda _count: None)
        tree = environment.parse(source)
        return tree, meta.find_undeclared_variables(tree) - environment.globals.keys()


class ChatTemplate:
    """A compiled chat template with the model's special tokens; what else it uses is `pins.pin`'s matter.

    Raises `TuneError` when the template is not valid Jinja.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(variables)
        self._loops = 0
        with _damage_told():
            self._compiled: Template = _environment(self._take).from_string(source)

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
