"""The tokenizer of a GGUF, from `tokenizer.json` alone, and the chat template as it was trained.

These are the best guesses; `tokenprobe` asks llama.cpp whether they are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from gguf import TokenType

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.template import exported_template
from ollama_tune.core.models.architectures import OTHER_MODEL
from ollama_tune.core.models.vocabulary import BYTES, LOOK_ALIKES, SPACE, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from tokenizers import AddedToken

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Ends that llama.cpp knows by their text, so that they need none of the three keys.
_KNOWN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class _Token:
    text: str
    type: TokenType


def tokenizer_fields(chat: ChatFormat, rows: int, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """All `tokenizer.*` keys for the tokenizer of `chat`; `rows` is the number of embedding rows.

    `vocabulary` is that of the tokenizer where it has been read already. Raises `TuneError` by name for a
    tokenizer that llama.cpp has no counterpart for.
    """
    vocabulary = vocabulary or read_vocabulary(chat.folder)
    tokens = _tokens(chat, vocabulary, rows)
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": vocabulary.kind,
        "tokenizer.ggml.pre": vocabulary.pre or LOOK_ALIKES[0],
        "tokenizer.ggml.tokens": [token.text for token in tokens],
        "tokenizer.ggml.token_type": [int(token.type) for token in tokens],
        "tokenizer.ggml.add_bos_token": (begins := _starts_with_bos(chat)),
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": vocabulary.prefixes and not (begins and _bos_is_prefixed(chat)),
        "tokenizer.ggml.padding_token_id": chat.pad_id,
        "tokenizer.chat_template": exported_template(chat),
    }
    if vocabulary.kind == "llama":
        fields["tokenizer.ggml.scores"] = _scores(vocabulary, fields["tokenizer.ggml.tokens"])
        fields["tokenizer.ggml.unknown_token_id"] = vocabulary.tokens.get(vocabulary.unknown, 0)
    else:
        fields["tokenizer.ggml.merges"] = _merges(vocabulary.merges)
    return fields | _special_ids(chat, fields["tokenizer.ggml.tokens"])


def _tokens(chat: ChatFormat, vocabulary: Vocabulary, rows: int) -> list[_Token]:
    """Text and type of every id below `rows`; ids that no token has become unused fillers."""
    known = {i: _Token(text, TokenType.NORMAL) for text, i in vocabulary.tokens.items()}
    if vocabulary.kind == "llama":
        known |= {vocabulary.tokens[text]: _Token(text, TokenType.BYTE) for text in BYTES}
    for i, added in chat.added_tokens.items():
        if (token := _added(i, added, chat, vocabulary)) is not None:
            known[i] = token
    if vocabulary.kind == "llama" and vocabulary.unknown in vocabulary.tokens:
        known[vocabulary.tokens[vocabulary.unknown]] = _Token(vocabulary.unknown, TokenType.UNKNOWN)
    _check_rows(known, chat, vocabulary, rows)
    taken = {token.text for i, token in known.items() if i < rows}
    if len(taken) < sum(i < rows for i in known):
        raise TuneError("The tokenizer has two ids for one text, which llama.cpp refuses.", OTHER_MODEL)
    return [known.get(i) or _Token(_filler(i, taken), TokenType.UNUSED) for i in range(rows)]


def _added(i: int, added: AddedToken, chat: ChatFormat, vocabulary: Vocabulary) -> _Token | None:
    """An added token, found in text wherever it stands; None for one that only the merges can make.

    Where spaces become ▁ before BPE, a token with ▁ in it that is compared with the text before that step
    is never found. One compared after it stands for spaces, and llama.cpp looks for it in the raw text.
    """
    if added.special or i in chat.stop_ids:
        return _Token(added.content, TokenType.CONTROL)
    if vocabulary.kind == "gpt2" or SPACE not in added.content:
        return _Token(added.content, TokenType.USER_DEFINED)
    if not added.normalized:
        return None
    return _Token(added.content.replace(SPACE, " "), TokenType.USER_DEFINED)


def _check_rows(known: dict[int, _Token], chat: ChatFormat, vocabulary: Vocabulary, rows: int) -> None:
    """Every token needs a row, except added ones that no prompt can hold (Gemma 3 has one for pictures)."""
    beyond = {i: token for i, token in known.items() if i >= rows}
    needed = {*vocabulary.tokens.values(), *chat.stop_ids, chat.pad_id}
    if any(i in needed or token.text in chat.template for i, token in beyond.items()):
        raise TuneError(
            f"The tokenizer has the token id {max(beyond)}, but the model has only {rows} embedding rows.",
            "Resize the model's embeddings to its tokenizer, or choose another base model.",
        )


def _filler(i: int, taken: set[str]) -> str:
    names = (f"[PAD{i}]" if not n else f"[PAD{i}_{n}]" for n in count())
    return next(name for name in names if name not in taken)


def _scores(vocabulary: Vocabulary, tokens: Sequence[str]) -> list[float]:
    """SentencePiece's preference for a token: the earlier its first merge, the higher; all others last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(vocabulary.merges):
        ranks.setdefault(left + right, rank)
    last = len(vocabulary.merges)
    return [-float(ranks.get(text, last)) for text in tokens]


def _merges(merges: Sequence[tuple[str, str]]) -> list[str]:
    """`left right` a merge, neither of them with a space inside."""
    joined = [f"{left} {right}" for left, right in merges]
    if any(merge.count(" ") != 1 for merge in joined):
        raise TuneError("The tokenizer has merges with spaces in them; it is not byte-level.", OTHER_MODEL)
    return joined


def _starts_with_bos(chat: ChatFormat) -> bool:
    """Whether training text began with the BOS token: the template alone decides it."""
    text = chat.render([Message("user", "Hello")], add_generation_prompt=True)
    return bool(chat.bos_token) and text.startswith(str(chat.bos_token))


def _bos_is_prefixed(chat: ChatFormat) -> bool:
    """Whether the space before a text goes to the BOS token itself: old files look for it after that step."""
    return any(token.content == chat.bos_token and token.normalized for token in chat.added_tokens.values())


def turn_end(chat: ChatFormat) -> int | None:
    """The id that ended answers in the training: the last stop id of a rendered exchange."""
    text = chat.render([Message("user", "Hello"), Message("assistant", "Hi")])
    return next((i for i in reversed(chat.encode(text)[0]) if i in chat.stop_ids), None)


def _special_ids(chat: ChatFormat, tokens: Sequence[str]) -> dict[str, int]:
    """BOS, and three ids that end an answer: llama.cpp ends at eos, eot and eom alike, and at known texts."""
    ids: Mapping[str, int] = {text: i for i, text in enumerate(tokens)}
    eos, turn = ids.get(chat.eos_token or ""), turn_end(chat)
    ends = sorted(chat.stop_ids, key=lambda i: (i != eos, i != turn, tokens[i] in _KNOWN_ENDS, i))
    if not ends:
        raise TuneError(
            "The base model names no token that ends an answer, so the tuned model would never stop.",
            "Set eos_token in the model's tokenizer_config.json.",
        )
    bos = ids.get(chat.bos_token or "", ends[0])
    named = zip(_END_KEYS, ends, strict=False)
    return {f"tokenizer.ggml.{key}": i for key, i in (("bos_token_id", bos), *named)}
