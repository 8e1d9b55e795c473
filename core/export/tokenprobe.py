"""Finds the tokenizer settings under which llama.cpp reads chats exactly as the training did.

A GGUF of one tiny layer of zeros with the real vocabulary is loaded by llama.cpp and asked for token ids. The
settings that cannot be read off the tokenizer's files are tried until the ids are equal, the likeliest first.
"""

from __future__ import annotations

import itertools
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.gguf import plain_name
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.prompts import FEW, Conversation, Ids, Prompt, in_own_data, prompts_of, too_many
from ollama_tune.core.export.tokenizer import tokenizer_fields, turn_end
from ollama_tune.core.export.values import Check, ExportStopped, Stopped
from ollama_tune.core.models.architectures import OTHER_MODEL
from ollama_tune.core.models.vocabulary import LOOK_ALIKES, read_vocabulary
from ollama_tune.core.text import one_line

WIDTH = 32
"""Numbers a row of every weight in the probe."""
CONTEXT = 256
"""Tokens llama.cpp may hold; tokenizing needs none."""

# llama.cpp drops spaces right of special tokens where the model's name says so, and needs these tokens then.
_STRIPPING = re.compile(r"phi-?3", re.IGNORECASE)
_STRIPPING_NEEDS = ("</s>", "<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True)
class Probed:
    """The proved `tokenizer.*` keys, the `general.name` they were proved with, and what was found."""

    fields: dict[str, Any]
    name: str
    check: Check


@dataclass(frozen=True)
class _Variant:
    """Settings to try: changes of the fields, and the model's name."""

    changes: dict[str, Any]
    name: str


@dataclass(frozen=True)
class _Finding:
    """What differs under a variant: prompts read as other tokens, conversations that llama.cpp renders
    differently or refuses, and stop ids that end nothing.
    """

    variant: _Variant
    wrong: tuple[Prompt, ...]
    unrendered: tuple[Prompt, ...]
    deaf: Ids

    @property
    def chats(self) -> int:
        """Whole conversations among the wrong ones that are not odd; none may be."""
        return sum(prompt.as_chat and not prompt.odd for prompt in self.wrong)

    @property
    def texts(self) -> int:
        """Difficult texts among the wrong ones that are not odd."""
        return sum(not prompt.as_chat and not prompt.odd for prompt in self.wrong)


def probe_tokenizer(
    chat: ChatFormat,
    rows: int,
    name: str,
    conversations: Sequence[Conversation] = (),
    stopped: Stopped | None = None,
) -> Probed:
    """Settings under which llama.cpp's tokens are those of the training; `TuneError` if there are none.

    `rows` is the number of embedding rows, `name` the wanted `general.name`, `conversations` are prompts of
    the user's data. The check warns where only unusual texts differ. Seconds with a large vocabulary.
    """
    vocabulary = read_vocabulary(chat.folder)
    fields, known = tokenizer_fields(chat, rows, vocabulary), bool(vocabulary.pre)
    prompts = prompts_of(chat, conversations)
    with tempfile.TemporaryDirectory(prefix="ollama-tune-") as folder:
        probe = _Probe(Path(folder) / "probe.gguf", fields, rows, prompts, chat, stopped)
        best = _best(probe, _variants(chat, fields, name, known), known)
    _judge(best, len(prompts), chat, FEW if known else 0)
    return Probed(fields | best.variant.changes, best.variant.name, _check(best, chat, prompts))


def _variants(chat: ChatFormat, fields: Mapping[str, Any], name: str, known: bool) -> Iterator[_Variant]:
    """All settings worth a try, the likeliest first; each costs a load of the vocabulary."""
    bos, pre = bool(fields["tokenizer.ggml.add_bos_token"]), str(fields["tokenizer.ggml.pre"])
    begins = [bos, not bos] if chat.bos_token else [False]
    prefix = bool(fields["tokenizer.ggml.add_space_prefix"])
    if fields["tokenizer.ggml.model"] == "llama":
        names = _names(chat, fields, name)
        for begin, called, prefixed in itertools.product(begins, names, (prefix, not prefix)):
            yield _Variant(_changes(begin, prefixed, pre), called)
        return
    for begin in begins if known else ():
        yield _Variant(_changes(begin, prefix, pre), plain_name(name))
    for other in LOOK_ALIKES:
        if other != pre or not known:
            yield _Variant(_changes(bos, prefix, other), plain_name(name))


def _changes(begin: bool, prefixed: bool, pre: str) -> dict[str, Any]:
    return {
        "tokenizer.ggml.add_bos_token": begin,
        "tokenizer.ggml.add_space_prefix": prefixed,
        "tokenizer.ggml.pre": pre,
    }


def _names(chat: ChatFormat, fields: Mapping[str, Any], name: str) -> list[str]:
    """The plain name, and before it one that makes llama.cpp drop spaces where the tokenizer does."""
    strips = any(token.rstrip and token.special for token in chat.added_tokens.values())
    if not strips or not set(_STRIPPING_NEEDS) <= set(fields["tokenizer.ggml.tokens"]):
        return [plain_name(name)]
    return [name if _STRIPPING.search(name) else f"phi-3-{name}", plain_name(name)]


def _best(probe: _Probe, variants: Iterator[_Variant], known: bool) -> _Finding:
    """The first exact variant, else the one with the fewest faults.

    Where the rules are `known` by name the first one will do that has faults in unusual texts only.
    """
    findings: list[_Finding] = []
    failed: TuneError | None = None
    for variant in variants:
        try:
            finding = probe.ask(variant)
        except ExportStopped:
            raise
        except TuneError as error:
            failed = error
            continue
        if not finding.wrong or (known and not finding.chats and finding.texts <= FEW):
            return finding
        findings.append(finding)
    if not findings:
        assert failed is not None
        raise failed
    return min(findings, key=lambda finding: (finding.chats, finding.texts, len(finding.wrong)))


class _Probe:
    """The file that llama.cpp loads; what all variants share is packed once."""

    def __init__(
        self,
        path: Path,
        fields: Mapping[str, Any],
        rows: int,
        prompts: Sequence[Prompt],
        chat: ChatFormat,
        stopped: Stopped | None,
    ) -> None:
        self._path, self._rows, self._prompts = path, rows, prompts
        self._stopped = stopped
        self._bos, self._stop_ids = chat.bos_token or "", sorted(chat.stop_ids)
        self._packed = {key: _packed(value) for key, value in fields.items()}

    def ask(self, variant: _Variant) -> _Finding:
        """Load the vocabulary under these settings and compare every prompt."""
        own = _MODEL | {"general.name": variant.name, "llama.vocab_size": self._rows} | variant.changes
        _write(self._path, self._packed | {key: _packed(value) for key, value in own.items()}, self._rows)
        wrong, unrendered = [], []
        with LlamaServer(self._path, CONTEXT, self._stopped) as llama:
            for prompt in self._prompts:
                text = _rendered(llama, prompt, self._bos) if prompt.as_chat else None
                if prompt.as_chat and text is None:
                    unrendered.append(prompt)
                elif not _equal(llama, prompt, text):
                    wrong.append(prompt)
            deaf = tuple(i for i in self._stop_ids if not llama.complete([0], 2, forced=i).ended)
        return _Finding(variant, tuple(wrong), tuple(unrendered), deaf)


def _rendered(llama: LlamaServer, prompt: Prompt, bos: str) -> str | None:
    """The text that llama.cpp makes of the conversation, BOS aside; None if it is another or none."""
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    try:
        text = llama.render(turns)
    except ExportStopped:
        raise
    except TuneError:
        return None
    return text if text.removeprefix(bos) == prompt.text.removeprefix(bos) else None


def _equal(llama: LlamaServer, prompt: Prompt, text: str | None) -> bool:
    """Whether the prompt is read as in the training, and `text`, which llama.cpp rendered, if it is given."""
    as_text = llama.tokenize(prompt.text) == prompt.ids
    return as_text and (text is None or llama.tokenize(text, as_prompt=True) == prompt.ids)


_MODEL: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": CONTEXT,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": WIDTH,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
}


