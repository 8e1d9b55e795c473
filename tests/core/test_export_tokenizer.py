from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.probes import CONVERSATIONS
from ollama_tune.core.export.template import TEMPLATE_COMMENT
from ollama_tune.core.export.tokenizer import tokenizer_fields, turn_end
from ollama_tune.core.models.vocabulary import BYTES, SPACE
from tests.core.export_parts import build_llama
from tests.core.tokenizer_parts import added, byte_level, change_json, sentencepiece
from tests.tiny import CHAT_TEMPLATE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def fields_of(folder: Path, rows: int) -> dict[str, object]:
    fields = tokenizer_fields(ChatFormat.from_folder(folder), rows)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in fields.items()}


def types_of(folder: Path, rows: int) -> dict[str, int]:
    fields = fields_of(folder, rows)
    return dict(zip(fields["tokens"], fields["token_type"], strict=True))


def serve(base: Path, folder: Path) -> LlamaServer:
    return LlamaServer(export_gguf(base, None, folder / "model.gguf", "q8_0").path, 256)


def test_token_types_gaps_and_ids(tmp_path: Path) -> None:
    size = byte_level(tmp_path, extra=[added("<plain>", special=False)])
    fields = fields_of(tmp_path, size + 2)
    tokens, types = fields["tokens"], fields["token_type"]
    assert tokens[:4] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>"]
    assert types[:5] == [CONTROL, CONTROL, CONTROL, CONTROL, NORMAL]
    assert tokens[size - 1 :] == ["<plain>", f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert types[size - 1 :] == [USER_DEFINED, UNUSED, UNUSED]
    assert fields["model"] == "gpt2"
    assert (fields["eos_token_id"], fields["padding_token_id"], fields["add_bos_token"]) == (2, 0, False)
    assert len(fields["merges"]) == size - 1 - 4 - 256
    assert "scores" not in fields


def test_a_filler_never_repeats_a_token(tmp_path: Path) -> None:
    size = byte_level(tmp_path, size=300)
    change = {**json.loads((tmp_path / "tokenizer.json").read_text())}
    change["added_tokens"].append({"id": size, **added(f"[PAD{size + 1}]")})
    change_json(tmp_path / "tokenizer.json", **change)
    tokens = fields_of(tmp_path, size + 3)["tokens"]
    assert tokens[size:] == [f"[PAD{size + 1}]", f"[PAD{size + 1}_1]", f"[PAD{size + 2}]"]


def test_ids_without_a_token_are_filled(tmp_path: Path) -> None:
    size = byte_level(tmp_path, size=300)
    text = (tmp_path / "tokenizer.json").read_text()
    assert text.count(f": {size - 1}") == 1
    (tmp_path / "tokenizer.json").write_text(text.replace(f": {size - 1}", f": {size + 4}"))
    assert ChatFormat.from_folder(tmp_path).vocabulary_size == size + 5
    fields = fields_of(tmp_path, size + 5)
    assert fields["tokens"][size - 1 : size + 4] == [f"[PAD{i}]" for i in range(size - 1, size + 4)]
    assert fields["token_type"][size - 1 :] == [UNUSED] * 5 + [NORMAL]


def test_a_token_without_an_embedding_row_is_refused(tmp_path: Path) -> None:
    size = byte_level(tmp_path, size=300)
    named = f"token id {size - 1}, but the model has only {size - 1} embedding rows"
    with pytest.raises(TuneError, match=named):
        fields_of(tmp_path, size - 1)


@pytest.mark.parametrize("used", ["template", "stop", "padding"])
def test_an_added_token_beyond_the_rows_is_left_out_only_where_nothing_needs_it(
    tmp_path: Path, used: str
) -> None:
    size = byte_level(tmp_path, size=300, extra=[added("<picture>")])
    assert len(fields_of(tmp_path, size - 1)["tokens"]) == size - 1
    if used == "template":
        change_json(tmp_path / "tokenizer_config.json", chat_template="<picture>" + CHAT_TEMPLATE)
    else:
        key = "eos_token_id" if used == "stop" else "pad_token_id"
        change_json(tmp_path / "tokenizer_config.json", pad_token=None)
        change_json(tmp_path / "config.json", **{key: size - 1})
    with pytest.raises(TuneError, match="embedding rows"):
        fields_of(tmp_path, size - 1)


def test_sentencepiece_types(tmp_path: Path) -> None:
    size = sentencepiece(tmp_path, "gemma")
    types = types_of(tmp_path, size + 1)
    assert all(types[text] == BYTE for text in BYTES)
    assert (types["<unk>"], types["<bos>"], types["<start_of_turn>"]) == (UNKNOWN, CONTROL, CONTROL)
    assert (types["\n\n"], types["<table>"]) == (USER_DEFINED, USER_DEFINED)
    assert types[SPACE * 2] == NORMAL  # only the merges ever make it; llama.cpp prints it as spaces
    assert types[f"[PAD{size}]"] == UNUSED


def test_an_added_token_that_stands_for_spaces_is_looked_for_as_spaces(tmp_path: Path) -> None:
    size = sentencepiece(tmp_path, "gemma")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["normalized"] = token["normalized"] or token["content"] == SPACE * 3
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    types = types_of(tmp_path, size)
    assert types["   "] == USER_DEFINED
    assert SPACE * 3 not in types


def test_scores_follow_the_first_merge_and_the_rest_comes_last(tmp_path: Path) -> None:
    size = sentencepiece(tmp_path, "llama-2")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    merges = data["model"]["merges"]
    fields = fields_of(tmp_path, size)
    scores = dict(zip(fields["tokens"], fields["scores"], strict=True))
    made = ["".join(merge) for merge in merges]
    assert len(made) > len(set(made))
    for text in set(made):
        assert scores[text] == -made.index(text)
    others = {score for text, score in scores.items() if text not in set(made)}
    assert others == {-float(len(merges))}
    assert (fields["model"], fields["pre"], fields["unknown_token_id"]) == ("llama", "default", 0)
    assert "merges" not in fields


def test_the_token_that_ends_turns_comes_before_ends_that_nothing_is_known_of(tmp_path: Path) -> None:
    ends = [added(f"<stop {i}>") for i in range(4)]
    template = CHAT_TEMPLATE.replace("<|im_end|>", "<stop 3>")
    size = byte_level(tmp_path, size=300, extra=ends, chat_template=template)
    change_json(tmp_path / "config.json", eos_token_id=list(range(size - 4, size)))
    fields = fields_of(tmp_path, size)
    assert turn_end(ChatFormat.from_folder(tmp_path)) == size - 1
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    assert [fields[key] for key in keys] == [2, size - 1, size - 4]


def test_ends_that_llama_cpp_knows_by_their_text_leave_the_keys_to_others(tmp_path: Path) -> None:
    size = byte_level(tmp_path, size=300, extra=[added("<stop>")], eos_token="<stop>")
    change_json(tmp_path / "config.json", eos_token_id=[0, 2, 3, size - 1])
    fields = fields_of(tmp_path, size)
    assert [fields[key] for key in ("eos_token_id", "eot_token_id", "eom_token_id")] == [size - 1, 2, 3]


def test_a_model_that_names_no_end_is_refused(tmp_path: Path) -> None:
    size = byte_level(tmp_path, size=300, eos_token=None, chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(TuneError, match="never stop"):
        fields_of(tmp_path, size)


def test_a_merge_with_a_space_in_it_is_not_byte_level(tmp_path: Path) -> None:
    size = byte_level(tmp_path, size=300)
    chat = ChatFormat.from_folder(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"]["merges"].append(["a", "b c"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(TuneError, match="not byte-level"):
        tokenizer_fields(chat, size)


@pytest.mark.parametrize("in_template", [True, False])
def test_a_prompt_has_exactly_the_bos_it_was_trained_with(tmp_path: Path, in_template: bool) -> None:
    template = ("{{ bos_token }}" if in_template else "") + CHAT_TEMPLATE
    base = build_llama(tmp_path / "base", vocab_size=1600)
    byte_level(base, bos_token="<|bos|>", chat_template=template)
    (base / "config.json").write_text(
        (build_llama(tmp_path / "other", vocab_size=1600) / "config.json").read_text()
    )
    chat = ChatFormat.from_folder(base)
    messages = [Message("user", "Hello")]
    with serve(base, tmp_path) as llama:
        rendered = llama.render([{"role": "user", "content": "Hello"}])
        assert llama.tokenize(rendered, as_prompt=True) == chat.prompt_ids(messages)
    assert (chat.prompt_ids(messages)[0] == 3) is in_template


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "  ", " \n", "{%- set x = 1 -%}\n  ", "text\n"])
def test_the_comment_changes_no_character_of_what_is_rendered(tmp_path: Path, start: str) -> None:
    base = build_llama(tmp_path / "base")
    change_json(base / "tokenizer_config.json", chat_template=start + CHAT_TEMPLATE)
    chat = ChatFormat.from_folder(base)
    change_json(base / "tokenizer_config.json", chat_template=TEMPLATE_COMMENT + start + CHAT_TEMPLATE)
    commented = ChatFormat.from_folder(base)
    with serve(base, tmp_path) as llama:
        for messages in CONVERSATIONS:
            expected = chat.render(messages, add_generation_prompt=True)
            turns = [{"role": m.role, "content": m.content} for m in messages]
            assert commented.render(messages, add_generation_prompt=True) == expected
            assert llama.render(turns) == expected


def test_the_comment_keeps_ollamas_templates_away_and_claims_no_abilities() -> None:
    assert len(TEMPLATE_COMMENT) >= 200
    for word in ("tools", "tool_call", "<think>", "</think>"):
        assert word not in TEMPLATE_COMMENT
