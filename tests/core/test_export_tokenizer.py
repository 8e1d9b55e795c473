from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.probes import CONVERSATIONS, TEXTS
from ollama_tune.core.export.template import TEMPLATE_COMMENT
from ollama_tune.core.export.tokenizer import (
    PRE_TOKENIZERS,
    pre_tokenizer,
    tokenizer_fields,
)
from ollama_tune.core.export.verify import has_marks
from tests.core.export_parts import build_llama
from tests.tiny import CHAT_TEMPLATE

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
REGEXES = {
    "llama-bpe": rf"{_WORD}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORD}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
    "tekken": rf"{_UPPER}|{_LOWER}|\p{{N}}|{_SLASH}",
    "gpt-4o": rf"{_UPPER}{_WORD}?|{_LOWER}{_WORD}?|\p{{N}}{{1,3}}|{_SLASH}",
}


def split_by(regex: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


RULES: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    **{name: (lambda regex=regex: split_by(regex)) for name, regex in REGEXES.items()},
}


def model_with(folder: Path, rules: Any = None, **config: Any) -> Path:
    """A tiny model whose tokenizer learned the probe texts by the given rules."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = rules or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS] * 3, trainer)
    build_llama(folder, vocab_size=960)
    tokenizer.save(str(folder / "tokenizer.json"))
    change_json(folder / "tokenizer_config.json", **config)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def serve(base: Path, folder: Path) -> LlamaServer:
    return LlamaServer(export_gguf(base, None, folder / "model.gguf", "q8_0").path, 256)


@pytest.mark.parametrize("name", REGEXES)
def test_the_digest_names_published_rules(name: str) -> None:
    assert PRE_TOKENIZERS[hashlib.sha256(REGEXES[name].encode()).hexdigest()] == name


@pytest.mark.parametrize("name", RULES)
def test_llama_cpp_cuts_text_by_the_same_rules(tmp_path: Path, name: str) -> None:
    base = model_with(tmp_path / "base", RULES[name]())
    chat = ChatFormat.from_folder(base)
    assert tokenizer_fields(chat, 960)["tokenizer.ggml.pre"] == name
    with serve(base, tmp_path) as llama:
        wrong = [text for text in TEXTS if llama.tokenize(text) != chat.encode(text)[0]]
    # llama.cpp's own versions of these two rules do not count marks as letters.
    assert [text for text in wrong if name not in ("tekken", "gpt-4o") or not has_marks(text)] == []


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "ByteLevel"),
        ({"pre_tokenizer": None}, "pre-tokenizer"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, "pre-tokenizer"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {
                            "type": "Split",
                            "pattern": {"Regex": "a+"},
                            "behavior": "Isolated",
                            "invert": False,
                        },
                        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                    ],
                }
            },
            "digest",
        ),
        ({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "ByteLevel"}}, "Lowercase"),
    ],
)
def test_rules_that_llama_cpp_is_not_known_to_have_are_refused(rules: dict[str, Any], named: str) -> None:
    with pytest.raises(TuneError, match=named):
        pre_tokenizer(rules)


def test_other_kinds_of_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    base = build_llama(tmp_path)
    chat = ChatFormat.from_folder(base)
    data = json.loads((base / "tokenizer.json").read_text())
    for change, named in (({"byte_fallback": True}, "SentencePiece"), ({"type": "Unigram"}, "Unigram")):
        (base / "tokenizer.json").write_text(json.dumps(data | {"model": data["model"] | change}))
        with pytest.raises(TuneError, match=named):
            tokenizer_fields(chat, 400)


def test_token_types_gaps_and_ids(tmp_path: Path) -> None:
    base = build_llama(tmp_path)
    data = json.loads((base / "tokenizer.json").read_text())
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    size = len(data["model"]["vocab"])
    data["added_tokens"].append({"id": size, "content": "<plain>", **plain})
    (base / "tokenizer.json").write_text(json.dumps(data))
    fields = tokenizer_fields(ChatFormat.from_folder(base), size + 3)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert types[:4] == [3, 3, 3, 1]
    assert tokens[size:] == ["<plain>", f"[PAD{size + 1}]", f"[PAD{size + 2}]"]
    assert types[size:] == [4, 5, 5]
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.padding_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"] is False
    with pytest.raises(TuneError, match=f"token id {size}, but the model has only {size} embedding rows"):
        tokenizer_fields(ChatFormat.from_folder(base), size)


def test_every_id_that_ends_an_answer_is_written(tmp_path: Path) -> None:
    base = build_llama(tmp_path)
    change_json(base / "generation_config.json", eos_token_id=[2, 0])
    fields = tokenizer_fields(ChatFormat.from_folder(base), 400)
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (2, 0)


def test_a_model_that_names_no_end_is_refused(tmp_path: Path) -> None:
    base = build_llama(tmp_path)
    change_json(base / "tokenizer_config.json", eos_token=None, chat_template="{{ messages[0]['content'] }}")
    for name in ("generation_config.json", "config.json"):
        change_json(base / name, eos_token_id=None)
    with pytest.raises(TuneError, match="never stop"):
        tokenizer_fields(ChatFormat.from_folder(base), 400)


@pytest.mark.parametrize("in_template", [True, False])
def test_a_prompt_has_exactly_the_bos_it_was_trained_with(tmp_path: Path, in_template: bool) -> None:
    template = ("{{ bos_token }}" if in_template else "") + CHAT_TEMPLATE
    base = model_with(tmp_path / "base", bos_token="<|bos|>", chat_template=template)
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