def _write(path: Path, packed: Mapping[str, bytes], rows: int) -> None:
    """A GGUF with these keys and weights of zeros, which take no room on the disk."""
    shapes = {"token_embd": (WIDTH, rows), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{part}_norm": (WIDTH,) for part in ("attn", "ffn")}
    squares = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{part}": (WIDTH, WIDTH) for part in squares}
    infos, size = [], 0
    for name, shape in shapes.items():
        infos.append(_text(f"{name}.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, size))
        size += int(np.prod(shape)) * 4
    head = struct.pack("<4sIQQ", b"GGUF", gguf.GGUF_VERSION, len(shapes), len(packed))
    keys = (_text(key) + value for key, value in packed.items())
    with path.open("wb") as file:
        file.writelines([head, *keys, *infos])
        file.truncate(gguf.GGUFWriter.ggml_pad(file.tell(), gguf.GGUF_DEFAULT_ALIGNMENT) + size)


def _packed(value: Any) -> bytes:
    """The type and value of a key; `gguf`'s own writer takes three times as long for large vocabularies."""
    kind = gguf.GGUFValueType
    if isinstance(value, bool):
        return struct.pack("<I?", kind.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", kind.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", kind.FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", kind.STRING) + _text(value)
    inner = (
        kind.STRING
        if isinstance(value[0], str)
        else kind.FLOAT32
        if isinstance(value[0], float)
        else kind.INT32
    )
    head = struct.pack("<IIQ", kind.ARRAY, inner, len(value))
    if inner is kind.STRING:
        return head + b"".join(map(_text, value))
    return head + np.array(value, dtype="<f4" if inner is kind.FLOAT32 else "<i4").tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(8, "little") + data


def _judge(best: _Finding, total: int, chat: ChatFormat, few: int) -> None:
    """Raise `TuneError` for what would make the tuned model useless; `few` texts may be wrong."""
    details = f"nearest: {dict(best.variant.changes)}, name {best.variant.name}; "
    if best.unrendered:
        raise TuneError(
            f"llama.cpp renders {len(best.unrendered)} conversations differently from the chat template that "
            "the model was trained with, or refuses them.",
            "Export the merged model and run it with transformers, or report the name of the base model.",
            details=details + repr(best.unrendered[0].text[:500]),
        )
    if too_many(best.wrong, few):
        example = next(prompt for prompt in best.wrong if not prompt.odd)
        raise TuneError(
            "llama.cpp cannot read text as this tokenizer does: under any of its settings "
            f"{len(best.wrong)} of {total} prompts become other tokens than in the training.",
            "Export the merged model and run it with transformers, or choose another base model.",
            details=details + repr(example.text[:500]),
        )
    end = turn_end(chat)
    if end in best.deaf or (best.deaf and end is None):
        raise TuneError(
            f"llama.cpp does not stop at {_listed(chat, best.deaf)}, so the tuned model would never stop.",
            OTHER_MODEL,
        )


def _check(best: _Finding, chat: ChatFormat, prompts: Sequence[Prompt]) -> Check:
    data = {
        "prompts": len(prompts),
        "wrong": len(best.wrong),
        "texts": best.texts,
        "endless": list(best.deaf),
    }
    figure = f"{len(prompts) - len(best.wrong)} of {len(prompts)}"
    harmless = not (best.texts or best.deaf or in_own_data(best.wrong))
    text = " ".join(_words(best, chat)) or "llama.cpp reads prompts as the training did, token by token."
    return Check("tokenizer", "pass" if harmless else "warn", figure, text, data)


def _words(best: _Finding, chat: ChatFormat) -> Iterator[str]:
    """What is not equal, and what to do about it."""
    if best.texts:
        yield f"llama.cpp cuts {best.texts} difficult texts differently from the training; try the model."
    if any(prompt.marks for prompt in best.wrong):
        yield (
            "Text with combining marks becomes other tokens in llama.cpp than in the training: compose "
            "characters (Unicode NFC), and expect weaker answers in scripts such as Hindi or Thai."
        )
    if any(prompt.edges for prompt in best.wrong):
        yield "The training dropped spaces at the edges of messages, llama.cpp does not: send none."
    if best.deaf:
        yield f"llama.cpp does not stop at {_listed(chat, best.deaf)}, which ends no turn in your data."


def _listed(chat: ChatFormat, ids: Ids) -> str:
    return one_line(", ".join(chat.decode((i,)) for i in ids), 100)
