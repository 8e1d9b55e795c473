from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import tokenprobe
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.header import read_header
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.prompts import has_marks, prompts_of
from ollama_tune.core.export.tokenizer import tokenizer_fields
from ollama_tune.core.export.tokenprobe import Probed, probe_tokenizer
from ollama_tune.core.export.values import ExportStopped
from tests.core.export_parts import build_llama
from tests.core.tokenizer_parts import (
    FORMS,
    REGEXES,
    added,
    byte_level,
    change_json,
    sentencepiece,
    split_by,
)
from tests.tiny import CHAT_TEMPLATE

PREFIX, BOS, PRE = (f"tokenizer.ggml.{key}" for key in ("add_space_prefix", "add_bos_token", "pre"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The settings that were tried, in their order."""
    tried: list[Any] = []
    ask = tokenprobe._Probe.ask

    def counted(probe: Any, variant: Any) -> Any:
        tried.append(variant)
        return ask(probe, variant)

    monkeypatch.setattr(tokenprobe._Probe, "ask", counted)
    yield tried


def build(folder: Path, name: str, **changes: Any) -> tuple[ChatFormat, int]:
    size = sentencepiece(folder, name, **changes) if name in FORMS else byte_level(folder, name, **changes)
    return ChatFormat.from_folder(folder), size


def probe(folder: Path, name: str, *, called: str = "mine", **changes: Any) -> Probed:
    chat, size = build(folder, name, **changes)
    return probe_tokenizer(chat, size + 3, called)


@pytest.mark.parametrize("name", [*FORMS, "gpt-2", "refact", "dbrx", "deepseek-coder", *REGEXES])
def test_the_first_guess_reads_every_text_in_a_chat_as_the_training_did(
    tmp_path: Path, loads: list[Any], name: str
) -> None:
    found = probe(tmp_path, name)
    assert len(loads) == 1
    assert found.fields[PRE] == ("default" if name in FORMS else name)
    assert found.name == ("phi-3-mine" if name == "phi-3" else "mine")
    data = found.check.data
    assert (data["prompts"] > 60, data["endless"]) == (True, [])
    # llama.cpp's own versions of these three rules: marks are no letters, odd blanks are no blanks.
    unequal = {"tekken": (4, 0), "gpt-4o": (4, 0), "deepseek-coder": (2, 2)}.get(name, (0, 0))
    assert (data["wrong"], data["texts"]) == unequal
    assert found.check.verdict == ("warn" if unequal[1] else "pass")
    assert ("combining marks" in found.check.text) == (unequal[0] > unequal[1])


@pytest.mark.parametrize(
    ("name", "key", "wrong"),
    [
        ("llama-2", PREFIX, False),
        ("llama-2-resaved", PREFIX, True),
        ("mistral-v3", PREFIX, True),
        ("gemma", PREFIX, True),
        ("phi-3", PREFIX, False),
        ("phi-3", BOS, True),
        ("qwen2", PRE, "gpt-2"),
        ("refact", PRE, "gpt-2"),
    ],
)
def test_a_wrong_first_guess_is_found_out_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Any], name: str, key: str, wrong: Any
) -> None:
    chat, size = build(tmp_path, name)
    right = tokenizer_fields(chat, size)
    assert right[key] != wrong
    monkeypatch.setattr(tokenprobe, "tokenizer_fields", lambda *_: right | {key: wrong})
    found = probe_tokenizer(chat, size, "mine")
    assert loads[0].changes[key] == wrong
    assert len(loads) > 1
    assert found.fields[key] == right[key]
    assert found.check.verdict == "pass"


def test_a_name_that_changes_the_tokenizer_is_kept_for_phi_3_and_only_for_it(tmp_path: Path) -> None:
    assert probe(tmp_path / "phi", "phi-3", called="My-Phi3-bot").name == "My-Phi3-bot"
    assert probe(tmp_path / "llama", "llama-2", called="My-Phi3-bot").name == "tuned-model"
    assert probe(tmp_path / "bytes", "gpt-2", called="phi-3.5").name == "tuned-model"


def test_a_phi_3_without_the_tokens_that_its_name_needs_is_no_crash(tmp_path: Path) -> None:
    size = sentencepiece(tmp_path, "phi-3")
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"</s>"', '"</t>"'))
    chat = ChatFormat.from_folder(tmp_path)
    with pytest.raises(TuneError, match="other tokens than in the training"):
        probe_tokenizer(chat, size, "phi-3")


def test_rules_without_a_name_are_found_among_those_of_llama_cpp(tmp_path: Path, loads: list[Any]) -> None:
    spelled = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
    rules = split_by(spelled + r"\s+(?!\S)|\s+")
    found = probe(tmp_path, "own", rules=rules)
    assert (found.fields[PRE], found.check.verdict) == ("qwen2", "pass")
    assert [variant.changes[PRE] for variant in loads] == ["llama-bpe", "dbrx", "qwen2"]


def test_rules_that_llama_cpp_does_not_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenprobe, "LOOK_ALIKES", ("llama-bpe", "qwen2", "default"))
    with pytest.raises(TuneError, match="cannot read text as this tokenizer does") as caught:
        probe(tmp_path, "own", rules=split_by(r"\p{L}{1,2}|\p{N}{1,2}|\s|[^\s\p{L}\p{N}]"))
    assert "prompts become other tokens" in caught.value.what
    assert "nearest" in caught.value.details


def test_the_prompts_of_the_users_data_are_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenprobe, "LOOK_ALIKES", ("gpt-2", "qwen2"))
    rules = split_by("chess", REGEXES["qwen2"][0])
    chat, size = build(tmp_path, "qwen2", rules=rules, more=["duchess"])
    assert probe_tokenizer(chat, size, "mine").fields[PRE] == "qwen2"
    rows = [(Message("user", "the duchess"),)]
    with pytest.raises(TuneError, match="other tokens"):
        probe_tokenizer(chat, size, "mine", rows)


def test_uncomposed_text_is_told_and_warned_of_where_the_users_own_data_has_it(
    tmp_path: Path, loads: list[Any]
) -> None:
    chat, size = build(tmp_path, "qwen2", normalizer="NFC")
    found = probe_tokenizer(chat, size, "mine", [(Message("user", "caf\u00e9"),)])
    assert (found.check.verdict, len(loads)) == ("pass", 1)
    assert 0 < found.check.data["wrong"] <= 2
    assert "NFC" in found.check.text
    found = probe_tokenizer(chat, size, "mine", [(Message("user", "cafe\u0301"),)])
    assert (found.check.verdict, len(loads)) == ("warn", 2)


def test_swallowed_spaces_are_only_warned_of(tmp_path: Path) -> None:
    size = byte_level(tmp_path, "dbrx")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["lstrip"] = token["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    template = CHAT_TEMPLATE.replace("\n", "<|bos|>")
    change_json(tmp_path / "tokenizer_config.json", chat_template=template)
    found = probe_tokenizer(ChatFormat.from_folder(tmp_path), size, "mine")
    assert found.check.verdict == "warn"
    assert "spaces at the edges" in found.check.text
    assert found.check.data["texts"] == 0


def test_marks_are_told_from_composed_letters() -> None:
    assert not has_marks("café Ünï 中文 😀")
    assert has_marks("cafe\u0301")
    assert has_marks("हिन्दी")
    assert has_marks("\u1112\u1161\u11ab")  # three parts of one Korean syllable, none of them a mark


HARMONY = [added(text) for text in ("<|end|>", "<|return|>", "<|call|>")]


@pytest.mark.parametrize(("end", "stops"), [("<|end|>", False), ("<|return|>", True)])
def test_a_turn_end_at_which_llama_cpp_goes_on_is_refused(tmp_path: Path, end: str, stops: bool) -> None:
    """llama.cpp takes <|end|> for no end where a vocabulary has <|return|> and <|call|> too."""
    template = CHAT_TEMPLATE.replace("<|im_end|>", end)
    changes = {"extra": HARMONY, "chat_template": template, "eos_token": end}
    if stops:
        found = probe(tmp_path, "gpt-4o", **changes)
        assert found.check.data["endless"] == []
    else:
        with pytest.raises(TuneError, match=r"does not stop at <\|end\|>.*never stop"):
            probe(tmp_path, "gpt-4o", **changes)


def test_an_end_that_is_no_turn_end_is_only_warned_of(tmp_path: Path) -> None:
    ends = [added(f"<stop {i}>") for i in range(4)]
    size = byte_level(tmp_path, "qwen2", extra=ends)
    change_json(tmp_path / "config.json", eos_token_id=[2, *range(size - 4, size)])
    found = probe_tokenizer(ChatFormat.from_folder(tmp_path), size, "mine")
    assert found.check.verdict == "warn"
    assert found.check.data["endless"] == [size - 2, size - 1]
    assert "stop at <stop 2>, <stop 3>, which" in found.check.text


def test_a_template_that_llama_cpp_renders_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, size = build(tmp_path, "gpt-2")
    fields = tokenizer_fields(chat, size)
    other = fields["tokenizer.chat_template"].replace("<|im_end|>\n", "<|im_end|>")
    assert other != fields["tokenizer.chat_template"]
    monkeypatch.setattr(
        tokenprobe, "tokenizer_fields", lambda *_: fields | {"tokenizer.chat_template": other}
    )
    with pytest.raises(TuneError, match="renders 7 conversations differently"):
        probe_tokenizer(chat, size, "mine")


def test_a_file_that_llama_cpp_cannot_load_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, size = build(tmp_path, "gemma")
    fields = tokenizer_fields(chat, size)
    tokens = [*fields["tokenizer.ggml.tokens"]]
    tokens[-1] = tokens[-2]
    monkeypatch.setattr(tokenprobe, "tokenizer_fields", lambda *_: fields | {"tokenizer.ggml.tokens": tokens})
    with pytest.raises(TuneError, match="cannot load") as caught:
        probe_tokenizer(chat, size, "mine")
    assert "token_to_id" in caught.value.details


def test_a_stop_ends_the_probe(tmp_path: Path) -> None:
    chat, size = build(tmp_path, "gpt-2")
    with pytest.raises(ExportStopped):
        probe_tokenizer(chat, size, "mine", (), lambda: True)


@pytest.mark.parametrize("name", ["llama-2", "gemma", "phi-3", "llama-bpe"])
def test_folders_saved_by_transformers_5_are_read_the_same(tmp_path: Path, name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    chat, size = build(tmp_path / "old", name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "old")
    tokenizer.save_pretrained(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert "added_tokens_decoder" not in config
    assert not (tmp_path / "new" / "tokenizer.model").exists()
    saved = ChatFormat.from_folder(tmp_path / "new", config=tmp_path / "old")
    old, new = (probe_tokenizer(which, size, "mine") for which in (chat, saved))
    lists = [key for key in old.fields if key.startswith("tokenizer.ggml")]
    assert [key for key in lists if old.fields[key] != new.fields[key]] == []
    assert (old.name, old.check) == (new.name, new.check)


def test_tokens_that_only_the_configuration_adds_are_in_the_file(tmp_path: Path) -> None:
    size = byte_level(tmp_path)
    change_json(
        tmp_path / "tokenizer_config.json",
        added_tokens_decoder={str(size): added("<|turn|>"), str(size + 1): added("<plain>", special=False)},
        chat_template=CHAT_TEMPLATE.replace("<|im_start|>", "<|turn|>"),
    )
    found = probe_tokenizer(ChatFormat.from_folder(tmp_path), size + 2, "mine")
    assert found.fields["tokenizer.ggml.tokens"][size:] == ["<|turn|>", "<plain>"]
    assert found.check.verdict == "pass"


def test_the_rules_decide_whether_a_whole_word_may_be_a_token_without_merges(tmp_path: Path) -> None:
    size = byte_level(tmp_path, "llama-bpe")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    word = "ĠHello"
    data["model"]["vocab"] |= {word: size, "<|spare|>": size + 1}
    for whole, name in ((True, "llama-bpe"), (False, "dbrx")):
        data["model"]["ignore_merges"] = whole
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        chat = ChatFormat.from_folder(tmp_path)
        asked = [(Message("user", "Say Hello"),)]
        assert (size in chat.prompt_ids(asked[0])) is whole
        found = probe_tokenizer(chat, size + 2, "mine", asked)
        assert (found.fields[PRE], found.check.verdict) == (name, "pass")


@pytest.mark.parametrize("form", ["phi-3", "llama-2-resaved"])
def test_what_was_probed_holds_in_the_finished_file(tmp_path: Path, form: str) -> None:
    size = sentencepiece(tmp_path / "tokenizer", form)
    base = build_llama(tmp_path / "base", vocab_size=size + 3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((tmp_path / "tokenizer" / name).read_bytes())
    chat = ChatFormat.from_folder(base, config=tmp_path / "tokenizer")
    found = probe_tokenizer(chat, size + 3, "mine")
    path = tmp_path / "model.gguf"
    export_gguf(base, None, path, "q8_0", chat=chat, tokenizer=found.fields, name=found.name)
    assert read_header(path).fields["general.name"] == found.name
    with LlamaServer(path, 256) as llama:
        prompts = prompts_of(chat, ())
        assert [prompt.text for prompt in prompts if llama.tokenize(prompt.text) != prompt.ids] == []
        for prompt in prompts[:7]:
            text = llama.render([{"role": m.role, "content": m.content} for m in prompt.messages])
            assert llama.tokenize(text, as_prompt=True) == prompt.ids
