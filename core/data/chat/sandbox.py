"""The Jinja environment in which chat templates run: what transformers offers, with every cost counted.

A template must neither reach Python's insides, which is the matter of Jinja's own sandbox, nor take time and
memory without bound, which is that of a `Budget`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.chat.budget import (
    FILTER_SIZES,
    METHOD_SIZES,
    Budget,
    binop_size,
    formatted,
    joined,
    listed,
)

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

BLANKS = " \t\n\r\v\f"
"""What `trim` and `strip` take away: as in llama.cpp, which the tuned model will be asked through. (Python
takes away the blanks of all scripts, such as the no-break space; transformers has no say in Ollama.)"""
DEEPEST = 120
"""Nodes on the longest way through a template's syntax tree; published templates have up to 29."""
_REMOVED_FILTERS = ("random", "urlize", "xmlattr", "wordwrap", "pprint")
_REMOVED_ATTRIBUTES = frozenset({"encode", "translate", "maketrans", "to_bytes"})
"""Nothing that a conversation needs; they choose by chance, or make things that are not counted."""


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


def environment(budget: Budget) -> ImmutableSandboxedEnvironment:
    """A new environment that charges to `budget`; each template needs one of its own."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import safe_range

    def counted_range(*arguments: int) -> range:
        values = safe_range(*arguments)
        budget.loop(len(values))
        return values

    made = _sandbox(budget)(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_generation(), loopcontrols],
        finalize=budget.weighed,
    )
    made.filters.update(tojson=_tojson, trim=_trim)
    made.filters = {
        name: _charged(budget, filter_, FILTER_SIZES.get(name))
        for name, filter_ in made.filters.items()
        if name not in _REMOVED_FILTERS
    }
    made.filters |= {
        _EACH: budget.each,
        _WEIGHED: budget.weighed,
        _MADE: budget.made,
        _TOGETHER: lambda texts: "".join(str(budget.weighed(text)) for text in texts),
    }
    made.tests = {name: _charged(budget, test, None) for name, test in made.tests.items()}
    made.globals.pop("lipsum")
    made.globals.update(raise_exception=_fail, dict=_PlainDict(), range=counted_range)
    return made


def _charged(budget: Budget, function: Any, size: Callable[..., int] | None) -> Callable[..., Any]:
    """A filter or test that is charged; what it may make is told from its arguments before it runs."""
    passed = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def charged(*arguments: Any, **named: Any) -> Any:
        arguments = listed(arguments) if size is joined else arguments
        values = arguments[1:] if passed else arguments
        budget.step()
        if values and values[0].__class__ is not str:
            budget.weighed(values[0])
        if size is not None:
            budget.make(size(*values, **named))
        return budget.made(function(*arguments, **named))

    return charged


_EACH, _WEIGHED, _MADE, _TOGETHER = "each!", "weighed!", "made!", "together!"
"""Filters that no template can name; `_Counted` puts them in."""


def _generation() -> type:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        """`{% generation %}` marks answers for other tools; its text is printed as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_print"), [], [], body).set_lineno(line)

        def _print(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def _depth(tree: nodes.Node) -> int:
    """How deep the tree of a template is; compiling takes time by more than its depth."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for node in level for child in node.iter_child_nodes()]
    return depth


def _sandbox(budget: Budget) -> type[ImmutableSandboxedEnvironment]:
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "+", "%"})

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            if _depth(tree) > DEEPEST:
                raise TemplateSyntaxError("it is nested too deeply", 1, name, filename)
            return _counting()(self).visit(tree)  # type: ignore[no-any-return]

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, str) and attribute in ("strip", "lstrip", "rstrip"):
                return _strip_method(obj, attribute)
            return super().getattr(obj, attribute)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in _REMOVED_ATTRIBUTES and super().is_safe_attribute(obj, attr, value)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            budget.make(binop_size(operator, left, right))
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
            formats = super().wrap_str_format(value)
            if formats is None:
                return None

            def counted(*arguments: Any, **named: Any) -> str:
                budget.make(formatted(value.__self__, *arguments, **named))
                return formats(*arguments, **named)

            return counted

        def call(self, context: Any, obj: Any, *arguments: Any, **named: Any) -> Any:
            text = getattr(obj, "__self__", None)
            size = METHOD_SIZES.get(obj.__name__) if isinstance(text, str) else None
            if size is not None:
                arguments = listed(arguments) if obj.__name__ == "join" else arguments
                budget.make(size(text, *arguments))
            result = super().call(context, obj, *arguments, **named)
            budget.step()
            return budget.weighed(result) if isinstance(result, dict) else budget.made(result)

    return Sandbox


@functools.lru_cache(maxsize=1)
def _counting() -> Any:
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    class Counting(NodeTransformer):
        """Puts the counting filters into a template: around what loops, is put together or taken in part."""

        def __init__(self, environment: Any) -> None:
            self._environment = environment

        def _filtered(self, node: nodes.Node, name: str) -> nodes.Filter:
            made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
            made.set_environment(self._environment)
            return made

        def visit_For(self, node: nodes.For) -> nodes.Node:
            self.generic_visit(node)
            node.iter = self._filtered(node.iter, _EACH)
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
            self.generic_visit(node)
            return self._filtered(nodes.List(node.nodes, lineno=node.lineno), _TOGETHER)

        def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
            self.generic_visit(node)
            return self._filtered(node, _MADE) if isinstance(node.arg, nodes.Slice) else node

        def _visit_display(self, node: Any) -> nodes.Node:
            self.generic_visit(node)
            plain = all(isinstance(item, nodes.Const) for item in node.iter_child_nodes())
            return node if plain or getattr(node, "ctx", "load") != "load" else self._filtered(node, _WEIGHED)

        visit_List = visit_Tuple = visit_Dict = _visit_display

    return Counting
