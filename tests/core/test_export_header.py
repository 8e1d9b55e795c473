"""The keys of an exported file: each is compared, with what was asked for and with transformers' numbers."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import gguf
import numpy as np
import pytest

from ollama_tune.core.export.headercheck import check_header
from ollama_tune.core.export.values import Check

CASES: dict[str, tuple[Any, Any]] = {
    "general.architecture": ("llama", "qwen2"),
    "general.name": ("birds", "other"),
    "general.file_type": (int(gguf.LlamaFileType.MOSTLY_Q8_0), 0),
    "general.quantization_version": (gguf.GGML_QUANT_VERSION, 1),
    "tokenizer.chat_template": ("{{ messages }}", "{{ messages }} "),
    "tokenizer.ggml.tokens": (["a", "b"], ["a", "c"]),
    "tokenizer.ggml.scores": ([0.1, -1.0], [0.1, -2.0]),
    "tokenizer.ggml.add_bos_token": (False, True),
    "llama.block_count": (2, 3),
    "llama.attention.layer_norm_rms_epsilon": (1e-5, 1.0001e-5),
    "llama.rope.freq_base": (10000.0, 10001.0),
}
"""Of each key what is right, and something that is not."""
KEYS = {key: right for key, (right, _) in CASES.items()}
WRONG = {key: wrong for key, (_, wrong) in CASES.items()}
CONFIG = SimpleNamespace(num_hidden_layers=2, rms_norm_eps=1e-5, rope_parameters={"rope_theta": 10000.0})


def header(found: Mapping[str, Any], source: Mapping[str, Any], config: Any = CONFIG) -> Check:
    stored = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in found.items()}
    stored |= {k: [float(np.float32(x)) for x in v] for k, v in found.items() if k.endswith("scores")}
    family = SimpleNamespace(architecture=SimpleNamespace(name="llama"))
    exported: Any = SimpleNamespace(type="q8_0")
    own = {k: v for k, v in source.items() if not k.startswith("general.") and "template" not in k}
    template = KEYS["tokenizer.chat_template"]
    return check_header(
        stored, exported, cast(Any, SimpleNamespace(config=family, fields=own)), template, "birds", config
    )


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_file_is_compared(key: str) -> None:
    assert header(KEYS, KEYS).verdict == header(KEYS, KEYS, None).verdict == "pass"
    for found in (KEYS | {key: WRONG[key]}, {k: v for k, v in KEYS.items() if k != key}):
        check = header(found, KEYS)
        assert (check.verdict, check.data["wrong"]) == ("fail", [key])


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("llama.")])
def test_a_number_that_our_own_reading_has_wrong_too_fails_against_transformers(key: str) -> None:
    wrong = KEYS | {key: WRONG[key]}
    assert header(wrong, wrong).data["wrong"] == [key]
    assert header(wrong, wrong, None).verdict == "pass"
