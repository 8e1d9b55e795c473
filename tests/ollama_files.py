"""GGUF files that Ollama can read but nobody can run: enough for the protocol."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

COMMENT = "{# " + "This comment keeps the template away from all others. " * 4 + "#}\n"
TEMPLATE = COMMENT + (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(
    path: Path,
    size: int = 3_000_000,
    *,
    template: str = TEMPLATE,
    architecture: str = "llama",
    file_type: int = 7,
) -> Path:
    """A file with its metadata and one tensor of about `size` bytes."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_file_type(file_type)
    writer.add_chat_template(template)
    numbers = np.arange(size // 4, dtype=np.uint32).view(np.float32)
    writer.add_tensor("token_embd.weight", np.nan_to_num(numbers).reshape(1, -1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
