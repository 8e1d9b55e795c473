"""Proves an exported file: tensors against base + adapter, llama.cpp's words against transformers'."""

from __future__ import annotations

import gc
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.answercheck import GATES, check_answers, check_distribution
from ollama_tune.core.export.gguf import Exported, Source, open_source
from ollama_tune.core.export.header import read_header
from ollama_tune.core.export.headercheck import check_header
from ollama_tune.core.export.importance import Importance
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.merge import open_merged
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.mix import choose_types
from ollama_tune.core.export.probes import CONVERSATIONS
from ollama_tune.core.export.prompts import Conversation, prompts_of
from ollama_tune.core.export.reference import PROMPTS, TOKENS, Position, ReferenceAnswer, places
from ollama_tune.core.export.template import exported_template
from ollama_tune.core.export.tensorcheck import check_tensors
from ollama_tune.core.export.textcheck import (
    Encode,
    check_chats,
    check_template,
    check_tokens,
    rendered,
)
from ollama_tune.core.export.values import Check, ExportStopped, Progress, Stopped, Verification, worst
from ollama_tune.core.export.wire import patiently
from ollama_tune.core.models.weights import weight_names
from ollama_tune.core.text import human_bytes, one_line

ROOM = 1.3
"""Memory that computing takes, over that of the weights."""
SMALL = 4 << 30
"""Bytes of 16-bit weights up to which a CPU answers a few questions in a minute or two."""
_EMBEDDING = "model.embed_tokens.weight"


def verify(
    exported: Exported,
    base: Path,
    adapter: Path | None,
    reference: Sequence[ReferenceAnswer],
    *,
    chat: ChatFormat | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    name: str | None = None,
    importance: Path | None = None,
    conversations: Sequence[Conversation] = (),
    slack: float = 0.0,
    max_new_tokens: int = 64,
    progress: Progress | None = None,
    stopped: Stopped | None = None,
) -> Verification:
    """Compare the file with the tuned model; never raises for a bad file, but says `fail` and why.

    `reference` holds the tuned model's answers (`read_reference` or `compute_reference`), made with
    `max_new_tokens`; `conversations` are held-out prompts to render. `tokenizer`, `name` and `importance`
    are what `export_gguf` was given. `slack` (nats) widens the KL gates for a reference made in 4 bit.
    """
    chat = chat or ChatFormat.from_folder(base)
    chats = [*CONVERSATIONS, *conversations[: 2 * PROMPTS]]
    prompts = prompts_of(chat, conversations[: 2 * PROMPTS])
    library = patiently(lambda: _Library(base), stopped)
    matrix = Importance.read(importance) if importance is not None and exported.importance else None
    with open_source(base, adapter, chat, tokenizer) as source:
        asked = sum(len(answer.positions) + 1 for answer in reference)
        total = len(source.plans) + len(prompts) + len(chats) + asked
        meter = Meter(total, progress, stopped)
        checks = list(_file_checks(exported, source, chat, name, library.config, matrix, meter))
    longest = max((len(answer.prompt_ids) for answer in reference), default=0) + max_new_tokens
    try:
        with LlamaServer(exported.path, longest + 8, stopped) as llama:
            checks.append(check_tokens(llama, prompts, library.encode, meter))
            checks += [*check_chats(llama, chat, chats, meter), *check_template(chat)]
            checks.append(check_distribution(llama, chat, reference, GATES[exported.type], slack, meter))
            checks += check_answers(llama, chat, reference, max_new_tokens, meter)
    except ExportStopped:
        raise
    except TuneError as error:
        words = f"{error.what} {error.fix} {one_line(error.details[-300:], 300)}".strip()
        checks.append(Check("llama.cpp", "fail", "no answer", words))
    meter.finish()
    found = tuple(checks)
    return Verification(
        worst(found), found, exported.path.name, exported.sha256, exported.bytes, exported.type
    )


def _file_checks(
    exported: Exported,
    source: Source,
    chat: ChatFormat,
    name: str | None,
    config: Any,
    importance: Importance | None,
    meter: Meter,
) -> Iterator[Check]:
    """What the file itself shows, without running it: its size and end, its keys, its tensors."""
    try:
        header = read_header(exported.path)
        types = choose_types(source.plans, source.config, exported.type, exported.importance)
        yield check_header(header.fields, exported, source, exported_template(chat), name, config)
        yield from check_tensors(header.tensors, source, types, importance, meter.step)
    except ExportStopped:
        raise
    except (OSError, ValueError, KeyError, struct.error) as error:
        text = (
            f"The file cannot be read as GGUF: {one_line(str(error), 200)}. Check the disk and export again."
        )
        yield Check("tensors", "fail", "unreadable", text)


class _Library:
    """What transformers makes of the base's files; None where it has no use for them."""

    def __init__(self, base: Path) -> None:
        self.encode = _transformers_tokenizer(base)
        self.config = _transformers_config(base)


