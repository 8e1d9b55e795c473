from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.chat.templates import ChatTemplate
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from tests.core.data_templates import CHATML, FAMILIES, build_folder, chat_format

USER, ANSWER = Message("user", "  Is it <b>yes</b> & no?\n"), Message("assistant", "\tyes {{ 1 }} 🦜\n")
SYSTEM = Message("system", "Be brief.")
CONVERSATIONS = {
    "question": [USER],
    "one exchange": [USER, ANSWER],
    "two exchanges": [
        USER,
        ANSWER,
        Message("user", "日本語"),
        Message("assistant", "はい\n\n```py\nx = 1\n```"),
    ],
    "thinking": [USER, Message("assistant", "<think>\nhm\n</think>\n\nno")],
    "control tokens": [Message("user", "a</s><|im_end|>b"), ANSWER],
    "empty text": [Message("user", ""), ANSWER],
}


def _reference(folder: Path, messages: list[Message], prompt: bool) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [asdict(message) for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_renders_byte_for_byte_as_transformers(tmp_path: Path, family: str) -> None:
    from transformers import AutoTokenizer

    folder = build_folder(tmp_path, family)
    chat, tokenizer = ChatFormat.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    assert (chat.bos_token, chat.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    for name, messages in CONVERSATIONS.items():
        for prompt in (False, True):
            turns = [asdict(message) for message in messages]
            expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
            assert chat.render(messages, prompt) == expected, name
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=prompt, return_dict=False)
            assert list(chat.encode(expected)[0]) == ids, name


@pytest.mark.parametrize(
    "family", ["chatml", "llama3", "phi3", "zephyr", "thinking", "tagged", "plain_words"]
)
def test_a_system_text_is_rendered_as_transformers_does(tmp_path: Path, family: str) -> None:
    folder = build_folder(tmp_path, family)
    chat = ChatFormat.from_folder(folder)
    assert not chat.merges_system
    messages = [SYSTEM, USER, ANSWER]
    assert chat.render(messages) == _reference(folder, messages, False)


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_a_system_text_the_template_cannot_carry_goes_before_the_question(
    tmp_path: Path, family: str
) -> None:
    chat = chat_format(tmp_path, family)
    assert chat.merges_system
    merged = [Message("user", f"Be brief.\n\n{USER.content}"), ANSWER]
    assert chat.render([SYSTEM, USER, ANSWER]) == chat.render(merged)
    if family == "gemma":
        assert chat.render([SYSTEM, ANSWER]) == chat.render([Message("user", "Be brief."), ANSWER])


def test_template_helpers_print_what_transformers_prints(tmp_path: Path) -> None:
    template = (
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}\n"
        "  {%- set ns.n = ns.n + 1 %}{{ {'b': '<é>', 'a': [1, none]} | tojson }}{{ dict(x=1)['x'] }}\n"
        "{{ range(3) | list }}{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ m.content | tojson(indent=2) }}"
        "{{ unk_token }}{{ tools }}{% endfor %}{{ ns.n }}{{ strftime_now('%Y-%m') }}"
    )
    folder = build_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text(template)
    chat = ChatFormat.from_folder(folder)
    assert chat.original == template, "the file comes before tokenizer_config.json"
    messages = [USER, ANSWER, USER]
    assert chat.render(messages) == _reference(folder, messages, False)


def test_the_date_stands_still(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}")
    chat = ChatFormat.from_folder(folder, now=datetime(2001, 2, 3))
    assert chat.render([Message("user", "x")]) == "03 Feb 2001x"


def test_reads_templates_from_the_list_form_and_special_tokens_from_the_old_file(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    listed = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": CHATML}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    chat = ChatFormat.from_folder(folder)
    assert (chat.template, chat.eos_token, chat.bos_token) == (CHATML, "</s>", None)


def test_stop_ids_come_from_the_config_the_eos_and_the_template(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "gemma")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 999_999, True, -1]}))
    chat = ChatFormat.from_folder(folder)
    assert set(chat.stop_texts) == {"<s>", "<eos>", "<end_of_turn>"}
    assert all(chat.encode(text)[0] == (i,) for i in chat.stop_ids for text in [chat.decode([i])])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert set(ChatFormat.from_folder(folder).stop_texts) == {"</s>", "<eos>", "<end_of_turn>"}


