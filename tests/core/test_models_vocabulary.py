from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.vocabulary import PRE_TOKENIZERS, read_vocabulary, tokenizer_obstacle
from tests.core.tokenizer_parts import (
    FORMS,
    REGEXES,
    WHOLE_WORDS,
    byte_level_rules,
    sentencepiece,
    split_by,
)

NAMES = ["gpt-2", "refact", "dbrx", "deepseek-coder", *REGEXES]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def write(folder: Path, pre_tokenizer: Any, normalizer: Any = None, **model: Any) -> Path:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], **model}
    data = {"model": model, "pre_tokenizer": pre_tokenizer, "normalizer": normalizer}
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vocabularies")
    for form in FORMS:
        sentencepiece(root / form, form)
    return root


@pytest.mark.parametrize("name", REGEXES)
def test_the_digest_names_published_rules(name: str) -> None:
    digest = hashlib.sha256("".join(REGEXES[name]).encode()).hexdigest()
    assert PRE_TOKENIZERS[digest] == name


@pytest.mark.parametrize("name", NAMES)
def test_rules_get_llama_cpps_name(tmp_path: Path, name: str) -> None:
    rules = json.loads(byte_level_rules(name).__getstate__())
    folder = write(tmp_path, rules, ignore_merges=name in WHOLE_WORDS)
    assert read_vocabulary(folder).pre == name
    assert tokenizer_obstacle(folder) == ""


def test_one_change_in_a_regex_makes_the_rules_unknown_but_no_obstacle(tmp_path: Path) -> None:
    changed = split_by(REGEXES["qwen2"][0].replace(r"\p{N}|", r"\p{N}{1,2}|", 1))
    folder = write(tmp_path, json.loads(changed.__getstate__()))
    assert read_vocabulary(folder).pre == ""
    assert tokenizer_obstacle(folder) == ""


def test_other_spellings_of_the_same_steps_have_the_same_name(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": REGEXES["gpt-4o"][0]}}
    for behavior, invert in (("Isolated", False), ("Removed", True)):
        steps = [split | {"behavior": behavior, "invert": invert}, BYTE_LEVEL]
        nested = {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": steps}]}
        assert read_vocabulary(write(tmp_path, nested)).pre == "gpt-4o"


@pytest.mark.parametrize("form", FORMS)
def test_sentencepiece_in_every_published_form_is_llama(folders: Path, form: str) -> None:
    vocabulary = read_vocabulary(folders / form)
    assert (vocabulary.kind, vocabulary.pre, vocabulary.unknown) == ("llama", "default", "<unk>")
    assert vocabulary.prefixes is (form in ("llama-2", "llama-2-old", "mistral", "phi-3"))
    assert tokenizer_obstacle(folders / form) == ""


@pytest.mark.parametrize(
    ("metaspace", "prefixes"),
    [
        ({"prepend_scheme": "always"}, True),
        ({"prepend_scheme": "first"}, False),
        ({"prepend_scheme": "never"}, False),
        ({"add_prefix_space": True}, True),
        ({"add_prefix_space": False}, False),
    ],
)
def test_old_and_new_spellings_of_the_space_before_a_text(
    folders: Path, tmp_path: Path, metaspace: dict[str, Any], prefixes: bool
) -> None:
    data = json.loads((folders / "llama-2-resaved" / "tokenizer.json").read_text())
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", **metaspace}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert read_vocabulary(tmp_path).prefixes is prefixes


def test_merges_are_read_as_texts_and_as_pairs(tmp_path: Path) -> None:
    rules = json.loads(byte_level_rules("gpt-2").__getstate__())
    assert read_vocabulary(write(tmp_path, rules, merges=["a b"])).merges == [("a", "b")]
    assert read_vocabulary(write(tmp_path, rules, merges=[["a", "b c"]])).merges == [("a", "b c")]


def test_byte_fallback_means_nothing_where_text_is_cut_into_bytes_before(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(write(tmp_path, {"type": "ByteLevel"}, {"type": "NFC"}, byte_fallback=True))
    assert (vocabulary.kind, vocabulary.pre) == ("gpt2", "gpt-2")


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


REGEX_SPLIT = {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "MergedWithNext", "invert": False}


@pytest.mark.parametrize(
    ("pre", "normalizer", "model", "named"),
    [
        ({"type": "Metaspace"}, None, {}, "the pre-tokenizer Metaspace"),
        ({"type": "ByteLevel", "add_prefix_space": True}, None, {}, "the pre-tokenizer ByteLevel"),
        (None, None, {}, "the pre-tokenizer None"),
        (sequence(), None, {}, "the pre-tokenizer None"),
        (BYTE_LEVEL, None, {}, "no rules that cut text"),
        (sequence(REGEX_SPLIT, BYTE_LEVEL), None, {}, "the pre-tokenizer Split"),
        (sequence({"type": "Punctuation"}, BYTE_LEVEL), None, {}, "the pre-tokenizer Punctuation"),
        ({"type": "ByteLevel"}, {"type": "Lowercase"}, {}, "the normalizer Lowercase"),
        ({"type": "ByteLevel"}, None, {"type": "Unigram"}, "of the kind Unigram"),
        ({"type": "ByteLevel"}, None, {"type": "WordPiece"}, "of the kind WordPiece"),
        ({"type": "ByteLevel"}, None, {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"type": "ByteLevel"}, None, {"vocab": []}, "no vocabulary"),
        ({"type": "Metaspace"}, None, {"byte_fallback": True}, "no token for 256 of the 256 bytes"),
        ({"type": "Metaspace"}, {"type": "NFKC"}, {"byte_fallback": True}, "the normalizer NFKC"),
        ({"type": "BertPreTokenizer"}, None, {"byte_fallback": True}, "BertPreTokenizer"),
    ],
)
def test_what_llama_cpp_has_no_counterpart_for_is_named(
    tmp_path: Path, pre: Any, normalizer: Any, model: dict[str, Any], named: str
) -> None:
    folder = write(tmp_path, pre, normalizer, **model)
    assert named in tokenizer_obstacle(folder)
    with pytest.raises(TuneError, match=named):
        read_vocabulary(folder)


def test_a_missing_or_damaged_file_is_an_obstacle(tmp_path: Path) -> None:
    assert "missing" in tokenizer_obstacle(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert "damaged" in tokenizer_obstacle(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": null}')
    assert "no vocabulary" in tokenizer_obstacle(tmp_path)
    for merges in ([5], 5, [[]]):
        assert "damaged" in tokenizer_obstacle(write(tmp_path, {"type": "ByteLevel"}, merges=merges))


def test_reading_needs_no_library(tmp_path: Path) -> None:
    write(tmp_path, json.loads(pre_tokenizers.ByteLevel().__getstate__()))
    code = (
        "import sys; from pathlib import Path; from ollama_tune.core.models.vocabulary import *;"
        f"tokenizer_obstacle(Path({str(tmp_path)!r}));"
        "print([name for name in ('tokenizers', 'gguf', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