def _transformers_tokenizer(base: Path) -> Encode | None:
    """The training never asks it; it is an independent reader of the same files."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, ImportError):
        return None
    return lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _transformers_config(base: Path) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, ImportError):
        return None
    return config.get_text_config()


def compute_reference(
    base: Path,
    adapter: Path | None,
    chat: ChatFormat,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    stopped: Stopped = lambda: False,
    *,
    longest: int | None = None,
) -> tuple[ReferenceAnswer, ...]:
    """What the tuned model answers, computed now by transformers and PEFT from base + adapter.

    Prompts of more than `longest` tokens are left out. Raises `TuneError` where the model does not fit
    into memory or PEFT cannot read the adapter; nothing of the model stays in memory.
    """
    usable = [messages for messages in conversations if rendered(chat, messages) is not None]
    asked = (chat.prompt_ids(messages) for messages in usable)
    prompts = [ids for ids in asked if longest is None or len(ids) <= longest][:PROMPTS]

    def answer(generator: Any) -> tuple[ReferenceAnswer, ...]:
        answers = generator.greedy(prompts, max_new_tokens, tuned=True, stopped=stopped)
        made = []
        for prompt, found in zip(prompts, answers, strict=True):
            empty = tuple(Position(place, {}) for place in places(len(found.ids)))
            made.append(ReferenceAnswer(tuple(prompt), found.ids, found.text, found.ended, empty))
        return tuple(_filled(generator, answer, stopped) for answer in made)

    return _ask(base, adapter, chat, answer, stopped)


def recompute(
    base: Path,
    adapter: Path | None,
    chat: ChatFormat,
    reference: Sequence[ReferenceAnswer],
    stopped: Stopped = lambda: False,
) -> tuple[ReferenceAnswer, ...]:
    """The same answers with the probabilities that base + adapter give in 16 bit or more at the same places.

    For a reference that was made on 4-bit weights; errors are those of `compute_reference`.
    """
    return _ask(
        base, adapter, chat, lambda model: tuple(_filled(model, a, stopped) for a in reference), stopped
    )


def is_cheap(base: Path) -> bool:
    """Whether `recompute` takes seconds and memory that is there: a GPU with room, or a small model."""
    try:
        device, _ = _placement(base)
    except TuneError:
        return False
    return device == "cuda" or _size(base) <= SMALL


def _filled(generator: Any, answer: ReferenceAnswer, stopped: Stopped) -> ReferenceAnswer:
    """The answer with the probabilities at its places, by the model of `generator`."""
    if stopped():
        raise ExportStopped
    at = [len(answer.prompt_ids) - 1 + position.index for position in answer.positions]
    tops = generator.top_tokens((*answer.prompt_ids, *answer.answer_ids), at, TOKENS)
    found = zip(answer.positions, tops, strict=True)
    return replace(answer, positions=tuple(Position(old.index, dict(top)) for old, top in found))


def _ask(
    base: Path,
    adapter: Path | None,
    chat: ChatFormat,
    question: Callable[[Any], tuple[ReferenceAnswer, ...]],
    stopped: Stopped,
) -> tuple[ReferenceAnswer, ...]:
    """Load the tuned model, ask it, and free it; loading does not outlast a stop by more than a moment."""
    from ollama_tune.core.evaluate.general_engine import GeneralEngine
    from ollama_tune.core.evaluate.generate import Generator

    placement = _placement(base)

    def answer() -> tuple[ReferenceAnswer, ...]:
        return question(Generator(GeneralEngine(_tuned_model(base, adapter, *placement)), chat))

    try:
        return patiently(answer, stopped)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise TuneError(
            f"Transformers and PEFT cannot compute with this adapter on this base ({type(error).__name__}).",
            "Check that the two belong together.",
            details=str(error)[:2000],
        ) from error
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _size(base: Path) -> int:
    return sum((base / name).stat().st_size for name in weight_names(base))


def _placement(base: Path) -> tuple[str, torch.dtype]:
    """On a GPU with room in bfloat16; on the CPU in 32 bit where that fits, else in 16; else `TuneError`."""
    size, free = _size(base), psutil.virtual_memory().available
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > ROOM * size:
        return "cuda", torch.bfloat16
    if 2 * ROOM * size < free:
        return "cpu", torch.float32
    if ROOM * size < free:
        return "cpu", torch.bfloat16
    raise TuneError(
        f"Computing the tuned model's answers needs {human_bytes(int(ROOM * size))} of memory, "
        f"and {human_bytes(free)} are free.",
        "Close other programs and export again.",
    )


def _tuned_model(base: Path, adapter: Path | None, device: str, dtype: torch.dtype) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        device_map={"": device},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    if adapter is None:
        return model.eval()
    with open_merged(base, adapter) as merged:
        rows = merged.shapes[_EMBEDDING][0] if _EMBEDDING in merged.shapes else 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        if rows and rows != model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(rows, mean_resizing=False)
        return PeftModel.from_pretrained(model, str(adapter), local_files_only=True).eval()
