"""Templates that would run for ever, fill the memory, or get at Python: each is stopped with a sentence."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ollama_tune.core.data.chat import budget
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.chat.templates import LONGEST_SOURCE, ChatTemplate
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from tests.core.data_templates import build_folder, chat_format

GROWING = "{%% set n = namespace(s=%s) %%}{%% for i in range(99) %%}%s{%% endfor %%}%s"
MANY = "{%% set n = namespace(s=%s) %%}{%% for i in range(9999) %%}%s{%% endfor %%}"
BIG = "{% set s = 'ab' * 400000 %}"
STOPPED = {
    "loops in loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "loops over a list": "{% set l = 'x' * 9999 %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "a large range": "{{ range(10**9) | list }}",
    "many ranges": "{% for a in range(99999) %}{% for b in range(99) %}{% endfor %}{% endfor %}",
    "macros that call twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "macros without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loops": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a text times a number": "{{ 'a' * 10**9 }}",
    "a list times a number": "{{ ([1] * 10**9) | length }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "plus": GROWING % ("'a'", "{% set n.s = n.s + n.s %}", ""),
    "plus of lists": GROWING % ("[1]", "{% set n.s = n.s + n.s %}", ""),
    "tilde": GROWING % ("'a'", "{% set n.s = n.s ~ n.s %}", ""),
    "join": GROWING % ("'a'", "{% set n.s = [n.s, n.s] | join %}", ""),
    "join as a method": GROWING % ("'a'", "{% set n.s = n.s.join([n.s, n.s]) %}", ""),
    "join of a stream": BIG + "{{ s | list | map('upper') | join(s) }}",
    "blocks": GROWING % ("'a'", "{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}", ""),
    "lists in lists": GROWING % ("[1]", "{% set n.s = [n.s, n.s] %}", "{{ n.s | tojson }}"),
    "objects in objects": GROWING % ("[1]", "{% set n.s = {'a': n.s, 'b': n.s} %}", "{{ n.s }}"),
    "made objects": GROWING % ("[1]", "{% set n.s = dict(a=n.s, b=n.s) %}", "{{ n.s }}"),
    "namespaces": GROWING % ("1", "{% set n.s = namespace(a=n.s, b=n.s) %}", "{{ n.s }}"),
    "kept parts": BIG + MANY % ("[]", "{% set n.s = n.s + [s[1:]] %}"),
    "kept capitals": BIG + MANY % ("[]", "{% set n.s = n.s + [s.upper()] %}"),
    "replace": BIG + "{{ s.replace('', s) }}",
    "replace as a filter": BIG + "{{ s | replace('a', s) }}",
    "replace mapped": BIG + "{{ s | list | map('replace', 'a', s) | join }}",
    "center": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "tabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ ('\n' * 900000) | indent(10**6) }}",
    "indented JSON": "{{ [1] | tojson(indent=10**9) }}",
    "a wide format": "{{ '{:>1000000000}'.format(1) }}",
    "a nested format": "{{ '{:>{}}'.format(1, 10**9) }}",
    "a wide percent": "{{ '%1000000000d' % 1 }}",
    "a starred percent": "{{ '%*d' % (10**9, 1) }}",
    "a format filter": "{{ '%1000000000d' | format(1) }}",
    "batches": "{{ [1] | batch(10**9, 'x') | list }}",
    "slices": "{{ [1] | slice(10**9) | list }}",
    "prints": "{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}",
}  # fmt: skip
LIMITS = (
    "loops too often|takes too long|repeats a text too often|prints without end|recursion depth|Range too"
)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little patience, and a gigabyte more of address space than is used already."""
    monkeypatch.setattr(budget, "PATIENCE", 0.1)
    monkeypatch.setattr(budget, "MOST_TEXT", 2**24)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def rendered(template: str) -> str:
    """What a template prints for one question."""
    return ChatTemplate(template, {}).render([{"role": "user", "content": "q"}], False)


