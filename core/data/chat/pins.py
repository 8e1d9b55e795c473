"""Fixes everything in a chat template that whoever renders it could choose: dates, options, special tokens.

Training renders with transformers' arguments, Ollama with llama.cpp's: there thinking is switched on, the
date is today's, and special tokens are those of the file. `set` in a template wins over an argument, so a
few lines in front make both render the same characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from ollama_tune.core.data.chat.templates import ABSENT, outer_names

if TYPE_CHECKING:
    from jinja2 import nodes

PINS_END = "{# Above: values as in the training. Below: the chat template as it was published. #}\n"
GIVEN = frozenset({"messages", "add_generation_prompt"})
"""What a conversation is made of; the rest is no business of whoever asks."""
OPTIONAL = frozenset({"tools", "documents"})
"""Transformers gives `none` where there are none, llama.cpp gives nothing."""
VARIANTS: tuple[dict[str, bool], ...] = (
    {},
    {"enable_thinking": False},
    {"enable_thinking": True},
    {"thinking": False},
    {"thinking": True},
)
"""The options by which templates are told whether the model is to think, the most usual first."""
_START = "{{%- set {} = "
_CLOCK = "strftime_now"
_CLOCK_STARTS = f"{{%- macro {_CLOCK}(form) -%}}"

MERGE = (
    "{%- set merging = namespace(systems=[], rest=[]) %}"
    "{%- for message in messages %}"
    "{%- if message.role != 'system' %}{%- set merging.rest = merging.rest + [message] %}"
    "{%- elif message.content %}{%- set merging.systems = merging.systems + [message.content] %}"
    "{%- endif %}{%- endfor %}"
    "{%- set messages = merging.rest %}"
    "{%- if merging.systems %}"
    "{%- if messages and messages[0].role == 'user' %}"
    "{%- set merging.systems = merging.systems + [messages[0].content] %}"
    "{%- set messages = messages[1:] %}"
    "{%- endif %}"
    r"{%- set messages = [{'role': 'user', 'content': merging.systems | join('\n\n')}] + messages %}"
    "{%- endif %}\n"
)
"""Puts system texts before the first question. A loop and no filter: llama.cpp watches whether a template
reads a system text, and rewrites the conversation in its own way where it believes that it does not."""


def pin(
    source: str,
    special: Mapping[str, str],
    now: datetime,
    *,
    merge_system: bool = False,
    options: Mapping[str, bool] | None = None,
) -> str:
    """The template with every outer value fixed to what transformers gives it with `options` as arguments.

    `special` are the named special tokens, `now` the date for `strftime_now`. The rendering is byte for
    byte that of `source`; pinning twice changes nothing. Raises `TuneError` for a damaged template.
    """
    source = re.sub(r"\r\n|\r", "\n", source)
    tree, names = outer_names(source)
    lines = [MERGE] if merge_system else []
    given = options or {}
    lines += [_line(name, special, given) for name in sorted(names - GIVEN - {ABSENT, _CLOCK})]
    lines += [_clock(tree, now)] if _CLOCK in names else []
    before, end, _ = source.partition(PINS_END)
    missing = [line for line in lines if not end or line not in before]
    if not missing:
        return source
    return "".join(missing) + ("" if end else PINS_END) + source


def published(source: str) -> str:
    """The template without its pins: what the model itself prints and looks for."""
    return source.partition(PINS_END)[2] or source


def pinned(template: str, name: str) -> bool:
    """True when a pinned template would listen to an option of that name, were it not pinned."""
    head, end, _ = template.partition(PINS_END)
    return bool(end) and _START.format(name) in head


def options_of(template: str) -> dict[str, bool]:
    """The options that a pinned template has set."""
    head, end, _ = template.partition(PINS_END)
    settings = ((name, value) for variant in VARIANTS for name, value in variant.items())
    return {name: value for name, value in settings if end and _line(name, {}, {name: value}) in head}


def prints_date(template: str) -> bool:
    """True when a pinned template asks for the date in some form."""
    return f"{_CLOCK_STARTS}{{%- if" in template


def _line(name: str, special: Mapping[str, str], options: Mapping[str, bool]) -> str:
    if name in OPTIONAL:
        return f"{{%- if {name} is not defined %}}{{%- set {name} = none %}}{{%- endif %}}\n"
    value = literal(special[name]) if name in special else ABSENT
    if name in options:
        value = str(options[name]).lower()
    return f"{_START.format(name)}{value} %}}\n"


def _clock(tree: nodes.Template, now: datetime) -> str:
    """`strftime_now` as a macro that knows the date in the forms in which the template asks for it."""
    asked = "".join(
        f"{{%- if form == {literal(form)} -%}}{{{{- {literal(now.strftime(form))} -}}}}{{%- endif -%}}"
        for form in sorted(_date_forms(tree))
    )
    return f"{_CLOCK_STARTS}{asked}{{%- endmacro %}}\n"


def _date_forms(tree: nodes.Template) -> Iterable[str]:
    from jinja2 import nodes

    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == _CLOCK:
            for argument in call.args:
                if isinstance(argument, nodes.Const) and isinstance(argument.value, str):
                    yield argument.value


def literal(text: str) -> str:
    """A text as a Jinja string; the escapes are those that both engines read alike."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
