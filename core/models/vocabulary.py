"""What kind of tokenizer a `tokenizer.json` holds, and llama.cpp's name for its rules; no library is asked.

llama.cpp knows two kinds that chat models use: `gpt2`, byte-level BPE after a split into words by rules that
go by a name (`tokenizer.ggml.pre`), and `llama`, SentencePiece's BPE over the whole text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.architectures import BROKEN, OTHER_MODEL, require_json
from ollama_tune.core.text import one_line

Kind = Literal["gpt2", "llama"]
SPACE = "▁"
"""How SentencePiece writes a space."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens of SentencePiece for what its vocabulary has no other token for."""

# GPT-2's own regex, which ByteLevel applies with `use_regex`.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# sha256 of the regexes that cut text, one after the other (the Digits step counts as the regex of what it
# cuts out) -> llama.cpp's name of these rules. It names the rules and not the vocabulary, so it survives
# added tokens and fine-tuning. Every digest was made from the regexes of published tokenizers.
PRE_TOKENIZERS: Mapping[str, str] = {
    # GPT-4's cl100k as Llama 3 spells it: Llama 3, SmolLM3, the Llama distils of DeepSeek R1, Phi-4, OLMo 2
    "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f": "llama-bpe",
    # Qwen 1.5 to 3, the Qwen distils of DeepSeek R1
    "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e": "qwen2",
    # Qwen 3.5, which counts combining marks as letters
    "00431aed57e696b747435f734d1e3b9b1bfd931a121fb5cac7129e97c181e9ba": "qwen35",
    # Mistral Nemo and later
    "1d64a9a8eaf9f1bd80331984d81fdd514e7feafe8df83a525dd31472f275699a": "tekken",
    # GPT-4o's o200k: Phi-4-mini, Llama 4, gpt-oss
    "2d1b8dc11e89af71459b36004f698ab3693f59fd84f63e8ec2b49564ab857420": "gpt-4o",
    # GPT-2
    "eeb55ba74cc544ae7067587b680d16521d9891de9e94c7ba9412c0e0e93b1c36": "gpt-2",
    # StarCoder, SmolLM and SmolLM2, Granite 3: every digit alone, then GPT-2
    "d5d7e1b34b94ab2b4b788e47363cd60946d12cc6cd20bad41f9246f4756c3b37": "refact",
    # DeepSeek V3 and R1 (not the distils), Hunyuan
    "3e41884740914736a01647a8d1d6426e0e5aed47b7fdb19dfb81d31e3653a502": "deepseek-v3",
    # DeepSeek Coder 1
    "d1e24733e9bebb22db6737f4301ecd337492bddede5c04872e13487874f96533": "deepseek-coder",
}
# Under the first name llama.cpp takes a word that is a token as it is, under the second it merges its pieces.
_MERGING: Mapping[str, str] = {"llama-bpe": "dbrx"}
# Rules that llama.cpp has had since the middle of 2025 or longer, to be tried for a tokenizer whose own have
# no name above; the ones most often copied come first.
LOOK_ALIKES = (
    *("llama-bpe", "dbrx", "qwen2", "gpt-2", "refact", "gpt-4o", "tekken", "deepseek-v3", "seed-coder"),
    *("bailingmoe", "deepseek-coder", "deepseek-llm", "falcon", "poro-chat", "viking", "superbpe", "default"),
)
_COVERING_SPLITS = (("Isolated", False), ("Isolated", True), ("Removed", True))


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's kind and rules. `pre` is empty for byte-level rules that no known name stands for.

    `tokens` maps texts to ids without the added tokens, `merges` lists pairs in the order of their rank.
    `prefixes`: every text between special tokens is read as if a space stood before it. `unknown` is the
    text of the token for what has no other. Unicode NFC, which llama.cpp never applies, is no part of this.
    """

    kind: Kind
    pre: str
    tokens: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    prefixes: bool = False
    unknown: str = ""


def tokenizer_obstacle(folder: Path) -> str:
    """Empty when the tokenizer of a model folder can become part of a GGUF, else one sentence why not."""
    try:
        read_vocabulary(folder)
    except TuneError as error:
        return error.what
    return ""


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read `tokenizer.json`; raises `TuneError` that names what llama.cpp has no counterpart for."""
    data = require_json(folder / "tokenizer.json")
    try:
        return _vocabulary(data)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise TuneError(
            f"{folder / 'tokenizer.json'} is damaged: it holds values of the wrong kind.",
            BROKEN,
            details=repr(error),
        ) from error


