"""Compiles and renders a model's chat template, with the options and helpers that transformers gives it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.chat.budget import Budget
from ollama_tune.core.data.chat.sandbox import BLANKS, environment
from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from jinja2 import Template, nodes

__all__ = ["BLANKS", "ChatTemplate", "outer_names"]

ABSENT = "not_given"
"""A name that nobody sets: a variable set to it is undefined, for both engines and all tests."""
LONGEST_SOURCE = 1_000_000
"""Characters of a template; the longest published ones have 30,000."""


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
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
        made = environment(Budget())
        tree = made.parse(_readable(source))
        return tree, meta.find_undeclared_variables(tree) - made.globals.keys()


def _readable(source: str) -> str:
    if len(source) > LONGEST_SOURCE:
        raise ValueError("it is longer than any real one")
    return source


class ChatTemplate:
    """A compiled chat template with the model's special tokens; what else it uses is `pins.pin`'s matter.

    Raises `TuneError` when the template is not valid Jinja.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(variables)
        self._budget = Budget()
        with _damage_told():
            self._compiled: Template = environment(self._budget).from_string(_readable(source))

    def render(
        self,
        turns: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
    ) -> str:
        """The text of a conversation; `TuneError` with the template's own words when it refuses it."""
        try:
            return self._print([dict(turn) for turn in turns], add_generation_prompt, tools)
        except Exception as error:
            said = one_line(str(error), 200).rstrip(".") or type(error).__name__
            said = said.replace(
                f"'{ABSENT}' is undefined", "it needs a token that the model's files do not name"
            )
            raise TuneError(
                f"The chat template of this model refuses this conversation: {said}.",
                "Change the roles or the order of its messages, or choose another model.",
                details=repr(error),
            ) from error

    def _print(
        self, turns: list[dict[str, Any]], add_generation_prompt: bool, tools: Sequence[Any] | None
    ) -> str:
        self._budget.begin(sum(len(str(turn.get("content"))) for turn in turns))
        return "".join(
            self._compiled.generate(
                messages=turns,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        )
