"""A model whose loss really becomes infinite or no number when its adapter grows too far."""

from __future__ import annotations

import shutil
from pathlib import Path

LARGE = 1e19


def build_overflowing(model: Path, target: Path) -> Path:
    """A copy of a tiny model with a large norm before its last MLP and small weights in it: as it was.

    What the adapter adds there is not small: its gate times the rest overflows once both have grown. Trained
    by `tests.core.loop_parts` at a rate of 0.03 that is in the sixth step.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    for name, tensor in tensors.items():
        if "layers.1.post_attention_layernorm" in name:
            tensors[name] = tensor * LARGE
        elif "layers.1.mlp.gate_proj" in name or "layers.1.mlp.up_proj" in name:
            tensors[name] = tensor / LARGE
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target
