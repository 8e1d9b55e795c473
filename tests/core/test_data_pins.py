from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.chat.mask import make_example
from ollama_tune.core.data.chat.pins import MERGE, PINS_END, literal, pin, pinned, prints_date, published
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.chat.templates import ChatTemplate
from ollama_tune.core.data.values import Message, Row
from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.chat import run_chat, store_chat
from ollama_tune.core.runs.folder import RunFolder
from tests.core.data_templates import FAMILIES, OPTIONED, build_folder

DAY = datetime(2001, 2, 3)
USER, ANSWER, SYSTEM = Message("user", "q"), Message("assistant", "a"), Message("system", "s")
TALKS = [[USER], [USER, ANSWER, USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER]]


def as_transformers(template: str, messages: list[Message], prompt: bool, **special: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [asdict(message) for message in messages]
    rendered = render_jinja_template([turns], chat_template=template, add_generation_prompt=prompt, **special)
    return str(rendered[0][0])


def with_arguments(template: str, messages: list[Message], **arguments: Any) -> str:
    """What jinja2 makes of it when someone sets the template's options."""
    return ChatTemplate(template, arguments).render([asdict(message) for message in messages], True)


@pytest.mark.parametrize("family", [*FAMILIES, *OPTIONED])
def test_a_pinned_template_renders_as_transformers_renders_the_published_one(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.utils.chat_template_utils as theirs

    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return DAY

    monkeypatch.setattr(theirs, "datetime", Day)
    template, bos, eos = (FAMILIES | OPTIONED)[family]
    theirs._compile_jinja_template.cache_clear()
    chat = ChatFormat.from_folder(build_folder(tmp_path, family), DAY)
    for messages in TALKS[: 2 if chat.merges_system else 4]:
        for prompt in (False, True):
            expected = as_transformers(template, messages, prompt, bos_token=bos, eos_token=eos)
            assert chat.render(messages, prompt) == expected
    assert chat.original == template


@pytest.mark.parametrize("family", [*FAMILIES, *OPTIONED])
def test_no_argument_changes_what_a_pinned_template_renders(tmp_path: Path, family: str) -> None:
    chat = ChatFormat.from_folder(build_folder(tmp_path, family), DAY)
    for arguments in (
        {"enable_thinking": True, "date_string": "today", "datetime": "now"},
        {"enable_thinking": False, "bos_token": "<other>", "eos_token": "<other>", "strftime_now": str},
    ):
        assert with_arguments(chat.template, [USER, ANSWER, USER], **arguments) == chat.render(
            [USER, ANSWER, USER], True
        )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ x is defined }}{{ x is none }}[{{ x }}]{{ x | default('d') }}{{ not x }}", "FalseFalse[]dTrue"),
        ("{% macro m() %}{{ x is defined }}{{ eos_token }}{% endmacro %}{{ m() }}", "False</s>"),
        ("{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}", "1"),
        ("{{ tools is defined }}{{ tools is none }}{{ documents is none }}", "TrueTrueTrue"),
        ("{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"it's %y\") | length }}", "03 Feb 2001 7"),
        ("{% for x in [1] %}{{ x }}{% endfor %}{{ x is defined }}", "1False"),
        ("\n  {% if true %}\na{% endif %}\n", "\na\n"),
        ("{{- 'a' }}\r\nb\rc", "a\nb\nc"),
    ],
)
def test_a_fixed_variable_behaves_as_the_absent_one_did(template: str, expected: str) -> None:
    special = {"eos_token": "</s>"}
    fixed = pin(template, special, DAY)
    assert with_arguments(fixed, [USER], x="given", eos_token="<other>") == expected.removesuffix("\n")
    assert pin(fixed, special, datetime(2030, 1, 1)) == fixed
    assert published(fixed) == template.replace("\r\n", "\n").replace("\r", "\n")


