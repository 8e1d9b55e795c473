from __future__ import annotations

import random
from pathlib import Path

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.export.gotemplate import GoTemplate, collate, go_template, run
from tests.core.data_templates import FAMILIES, OPTIONED, build_folder, chat_format

EXPRESSIBLE = [family for family in FAMILIES | OPTIONED if family not in ("thinking", "forgetful")]
TEXTS = [
    "a", "two words", " blank before", "after \n\n", "\t\r\n both \x0b\x0c ", "", "   ", "line\nbreak",
    "system", "start", "{{ .Content }}", "}}{{", "<|im_end|>", "日本 🦜", "\u00a0hard\u3000", "é",
    '"quoted" \\ `back`',
]  # fmt: skip


def without_bos(chat: ChatFormat, messages: list[Message]) -> str:
    return chat.render(messages, add_generation_prompt=True).removeprefix(chat.bos_token or "")


def go_of(folder: Path, family: str) -> tuple[ChatFormat, GoTemplate]:
    chat = chat_format(folder, family)
    found = go_template(chat)
    assert isinstance(found, GoTemplate), found
    return chat, found


def test_a_template_is_a_pass_over_the_messages_with_the_words_between_them(tmp_path: Path) -> None:
    _, found = go_of(tmp_path, "next_role_ends")
    assert found == GoTemplate(
        '{{ $before := "start" }}{{ range .Messages }}'
        '{{ if eq .Role "system" }}<|system|>\n{{ .Content }}{{ $before = "system" }}'
        '{{ else if eq .Role "user" }}<|user|>\n{{ .Content }}{{ $before = "user" }}'
        '{{ else if eq .Role "assistant" }}<|assistant|>\n{{ .Content }}{{ $before = "assistant" }}'
        "{{ end }}{{ end }}<|assistant|>\n"
    )


@pytest.mark.parametrize("family", EXPRESSIBLE)
def test_it_prints_what_the_training_saw_without_its_bos(tmp_path: Path, family: str) -> None:
    chat, found = go_of(tmp_path, family)
    random.seed(5)
    for _ in range(150):
        texts = random.choices(TEXTS, k=random.choice([1, 3, 5]))
        messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
        system = random.choice([None, *TEXTS])
        if system is not None:
            if chat.merges_system and not (system.strip() and texts[0].strip()):
                continue  # a text of blanks only is cut off together with the blanks of its neighbour
            messages.insert(0, Message("system", system))
        assert run(found.text, messages) == without_bos(chat, messages), messages


@pytest.mark.parametrize("family", ["thinking", "forgetful"])
def test_a_template_that_rewrites_texts_is_refused_by_what_it_does(tmp_path: Path, family: str) -> None:
    found = go_template(chat_format(tmp_path, family))
    assert found == "It takes the thoughts out of earlier answers, for which a Go template has no words."


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", "more than their roles"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "leaves out, repeats or moves"),
        (
            "{% for m in messages %}{{ m.role + (m.content | replace('q', '')) }}{% endfor %}",
            "changes the texts",
        ),
        ("{% for m in messages %}{{ m.role + m.content.strip(' ') }}{% endfor %}", "changes the blanks"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "leaves out, repeats or moves",
        ),
    ],
)
def test_what_is_no_row_of_words_around_texts_is_refused(tmp_path: Path, template: str, said: str) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text(template)
    found = go_template(ChatFormat.from_folder(folder))
    assert isinstance(found, str)
    assert said in found


def test_words_that_look_like_actions_are_printed_as_they_are(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    template = "{% for m in messages %}{{ '{{ end }}' + m.role + '{{{' + m.content + '}}' }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    found = go_template(ChatFormat.from_folder(folder))
    assert isinstance(found, GoTemplate)
    assert run(found.text, [Message("user", "q")]) == "{{ end }}user{{{q}}"


def test_a_bos_inside_the_conversation_stays_and_only_the_first_goes(tmp_path: Path) -> None:
    _, found = go_of(tmp_path, "llama2")
    talk = [Message("user", "q"), Message("assistant", "a"), Message("user", "r")]
    assert run(found.text, talk) == "[INST] q [/INST] a </s><s>[INST] r [/INST]"


def test_where_a_late_system_text_stands_elsewhere_is_said(tmp_path: Path) -> None:
    assert go_of(tmp_path, "chatml")[1].limits == ()
    _, found = go_of(tmp_path, "gemma")
    assert "a later system text may be put elsewhere" in found.limits[0]


def test_neighbours_of_one_role_are_one_message_as_in_ollama() -> None:
    talk = [Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d")]
    assert collate(talk) == [Message("user", "a\n\nb"), *talk[2:]]


@pytest.mark.parametrize(
    "text",
    [
        "{{ .Messages }}",
        "{{ range .Messages }}",
        "{{ end }}",
        "{{- range .Messages }}{{ end }}",
        "{{ if .System }}{{ end }}",
        '{{ if eq .Role "user" }}{{ .Other }}{{ end }}',
        '{{ if eq $other "user" }}{{ end }}',
        '{{ $before = "user" }} {{',
    ],
)
def test_a_form_that_is_not_ours_is_an_error_and_not_a_guess(text: str) -> None:
    with pytest.raises(ValueError, match=r"another form|without an end|too many"):
        run(text, [Message("user", "q")])