def _vocabulary(data: Mapping[str, Any]) -> Vocabulary:
    model = _bpe(data)
    tokens, merges = model["vocab"], [_pair(merge) for merge in model.get("merges") or []]
    unknown = str(model.get("unk_token") or "")
    by_bytes = any(step.get("type") == "ByteLevel" for step in _steps(data.get("pre_tokenizer")))
    if model.get("byte_fallback") and not by_bytes:
        prefixes = _prefixes(data, tokens)
        return Vocabulary("llama", "default", tokens, merges, prefixes=prefixes, unknown=unknown)
    return Vocabulary("gpt2", pre_tokenizer(data), tokens, merges, unknown=unknown)


def _bpe(data: Mapping[str, Any]) -> Mapping[str, Any]:
    model = data.get("model")
    if not isinstance(model, dict):
        raise TuneError("The base model's tokenizer.json holds no vocabulary.", OTHER_MODEL)
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise TuneError(
            f"The tokenizer is of the kind {one_line(str(kind), 40)}, which no chat model in GGUF has.",
            OTHER_MODEL,
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise TuneError(f"The tokenizer uses {name}, which llama.cpp does not know.", OTHER_MODEL)
    if not isinstance(model.get("vocab"), dict):
        raise TuneError("The base model's tokenizer.json holds no vocabulary.", OTHER_MODEL)
    return model


def _pair(merge: Any) -> tuple[str, str]:
    """Newer files hold merges as pairs, older ones as one text with a space between."""
    left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
    return left, right


def pre_tokenizer(data: Mapping[str, Any]) -> str:
    """llama.cpp's name for the rules that cut text into words before byte-level BPE; empty if unknown.

    Raises `TuneError` for rules of a form that llama.cpp cannot have under any name.
    """
    for step in _steps(data.get("normalizer")):
        if step.get("type") != "NFC":
            raise _refused(f"the normalizer {step.get('type')}")
    parts = _steps(data.get("pre_tokenizer"))
    last = parts[-1] if parts else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise _refused(f"the pre-tokenizer {last.get('type')}")
    regexes = [_regex(step) for step in parts[:-1]] + ([_GPT2] if last.get("use_regex", True) else [])
    if not regexes:
        raise _refused("no rules that cut text into words")
    name = PRE_TOKENIZERS.get(hashlib.sha256("".join(regexes).encode()).hexdigest(), "")
    whole = bool((data.get("model") or {}).get("ignore_merges"))
    return name if whole else _MERGING.get(name, name)


def _regex(step: Mapping[str, Any]) -> str:
    """The regex whose matches, and the texts between them, become words."""
    if step.get("type") == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if (step.get("behavior"), bool(step.get("invert"))) not in _COVERING_SPLITS or not regex:
        raise _refused(f"the pre-tokenizer {step.get('type')}")
    return str(regex)


def _prefixes(data: Mapping[str, Any], tokens: Mapping[str, int]) -> bool:
    """Whether SentencePiece puts a space before every text; `TuneError` for steps it does not have."""
    normal, before = _steps(data.get("normalizer")), _steps(data.get("pre_tokenizer"))
    for step in normal:
        if not _is_prepended_space(step) and not _is_space_replacement(step):
            raise _refused(f"the normalizer {step.get('type')}")
    for step in before:
        if step.get("type") != "Metaspace" and not _splits_at_spaces(step):
            raise _refused(f"the pre-tokenizer {step.get('type')}")
    if missing := [text for text in BYTES if text not in tokens]:
        raise _refused(f"no token for {len(missing)} of the 256 bytes")
    return any(map(_is_prepended_space, normal)) or any(map(_metaspace_prefixes, before))


def _is_prepended_space(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "Prepend" and step.get("prepend") == SPACE


def _metaspace_prefixes(step: Mapping[str, Any]) -> bool:
    """`first` puts a space before the very first text only; chat prompts begin with a special token."""
    if step.get("type") != "Metaspace":
        return False
    return bool(
        step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "") == "always"
    )


def _is_space_replacement(step: Mapping[str, Any]) -> bool:
    pattern = step.get("pattern")
    return (
        step.get("type") == "Replace" and pattern in ({"String": " "}, " ") and step.get("content") == SPACE
    )


def _splits_at_spaces(step: Mapping[str, Any]) -> bool:
    """A split that never finds anything, since the normalizer has replaced all spaces."""
    return step.get("type") == "Split" and step.get("pattern") == {"String": " "}


def _steps(part: Any) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences in sequences laid flat."""
    if not isinstance(part, dict):
        return []
    if part.get("type") != "Sequence":
        return [part]
    inner = part.get("pretokenizers") or part.get("normalizers") or []
    return [step for child in inner for step in _steps(child)]


def _refused(what: str) -> TuneError:
    return TuneError(
        f"The tokenizer has {one_line(what, 80)}; llama.cpp would cut text differently.", OTHER_MODEL
    )