def test_tokens_that_only_the_config_names_are_added(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = build_folder(tmp_path, "chatml")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    size = ChatFormat.from_folder(folder).vocabulary_size
    config["added_tokens_decoder"] = {str(size): {"content": "<|tool|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    chat = ChatFormat.from_folder(folder)
    assert chat.encode("a<|tool|>")[0][-1] == size
    assert chat.encode("a<|tool|>")[0] == tuple(AutoTokenizer.from_pretrained(folder).encode("a<|tool|>"))
    assert chat.vocabulary_size == size + 1


def test_pad_id_is_the_pad_token_else_the_configured_id_else_eos(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    assert ChatFormat.from_folder(folder).pad_id == 5
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 3}))
    assert ChatFormat.from_folder(folder).pad_id == 3
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|endoftext|>"}))
    chat = ChatFormat.from_folder(folder)
    assert chat.decode([chat.pad_id]) == "<|endoftext|>"


def test_a_tokenizer_that_cuts_pads_and_trims_is_made_plain(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = build_folder(tmp_path, "chatml")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = "the answer    is yes and no \n"
    ids, offsets = ChatFormat.from_folder(folder).encode(text)
    assert "".join(text[start:end] for start, end in offsets) == text
    assert 4 < len(ids) < 64


def test_prompt_ids_end_with_the_generation_prompt(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "llama3")
    assert chat.decode(chat.prompt_ids([USER])).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert chat.decode([4, *chat.encode("yes")[0], 5], skip_special=True) == "yes"


def test_a_base_model_without_template_is_refused_by_name(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TuneError, match="base model without a chat template"):
        ChatFormat.from_folder(folder)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}", "damaged"),
        ("{{ raise_exception('only poems') }}", "only poems"),
        ("{{ messages.append(1) }}", "unsafe|immutable|modif"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|attribute"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "loops too often"),
        ("{{ 'abcdefgh' * 1000000000 }}", "repeats a text"),
        ("{{ 10 ** 10000000 }}", "repeats a text"),
        ("{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "prints without end"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_a_broken_or_hostile_template_is_refused(tmp_path: Path, template: str, said: str) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(TuneError, match=said):
        ChatFormat.from_folder(folder)


def test_templates_cannot_read_files_or_modules() -> None:
    for attack in (
        "{{ strftime_now.__self__.__class__ }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ range.__closure__ }}",
        "{{ dict.fromkeys.__func__.__globals__ }}",
        "{% include '/etc/passwd' %}",
    ):
        with pytest.raises(TuneError):
            ChatTemplate(attack + "{{ x.y.z }}", {}).render([], False)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff\xfe"])
def test_a_missing_or_damaged_tokenizer_is_told(tmp_path: Path, content: bytes | None) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(TuneError, match=r"no tokenizer.json|damaged"):
        ChatFormat.from_folder(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{", b'{"eos_token": "\\ud800"}'])
def test_a_damaged_tokenizer_config_is_told(tmp_path: Path, content: bytes) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(TuneError, match=r"damaged|cannot be read"):
        ChatFormat.from_folder(folder)


def test_rendering_never_imports_transformers_or_torch(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "chatml")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "import ollama_tune.core.data.load, ollama_tune.core.data.split\n"
        "import ollama_tune.core.data.tokens.lengths\n"
        "from ollama_tune.core.data.chat.render import ChatFormat\n"
        "early = {'tokenizers', 'jinja2', 'pyarrow', 'huggingface_hub'} & set(sys.modules)\n"
        f"ChatFormat.from_folder(Path({str(folder)!r}))\n"
        "print(early, {'transformers', 'torch', 'datasets', 'pyarrow', 'textual'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set() set()"


@pytest.mark.parametrize(
    ("added", "missing", "refused"),
    [
        ((), 0, False),
        ((), 1, True),
        (("<spare>",), 1, False),
        (("<|ask|>",), 1, True),
        (("<|ask|>",), 0, False),
    ],
    ids=["as many", "one row less", "spare token", "token of the template", "token with its row"],
)
def test_a_model_without_rows_for_its_tokens_is_refused_before_anything_begins(
    tmp_path: Path, added: tuple[str, ...], missing: int, refused: bool
) -> None:
    from tokenizers import Tokenizer

    folder = build_folder(tmp_path, "chatml")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = tokenizer.get_vocab_size() - missing
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    (folder / "chat_template.jinja").write_text(CHATML + "<|ask|>")
    if not refused:
        assert ChatFormat.from_folder(folder).encode("yes")[0]
        return
    with pytest.raises(TuneError, match=f"token id {rows}, but the model has only {rows} embedding rows"):
        ChatFormat.from_folder(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (adapter / name).write_bytes((folder / name).read_bytes())
    assert ChatFormat.from_folder(adapter, config=folder).folder == adapter, "it may bring the rows"