def test_texts_become_literals_that_mean_the_same() -> None:
    for text in (
        "plain",
        "it's",
        "back\\slash \\n",
        "two\nlines\r\n",
        "<｜end▁of▁sentence｜>",
        '"{{ x }}"',
        "\t",
    ):
        assert ChatTemplate(f"{{{{ {literal(text)} }}}}", {}).render([], False) == text


def test_a_template_without_options_stays_as_it_is(tmp_path: Path) -> None:
    template = FAMILIES["chatml"][0]
    assert pin(template, {"bos_token": "<s>"}, DAY) == template
    assert published(template) == template
    assert (pinned(template, "enable_thinking"), prints_date(template)) == (False, False)
    dated = ChatFormat.from_folder(build_folder(tmp_path, "dated"), DAY).template
    assert (pinned(dated, "date_string"), prints_date(dated)) == (True, True)


def test_a_date_in_a_form_that_is_only_known_while_rendering_prints_nothing_of_the_clock() -> None:
    fixed = pin("{% set form = '%Y' %}[{{ strftime_now(form) }}]", {}, DAY)
    assert with_arguments(fixed, [USER]) == "[]"


def test_system_texts_are_put_before_the_first_question_by_the_template_itself(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(build_folder(tmp_path, "gemma"), DAY)
    late, empty = Message("system", "late"), Message("system", "")
    assert MERGE in chat.template
    assert chat.render([SYSTEM, USER, ANSWER, late, USER]) == chat.render(
        [Message("user", "s\n\nlate\n\nq"), ANSWER, USER]
    )
    assert chat.render([empty, USER]) == chat.render([USER])
    assert chat.render([SYSTEM]) == chat.render([Message("user", "s")])


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_a_row_with_a_system_text_is_trained_as_the_row_with_both_texts_in_one(
    tmp_path: Path, family: str
) -> None:
    chat = ChatFormat.from_folder(build_folder(tmp_path, family), DAY)
    for system, question, answer in (
        ("s", "q", "a"),
        (" s\n", "\n q ", " a\n"),
        ("<s>", "[INST]", "</think> a"),
    ):
        rest = (Message("assistant", answer), USER, Message("assistant", f"{answer}b"))
        apart = (Message("system", system), Message("user", question), *rest)
        merged = (Message("user", f"{system}\n\n{question}"), *rest)
        assert make_example(chat, Row(apart, 3)) == make_example(chat, Row(merged, 3))


def test_only_the_models_own_template_names_tokens_that_end_an_answer(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "next_role_ends")
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<|endoftext|>", "eos_token": "</s>", "chat_template": "{{ bos_token ~ messages }}"}'
    )
    chat = ChatFormat.from_folder(folder)
    assert "<|endoftext|>" in chat.template
    assert chat.stop_texts == ("</s>",)


def test_a_template_that_shows_no_plain_text_is_refused(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    template = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(TuneError, match="does not show a plain question"):
        ChatFormat.from_folder(folder)


def test_a_template_that_adds_a_token_without_a_name_says_what_is_missing(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text("{{ sep_token + messages[0].content }}")
    with pytest.raises(TuneError, match="it needs a token that the model's files do not name"):
        ChatFormat.from_folder(folder)


def test_a_run_keeps_its_template_whatever_the_base_folder_says_later(tmp_path: Path) -> None:
    base = build_folder(tmp_path / "base", "dated")
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    Settings().save(folder.settings_path)
    before = run_chat(folder, base).template
    stored = store_chat(folder, base)
    assert folder.chat_template_path.read_text() == stored.template == before
    assert PINS_END in before
    folder.chat_template_path.write_text(before.replace(datetime.now().strftime("%d %b %Y"), "1 Jan 1999"))
    (base / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (base / "chat_template.jinja").write_text("{{ messages }}")
    later = store_chat(folder, base)
    assert later.original == stored.original
    assert "Today Date: 1 Jan 1999" in later.render([USER])
    assert later.template == folder.chat_template_path.read_text()
