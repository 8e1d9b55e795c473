"""The tokens of texts by their pieces are those of the tokenizer, for every pattern that is taken on."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ollama_tune.core.data.tokens.pieces import GPT2, Pieces, for_ascii

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = [
    "The",
    "harbour's",
    "it'S",
    "2024",
    "12345",
    "a",
    "x=f(y)",
    "<|im",
    "end|>",
    "--",
    "/path/to",
    "don't",
]
BLANKS = [" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n ", "\r\n", "   \n", "\x1c", "\x0b", "\x00", "\x7f"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Words and signs of all kinds between blanks of all kinds, special tokens among them."""
    chance = random.Random(seed)
    parts = [*WORDS, "<|im_start|>", "<|im_end|>", "<tool>", "<tool>s", "".join(map(chr, range(33, 127)))]
    return [
        "".join(chance.choice(parts) + chance.choice(BLANKS) for _ in range(chance.randrange(1, 40)))
        for _ in range(count)
    ]


def tokenizer(pattern: str = "", **bpe: Any) -> Tokenizer:
    """A small byte-level tokenizer that cuts by this pattern, with two special tokens and one that is not."""
    made = Tokenizer(models.BPE(**bpe))
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*split, own]) if split else own
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts(60, seed=9), trainer)
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken("<tool>", normalized=True)])
    return made


def pieces_of(made: Tokenizer) -> Pieces | None:
    return Pieces.of(made, made.get_added_tokens_decoder())


@pytest.mark.parametrize("pattern", ["", GPT2, LLAMA3, O200K], ids=["none", "gpt2", "llama3", "o200k"])
def test_they_are_those_of_the_tokenizer(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer(pattern)
    monkeypatch.setattr("ollama_tune.core.data.tokens.pieces.TRIED", 0)
    pieces = pieces_of(made)
    assert pieces is not None
    rows = [*texts(150), "", "Zoë's café\n", "日本語 and English"]
    right = [found.ids for found in made.encode_batch_fast(rows, add_special_tokens=False)]
    monkeypatch.setattr(pieces, "_whole", lambda text: ["whole", text])
    found = pieces.ids(rows)
    assert found[:-2] == right[:-2]
    assert found[-2:] == [["whole", text] for text in rows[-2:]], "what is not ASCII is taken as a whole"


def test_a_text_that_the_pattern_does_not_cover_is_taken_as_a_whole() -> None:
    made = tokenizer(r"\p{L}+|\s+")
    pieces = pieces_of(made)
    assert pieces is not None and pieces._pieces("a b") == ["a", " ", "b"]
    assert pieces._pieces("a 12 b") is None
    assert pieces.ids(["a 12 b"]) == [made.encode("a 12 b", add_special_tokens=False).ids]


def test_pieces_that_give_other_tokens_once_are_given_up() -> None:
    made = tokenizer()
    pieces = pieces_of(made)
    assert pieces is not None
    pieces._known = {"wrong": (1,), " text": (2,)}
    for _ in range(2):
        assert pieces.ids(["wrong text"]) == [made.encode("wrong text", add_special_tokens=False).ids]
    assert pieces._pieces("a b") is None


def test_the_memory_for_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_tune.core.data.tokens.pieces.MOST", 50)
    made = tokenizer()
    pieces = pieces_of(made)
    assert pieces is not None
    rows = [f"row {number} of many <|im_end|>" for number in range(400)]
    found = [ids for start in range(0, 400, 8) for ids in pieces.ids(rows[start : start + 8])]
    assert found == [made.encode(row, add_special_tokens=False).ids for row in rows]
    assert len(pieces._known) < 100


def test_other_tokenizers_are_left_alone() -> None:
    assert pieces_of(tokenizer(dropout=0.1)) is None
    stripping = tokenizer()
    stripping.add_tokens([AddedToken("<left>", lstrip=True)])
    assert pieces_of(stripping) is None
    spaced = tokenizer()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    several, digits, metaspace = (tokenizer(GPT2) for _ in range(3))
    split, own = (
        pre_tokenizers.Split(Regex(GPT2), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    )
    several.pre_tokenizer = pre_tokenizers.Sequence([split, split, own])
    digits.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), own])
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    assert [pieces_of(made) for made in (spaced, several, digits, metaspace)] == [None] * 4
    words = Tokenizer(models.WordLevel({"a": 0}))
    words.normalizer = normalizers.NFC()
    assert pieces_of(words) is None


@pytest.mark.parametrize("regex", [r"(a)|b", r"\p{P}+", r"\d+", r"[\S]", r"a\b", r"(?<=a)b", r"\p{M}", "("])
def test_patterns_that_may_mean_something_else_are_refused(regex: str) -> None:
    assert for_ascii(regex) is None