@pytest.mark.parametrize("attack", STOPPED)
def test_a_template_that_would_not_end_or_not_fit_is_stopped(attack: str) -> None:
    with pytest.raises(TuneError, match=LIMITS):
        rendered(STOPPED[attack])


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{% for a in [1] %}" * 130 + "{% endfor %}" * 130,
        "{% if true %}" * 3000 + "{% endif %}" * 3000,
        " " * (LONGEST_SOURCE + 1),
        "{{ 'a' | urlize }}",
        "{{ messages | random }}",
    ],
    ids=["brackets", "lists", "loops", "ifs", "length", "urlize", "random"],
)
def test_a_template_that_cannot_be_read_is_called_damaged(source: str) -> None:
    with pytest.raises(TuneError, match="damaged"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ joiner.__init__.__globals__.os.system('id') }}",
        "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
        "{{ (1).to_bytes(10**9, 'big') }}",
        "{{ 'a'.encode() }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ lipsum(10**6) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_that_reaches_out_is_refused(escape: str) -> None:
    with pytest.raises(TuneError, match=r"unsafe|undefined|loader"):
        rendered(escape)


@pytest.mark.parametrize(
    "quiet",
    [
        "{{ '' | attr('__class__') }}",
        "{{ ''['__class__'] }}",
        "{{ raise_exception.__globals__ }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ range.__closure__ }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n.__class__ }}",
    ],
)
def test_what_must_not_be_seen_is_undefined(quiet: str) -> None:
    assert rendered(quiet) == ""


def test_usual_ways_of_templates_are_not_taken_for_attacks() -> None:
    for template, text in (
        ("{{ '**%s** %d' % ('x', 5) }}", "**x** 5"),
        ("{{ '{{\"a\": {}}}'.format(1) }}", '{"a": 1}'),
        ("{% for m in messages %}{{ ', '.join(['a', 'b'] | map('upper')) }}{% endfor %}", "A, B"),
        ("{{ [1, [2]] | tojson(indent=2) | length }}", "22"),
        ("{% for a in [3, 4] %}{{ loop.index ~ loop.length ~ loop.last }} {% endfor %}", "12False 22True "),
        ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k ~ v }}{% else %}none{% endfor %}", "a1b2"),
        ("{% for x in nothing %}{{ x }}{% else %}none{% endfor %}", "none"),
        ("{{ ([1, 2] + [3])[1:] }}{{ 'abc'[::-1] }}{{ (1, 2) }}", "[2, 3]cba(1, 2)"),
        ("{{ 'a' ~ 1 ~ none ~ [1] }}{{ 7 % 4 }}{{ 'ab' | replace('a', 'c') }}", "a1None[1]3cb"),
        ("{% for a in [[1, [2]]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "12"),
    ):  # fmt: skip
        assert rendered(template) == text


def test_each_template_that_took_too_long_gets_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(STOPPED["macros that call twice"], {})
    left = []
    for _ in range(4):
        with pytest.raises(TuneError, match="too long"):
            template.render([], False)
        left.append(template._budget._patience)
    assert left == [0.05, 0.05, 0.05, 0.05]


def test_long_conversations_have_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MOST_TEXT", 1000)
    template = ChatTemplate("{% for m in messages %}{{ 'x' * 9 + m.content }}{% endfor %}", {})
    turns = [{"role": "user", "content": "word " * 1000}] * 3
    assert len(template.render(turns, False)) == 15_027
    with pytest.raises(TuneError, match="prints without end"):
        template.render([{"role": "user", "content": ""}] * 300, False)


def test_a_folder_with_such_a_template_is_refused_by_name(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text(STOPPED["loops over a list"])
    with pytest.raises(TuneError, match=r"chat template of this model refuses .* too often"):
        ChatFormat.from_folder(folder)


def test_arguments_and_tools_that_are_no_json_are_told(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "tooled")
    with pytest.raises(TuneError, match="tools of a row"):
        chat.render([Message("user", "q")], tools="[" * 10)
    with pytest.raises(TuneError, match="tools of a row"):
        chat.render([Message("user", "q")], tools="[" * 100_000)
