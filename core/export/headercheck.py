"""Compares the keys of an exported file with what was asked for, and its numbers with transformers'."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import gguf

from ollama_tune.core.export.gguf import Exported, Source
from ollama_tune.core.export.mix import FILE_TYPES
from ollama_tune.core.export.values import Check
from ollama_tune.core.text import one_line

# A key after the architecture -> the attribute of a transformers configuration it must equal. These go round
# our own reading of config.json, so that a mistake there shows.
_ORACLE: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}


def check_header(
    fields: Mapping[str, Any],
    exported: Exported,
    source: Source,
    template: str,
    name: str | None,
    config: Any,
) -> Check:
    """The check `metadata`: the type, the name, the tokenizer, the template byte for byte, every number.

    `fields` are the file's keys, `template` the chat template it should carry, `config` transformers'
    configuration of the base, or None where transformers cannot read it.
    """
    wanted: dict[str, Any] = {
        **source.fields,
        "general.architecture": source.config.architecture.name,
        "general.file_type": int(FILE_TYPES[exported.type].number),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "tokenizer.chat_template": template,
    }
    if name is not None:
        wanted["general.name"] = name
    wrong = [key for key, value in wanted.items() if not _same(fields.get(key), value)]
    wrong += _against_transformers(fields, source.config.architecture.name, config)
    wrong = list(dict.fromkeys(wrong))
    return Check(
        "metadata",
        "fail" if wrong else "pass",
        f"{len(wanted) - len(wrong)} of {len(wanted)}",
        f"Not as they should be: {one_line(', '.join(wrong), 200)}. Export again; report it if it stays so."
        if wrong
        else "Type, name, tokenizer, chat template and the model's numbers are those of the tuned model.",
        {"keys": len(wanted), "wrong": wrong},
    )


def _same(found: Any, wanted: Any) -> bool:
    """Equal as a GGUF holds it: 32-bit floats, lists by their elements."""
    if isinstance(wanted, float) and isinstance(found, float):
        return found == wanted or found == _single(wanted)
    if isinstance(wanted, list) and isinstance(found, list):
        floats = bool(wanted) and isinstance(wanted[0], float)
        return found == ([_single(value) for value in wanted] if floats else wanted)
    return bool(found == wanted)


def _single(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _against_transformers(fields: Mapping[str, Any], architecture: str, config: Any) -> Iterator[str]:
    """Keys whose number is another one than transformers computes with."""
    for suffix, attribute in _ORACLE.items():
        key = f"{architecture}.{suffix}"
        wanted, found = getattr(config, attribute, None), fields.get(key)
        if isinstance(wanted, int | float) and found is not None and not _close(found, wanted):
            yield key
    rope, key = getattr(config, "rope_parameters", None), f"{architecture}.rope.freq_base"
    if isinstance(rope, Mapping) and key in fields:
        bases = _rope_bases(rope)
        if bases and not any(_close(fields[key], base) for base in bases):
            yield key


def _rope_bases(rope: Mapping[str, Any]) -> list[float]:
    """The base frequency, or those of each kind of layer."""
    parts = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    return [float(part["rope_theta"]) for part in parts if part.get("rope_theta")]


def _close(found: Any, wanted: float) -> bool:
    """Equal to a 32-bit float's precision; a list (one number a layer) if all of them are."""
    values = found if isinstance(found, list) else [found]
    return all(
        isinstance(value, int | float) and math.isclose(value, wanted, rel_tol=1e-6) for value in values
    )
