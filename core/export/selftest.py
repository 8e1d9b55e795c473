"""Whether llama.cpp loads a file here and K-quants can be made, for `ollama-tune doctor`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.doctor import Check, fail, ok
from ollama_tune.core.text import one_line

REINSTALL = "Install it again: pip install --force-reinstall xllamacpp; training works without it."
WIDTH, TOKENS = 32, 8


def quantizer() -> Iterator[Check]:
    """Whether ggml's quantizer for the 4- to 6-bit types is there and rounds as it must."""
    from ollama_tune.core.export.ggml import obstacle

    why = obstacle()
    if why:
        yield fail(why.removesuffix("."), "Choose the type q8_0, or type: pip install libgguf")
    else:
        yield ok("4- to 6-bit types can be made")


def llama() -> Iterator[Check]:
    """Load a file of a few numbers in llama.cpp and ask it for a token."""
    from ollama_tune.core.export.llama import LlamaServer

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.gguf"
        _write(file)
        try:
            with LlamaServer(file, 64) as server:
                answer = server.complete([3, 4, 5], 1)
        except TuneError as error:
            last = one_line(error.details.strip().splitlines()[-1], 100) if error.details.strip() else ""
            yield fail(error.what.removesuffix(".") + (f" ({last})" if last else ""), REINSTALL)
            return
    if len(answer.ids) == 1 and 0 <= answer.ids[0] < TOKENS:
        yield ok("a tiny model is loaded and answers")
    else:
        yield fail("a tiny model gives no token", REINSTALL)


def _write(file: Path) -> None:
    """A Llama of one layer and eight tokens with random weights."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(2)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"t{n}".encode() for n in range(TOKENS - 3))])
    writer.add_token_scores([0.0] * TOKENS)
    writer.add_token_types([2, 3, 3, *[1] * (TOKENS - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    chance = np.random.default_rng(0)
    for name, shape in _shapes().items():
        values = np.ones(shape) if len(shape) == 1 else chance.normal(0, 0.1, shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes() -> dict[str, tuple[int, ...]]:
    square, up = (WIDTH, WIDTH), (2 * WIDTH, WIDTH)
    layer = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_gate": up, "ffn_up": up, "ffn_down": up[::-1]}
    layer |= {f"attn_{name}": square for name in ("q", "k", "v", "output")}
    ends = {"token_embd": (TOKENS, WIDTH), "output": (TOKENS, WIDTH), "output_norm": (WIDTH,)}
    return {f"{k}.weight": v for k, v in ends.items()} | {f"blk.0.{k}.weight": v for k, v in layer.items()}
