"""Proves the conversion itself: a tiny model of the same build, exported in 32 bit, must answer alike.

In a coarse type the rounding of the weights can hide a mistake in the build, such as rows in the wrong order,
and a mistake that the writer and the check of its tensors share shows in the answers alone. The twin has the
base's own config.json with less of everything, random weights that make every part count, and a random
adapter by the run's own adapter_config.json; transformers and PEFT compute with it on their side.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.export.adapter_config import CONFIG
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.reference import divergence
from ollama_tune.core.export.values import Check, ExportStopped, Stopped
from ollama_tune.core.export.wire import patiently
from ollama_tune.core.models.architectures import require_json
from ollama_tune.core.text import one_line

VOCABULARY = 320
LENGTH = 24
PLACES = (2, 7, 13, 23)
LARGEST = 1e-4
"""Mean KL in nats from which the builds differ. Right ones are below 1e-6 (at most 6e-6 for Gemma, whose GELU
is a table in 16 bit); a missing norm or a wrong order of rows gives 0.01 and far more."""


# Counts of a configuration and how many are enough: six layers show every pattern of layers that exists.
_LESS = {
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
_A_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")


def check_structure(base: Path, adapter: Path | None, chat: ChatFormat, stopped: Stopped) -> Check:
    """The check `structure`; `skipped` where the base cannot be made smaller without being another build."""
    with tempfile.TemporaryDirectory(prefix="ollama-tune-", ignore_cleanup_errors=True) as folder:
        left = threading.Event()

        def build() -> list[dict[int, float]]:
            """After a stop this goes on for a moment, and clears away what it wrote since."""
            try:
                return _build(base, adapter, Path(folder))
            finally:
                if left.is_set():
                    shutil.rmtree(folder, ignore_errors=True)

        try:
            truth = patiently(build, stopped, cancel=left.set)
            distances = _distances(Path(folder), adapter is not None, chat, truth, stopped)
        except ExportStopped:
            raise
        except Exception as error:  # whatever a strange configuration makes of transformers and PEFT
            text = f"No smaller model of this build can be made here ({one_line(str(error), 120)})."
            return Check("structure", "skipped", "-", f"{text} The other checks stand alone.")
    mean = sum(distances) / len(distances)
    data = {"kl": round(mean, 9), "kl_fails_from": LARGEST, "places": len(distances)}
    if not mean < LARGEST:
        text = (
            "A tiny model of the same build answers otherwise in llama.cpp than in transformers. Do not use "
            "the file; report the model's name, and export with another version of ollama-tune."
        )
        return Check("structure", "fail", f"KL {mean:.2g}", text, data)
    text = "A tiny model of the same build and adapter, in 32 bit, answers in llama.cpp as in transformers."
    return Check("structure", "pass", f"KL {mean:.2g}", text, data)


def _distances(
    folder: Path, adapted: bool, chat: ChatFormat, truth: Sequence[dict[int, float]], stopped: Stopped
) -> list[float]:
    adapter = folder / "adapter" if adapted else None
    exported = export_gguf(
        folder, adapter, folder / "twin.gguf", "f32", None, stopped, chat=chat, tokenizer=_tokenizer()
    )
    with LlamaServer(exported.path, 2 * LENGTH, stopped) as llama:
        found = [llama.top(_ids()[: place + 1], VOCABULARY, 5) for place in PLACES]
    return [divergence(*pair) for pair in zip(truth, found, strict=True)]


def _ids() -> list[int]:
    return [(7 + 37 * i) % (VOCABULARY - 64) for i in range(LENGTH)]


def _build(base: Path, adapter: Path | None, folder: Path) -> list[dict[int, float]]:
    """Write the twin and its adapter into `folder`; returns its log-probabilities after each of `PLACES`."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    text = json.dumps(_smaller(require_json(base / "config.json")))
    (folder / "config.json").write_text(text)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]), _quiet(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, trust_remote_code=False
        )
        _shake(model.named_parameters(), 1.2 / math.sqrt(config.hidden_size))
        model.eval().save_pretrained(folder)
        (folder / "config.json").write_text(text)  # as the base spells it, not as this transformers would
        if adapter is not None:
            model = _adapted(model, adapter, folder / "adapter")
        logits = model.eval()(input_ids=torch.tensor([_ids()])).logits[0]
    rows = logits[list(PLACES)].log_softmax(-1).tolist()
    return [dict(enumerate(row)) for row in rows]


def _smaller(config: dict[str, Any]) -> dict[str, Any]:
    """The same build with less of everything; heads keep their width, which the position encoding needs."""
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    grouped = (config.get("num_key_value_heads") or heads) != heads
    small = config | {key: min(config[key], most) for key, most in _LESS.items() if config.get(key)}
    count = small["num_attention_heads"]
    small |= {"hidden_size": count * width, "vocab_size": VOCABULARY, "dtype": "float32"}
    if config.get("num_key_value_heads"):
        small["num_key_value_heads"] = count // 2 if grouped and count > 1 else count
    for key in _A_LAYER:
        if isinstance(config.get(key), list):
            small[key] = config[key][: small["num_hidden_layers"]]
    small |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {key: value for key, value in small.items() if key != "torch_dtype"}


def _shake(parameters: Iterator[tuple[str, torch.nn.Parameter]], spread: float) -> None:
    """Random numbers everywhere, so that every part of the build shows in the answers."""
    for _, weight in parameters:
        if weight.dim() == 1:
            weight.add_(torch.randn_like(weight) * 0.2)
        else:
            weight.normal_(0, spread)


def _adapted(model: Any, adapter: Path, folder: Path) -> Any:
    """A random adapter with the settings of the run's, so that its arithmetic is PEFT's own."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig.from_pretrained(str(adapter))
    config.inference_mode, config.init_lora_weights = False, True
    count = model.config.get_text_config().num_hidden_layers
    kept = [layer for layer in config.layers_to_transform or () if layer < count]
    config.layers_to_transform, config.layers_pattern = kept or None, config.layers_pattern if kept else None
    tuned = get_peft_model(model, config)
    for _, weight in tuned.named_parameters():
        if weight.requires_grad:
            weight.add_(torch.randn_like(weight) * (0.3 / math.sqrt(weight.shape[-1])))
    tuned.save_pretrained(str(folder), save_embedding_layers=False)
    if not (folder / CONFIG).is_file():
        raise ValueError("PEFT saved no adapter")
    return tuned


class _quiet(warnings.catch_warnings):
    """PEFT and transformers warn of what is meant here: a model made of nothing."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        return found


def _tokenizer() -> dict[str, Any]:
    """Keys of a byte-level vocabulary for a model that is only ever asked by token ids."""
    marks = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in marks] + [chr(256 + i) for i in range(256 - len(marks))]
    names = ["ab", *(f"[{i}]" for i in range(VOCABULARY - len(letters) - 1))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": letters + names,
        "tokenizer.ggml.token_type": [1] * (len(letters) + 1) + [3] * (len(names) - 1),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": VOCABULARY - 2,
        "tokenizer.ggml.eos_token_id": VOCABULARY - 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
