"""Tokenizers in the forms that published chat models have, trained on the spot; no weights beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from ollama_tune.core.export.probes import TEXTS
from ollama_tune.core.models.vocabulary import BYTES, SPACE
from tests.core.data_templates import GEMMA, MISTRAL, PHI3
from tests.tiny import CHAT_TEMPLATE

CORPUS = [
    *TEXTS,
    "What is the capital of France? Paris. And of Spain? Madrid.",
    "user assistant model INST",
] * 3

# The regexes of published tokenizers, by llama.cpp's names for them.
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
_SYMBOLS = "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
REGEXES: dict[str, tuple[str, ...]] = {
    "llama-bpe": (rf"{_WORD}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",),
    "qwen2": (rf"{_WORD}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",),
    "qwen35": (
        rf"{_WORD}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
        + _REST.replace(r"\p{L}\p{N}", r"\p{L}\p{M}\p{N}"),
    ),
    "tekken": (rf"{_UPPER}|{_LOWER}|\p{{N}}|{_SLASH}",),
    "gpt-4o": (rf"{_UPPER}{_WORD}?|{_LOWER}{_WORD}?|\p{{N}}{{1,3}}|{_SLASH}",),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", f"{_ASCII}|{_SYMBOLS}"),
}
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
# llama.cpp takes a token that is a whole word as it is under these names.
WHOLE_WORDS = ("llama-bpe", "tekken")


def split_by(*regexes: str, digits: bool = False) -> Any:
    """Words by regexes one after the other, single digits after them if asked, then bytes."""
    steps: list[Any] = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in regexes]
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def byte_level_rules(name: str) -> Any:
    """The pre-tokenizer that published models have where llama.cpp says `name`."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt-2":
        return plain
    if name == "refact":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    if name == "deepseek-coder":
        return split_by(*DEEPSEEK_CODER, digits=True)
    return split_by(*REGEXES["llama-bpe" if name == "dbrx" else name])


def added(content: str, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`; special unless said otherwise."""
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **usual, **flags}


def byte_level(
    folder: Path,
    name: str = "gpt-2",
    *,
    rules: Any = None,
    normalizer: str | None = None,
    extra: Sequence[dict[str, Any]] = (),
    more: Sequence[str] = (),
    size: int = 3000,
    **config: Any,
) -> int:
    """Train byte-level BPE with the rules called `name` into a folder; returns the vocabulary's size.

    It is trained on whole texts (and `more`), so that every place where the rules cut shows in the tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [*CORPUS, *more],
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.pre_tokenizer = rules or byte_level_rules(name)
    data = json.loads(tokenizer.to_str())
    data["model"]["ignore_merges"] = name in WHOLE_WORDS
    data["normalizer"] = normalizer and {"type": normalizer}
    count = len(data["model"]["vocab"])
    data["added_tokens"] += [{"id": count + i, **token} for i, token in enumerate(extra)]
    usual = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE}
    _write(folder, data, usual | config)
    return count + len(extra)


LLAMA2 = (
    "{% if messages[0].role == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_LEGACY = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, _REPLACE]}
_FIRST = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
_NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_START = (added("<unk>"), added("<s>"), added("</s>"))
_OLD_START = (added("<unk>", normalized=True), added("<s>", normalized=True), added("</s>"))
_GEMMA_START = tuple(map(added, ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<unused1>")))
_RUNS = tuple(added(text * n, special=False) for text in ("\n", SPACE) for n in range(2, 20))
_HTML = tuple(added(text, special=False) for text in ("<table>", "<body>", "</body>"))
_PHI3 = tuple(
    added(text, rstrip=text != "<|endoftext|>")
    for text in ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
)
FORMS: dict[str, dict[str, Any]] = {
    "llama-2": {"normalizer": _LEGACY, "start": _START, "template": LLAMA2},
    "llama-2-old": {"normalizer": _LEGACY, "start": _OLD_START, "template": LLAMA2},
    "llama-2-resaved": {"pre_tokenizer": _FIRST, "start": _START, "template": LLAMA2},
    "mistral": {"normalizer": _LEGACY, "start": _START, "template": MISTRAL},
    "mistral-v3": {
        "pre_tokenizer": _FIRST,
        "start": (*_START, added("[INST]"), added("[/INST]")),
        "template": MISTRAL.replace("'[INST] '", "'[INST]'").replace("' [/INST]'", "'[/INST]'"),
    },
    "gemma": {
        "normalizer": _REPLACE,
        "pre_tokenizer": _NO_SPLIT,
        "start": (*_GEMMA_START, added("<start_of_turn>"), added("<end_of_turn>"), *_RUNS, *_HTML),
        "template": GEMMA,
    },
    "phi-3": {"normalizer": _LEGACY, "start": _START, "end": _PHI3, "template": PHI3},
}


def sentencepiece(folder: Path, form: str, *, size: int = 2000, **config: Any) -> int:
    """A tokenizer like those converted from SentencePiece, in one of FORMS; returns the number of ids.

    The merges are all ways to make a token of two others, in the order of the tokens' scores, as
    transformers' converter writes them.
    """
    parts = FORMS[form]
    start, end = list(parts["start"]), list(parts.get("end", ()))
    texts = [token["content"] for token in start] + list(BYTES)
    texts += [text for text in _trained(size) if text not in set(texts)]
    vocabulary = {text: i for i, text in enumerate(texts)}
    data = {
        "version": "1.0",
        "added_tokens": [{"id": vocabulary[token["content"]], **token} for token in start]
        + [{"id": len(texts) + i, **token} for i, token in enumerate(end)],
        "normalizer": parts.get("normalizer"),
        "pre_tokenizer": parts.get("pre_tokenizer"),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": _all_merges(vocabulary),
        },
    }
    gemma, phi = form == "gemma", form == "phi-3"
    usual = {
        "bos_token": "<bos>" if gemma else "<s>",
        "eos_token": "<eos>" if gemma else "<|endoftext|>" if phi else "</s>",
        "unk_token": "<unk>",
        "chat_template": parts["template"],
    }
    _write(folder, data, usual | config)
    return len(texts) + len(end)


def _trained(size: int) -> list[str]:
    """Pieces of CORPUS by frequency, single characters last, as SentencePiece orders them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size, limit_alphabet=120, show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    found = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return sorted((text for text, _ in found), key=lambda text: len(text) == 1)


def _all_merges(vocabulary: dict[str, int]) -> list[list[str]]:
    """Runs of one character come first: SentencePiece looks for them before anything else."""
    made = []
    for text, i in vocabulary.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                run = set(text) <= {SPACE} or set(text) <= {"\n"}
                made.append((not run, i, vocabulary[left], vocabulary[right], left, right))
    return [[left, right] for *_, left, right in sorted(made)]


def _write(folder: Path, data: dict[str, Any], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))


def change_json(path: Path, **changes: Any) -> None:
    """Replace keys of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
