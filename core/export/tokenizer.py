"""The tokenizer of a GGUF, from `tokenizer.json` alone, and the chat template as it was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import gguf

from ollama_tune.core.data.render import ChatFormat, load_tokenizer
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.template import exported_template
from ollama_tune.core.models.architectures import require_json
from ollama_tune.core.text import one_line

_OTHER_MODEL = "Choose another base model, or a newer ollama-tune that knows this tokenizer."

# sha256 of the Split regexes one after the other -> llama.cpp's name of the pre-tokenizer. It names the
# rules and not the vocabulary, so it survives added tokens and fine-tuning.
PRE_TOKENIZERS: Mapping[str, str] = {
    "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f": "llama-bpe",
    "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e": "qwen2",
    "1d64a9a8eaf9f1bd80331984d81fdd514e7feafe8df83a525dd31472f275699a": "tekken",
    "2d1b8dc11e89af71459b36004f698ab3693f59fd84f63e8ec2b49564ab857420": "gpt-4o",
}
_COVERING_SPLITS = (("Isolated", False), ("Removed", True))
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_fields(chat: ChatFormat, rows: int) -> dict[str, Any]:
    """All `tokenizer.*` keys for the tokenizer of `chat`; `rows` is the number of embedding rows.

    Raises `TuneError` by name for a tokenizer that is not byte-level BPE, or whose rules llama.cpp
    is not known to have.
    """
    data = require_json(chat.folder / "tokenizer.json")
    model = _byte_level_model(data)
    tokenizer = load_tokenizer(chat.folder)
    added = {i: (token.content, token.special) for i, token in tokenizer.get_added_tokens_decoder().items()}
    tokens, types = _tokens(tokenizer.get_vocab(with_added_tokens=False), added, rows)
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer(data),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": _merges(model.get("merges") or []),
        "tokenizer.ggml.add_bos_token": _starts_with_bos(chat),
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.padding_token_id": chat.pad_id,
        "tokenizer.chat_template": exported_template(chat),
    }
    return fields | _special_ids(chat, tokens)


def _byte_level_model(data: Mapping[str, Any]) -> Mapping[str, Any]:
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TuneError("The base model's tokenizer.json holds no BPE vocabulary.", _OTHER_MODEL)
    kind = model.get("type", "BPE")
    if kind != "BPE" or model.get("byte_fallback"):
        name = "SentencePiece" if kind == "BPE" else one_line(str(kind), 40)
        raise TuneError(f"Tokenizers of the kind {name} cannot be exported to GGUF yet.", _OTHER_MODEL)
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise TuneError(f"The tokenizer uses {name}, which llama.cpp does not know.", _OTHER_MODEL)
    return model


def pre_tokenizer(data: Mapping[str, Any]) -> str:
    """llama.cpp's name for the rules that cut text into words before BPE."""
    normalizer = (data.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise _unknown(f"the normalizer {normalizer}")
    parts = _flat(data.get("pre_tokenizer") or {})
    last = parts[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise _unknown(f"the pre-tokenizer {last.get('type')}")
    before, own_regex = parts[:-1], last.get("use_regex", True)
    if own_regex and not before:
        return "gpt-2"
    if own_regex and len(before) == 1 and before[0].get("individual_digits"):
        return "smollm"
    return _by_digest(before)


def _by_digest(splits: list[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        pattern = split.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if (split.get("behavior"), bool(split.get("invert"))) not in _COVERING_SPLITS or not regex:
            raise _unknown(f"the pre-tokenizer {split.get('type')}")
        digest.update(str(regex).encode())
    name = PRE_TOKENIZERS.get(digest.hexdigest())
    if name is None:
        raise _unknown(f"word rules with the digest {digest.hexdigest()[:16]}")
    return name


def _flat(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if part.get("type") != "Sequence":
        return [part]
    return [leaf for child in part.get("pretokenizers") or [{}] for leaf in _flat(child)]


def _unknown(what: str) -> TuneError:
    return TuneError(
        f"The tokenizer has {one_line(what, 80)}; llama.cpp would cut text differently.", _OTHER_MODEL
    )


def _tokens(
    vocabulary: Mapping[str, int], added: Mapping[int, tuple[str, bool]], rows: int
) -> tuple[list[str], list[int]]:
    """Text and type of every id below `rows`; ids that no token has become unused fillers.

    `added` maps an id to its text and whether it is special (a control token, never plain text).
    """
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    largest = max(*vocabulary.values(), *added, 0, 0)
    if largest >= rows:
        raise TuneError(
            f"The tokenizer has the token id {largest}, but the model has only {rows} embedding rows.",
            "Resize the model's embeddings to its tokenizer, or choose another base model.",
        )
    for text, i in vocabulary.items():
        tokens[i], types[i] = text, int(gguf.TokenType.NORMAL)
    for i, (text, special) in added.items():
        tokens[i], types[i] = text, int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    if len(set(tokens)) < rows:
        raise TuneError("The tokenizer has two ids for one text, which llama.cpp refuses.", _OTHER_MODEL)
    return tokens, types


def _merges(merges: Iterable[Any]) -> list[str]:
    """`left right` a merge; newer tokenizer files hold pairs, older ones the joined text."""
    joined = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    if any(merge.count(" ") != 1 for merge in joined):
        raise TuneError("The tokenizer has merges with spaces in them; it is not byte-level.", _OTHER_MODEL)
    return joined


def _starts_with_bos(chat: ChatFormat) -> bool:
    """Whether training text began with the BOS token: the template alone decides it."""
    text = chat.render([Message("user", "Hello")], add_generation_prompt=True)
    return bool(chat.bos_token) and text.startswith(str(chat.bos_token))


def _special_ids(chat: ChatFormat, tokens: list[str]) -> dict[str, int]:
    """BOS, and every id that ends an answer: llama.cpp ends at eos, eot and eom alike."""
    ids = {text: i for i, text in enumerate(tokens)}
    eos = ids.get(chat.eos_token or "")
    ends = ([] if eos is None else [eos]) + sorted(chat.stop_ids - {eos})
    if not ends:
        raise TuneError(
            "The base model names no token that ends an answer, so the tuned model would never stop.",
            "Set eos_token in the model's tokenizer_config.json.",
        )
    bos = ids.get(chat.bos_token or "", ends[0])
    named = zip(_END_KEYS, ends, strict=False)
    return {f"tokenizer.ggml.{key}": i for key, i in (("bos_token_id", bos), *named)}
