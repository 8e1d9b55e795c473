"""How much of a GPU's arithmetic a run uses (MFU): useful arithmetic against the card's published rate."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Gpu
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.cards import find_card
from ollama_tune.core.plan.duration import token_flops
from ollama_tune.core.plan.settings import Settings

TFLOPS = 1e12
MATRIX_UNITS = ("bfloat16", "float16")


@dataclass(frozen=True)
class Utilisation:
    """What a share of the card's rate is made of.

    `flops_per_token` counts forward and backward of LoRA: two operations a weight in each, the head on
    supervised tokens, attention to the tokens before; never the gradients of frozen weights, padding, or what
    is computed a second time. `peak_flops` is the card's dense 16-bit rate, of a MIG instance its share.
    """

    flops_per_token: float
    peak_flops: float
    card: str

    def share(self, useful_tokens: float, seconds: float) -> float | None:
        """The share of the card's rate, from 0 to 1, that so many useful tokens in that time mean."""
        if seconds <= 0:
            return None
        return useful_tokens * self.flops_per_token / seconds / self.peak_flops


def utilisation(settings: Settings, spec: ModelSpec, lengths: Lengths, gpu: Gpu | None) -> Utilisation | None:
    """The figures for a run's rows, or None where no published rate belongs to its arithmetic.

    That is so on a CPU, on a card that is not in the list, and for float32.
    """
    training = settings.training
    card = find_card(gpu.name) if gpu is not None and training.device == "cuda" else None
    if gpu is None or card is None or training.compute_dtype not in MATRIX_UNITS:
        return None
    once = settings.with_value("training.gradient_checkpointing", "none")
    part = min(gpu.total / (card.mib << 20), 1.0) if gpu.mig else 1.0
    return Utilisation(sum(token_flops(once, spec, lengths)), card.teraflops * TFLOPS * part, card.name)
