"""What the tuned model's linear layers are fed with: the importance matrix of a later 4- to 6-bit export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.files import write_atomic

if TYPE_CHECKING:
    import torch

SLICE = 512
"""Tokens that are squared at once; bounds the memory this takes."""
MIN_TOKENS = 1000
"""Below so many tokens the figures are more chance than knowledge, and nothing is written."""


class LayerInputs:
    """Sums up the squared inputs of each linear layer, per column.

    `observe` is what a path's `watched` takes. The head is left out: it keeps 6 bit or more in every type,
    and the loss feeds it in parts.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens most layers were seen with."""
        return max(self._counts.values(), default=0)

    def write(self, path: Path) -> None:
        """Write the mean of each column's squared input, float32, under the name of its layer.

        A layer whose inputs overflowed is left out; too few tokens write nothing and remove an older file.
        """
        from safetensors.torch import save

        if self.tokens < MIN_TOKENS:
            path.unlink(missing_ok=True)
            return
        means = {name: (total / self._counts[name]).cpu() for name, total in self._sums.items()}
        finite = {name: mean for name, mean in means.items() if bool(mean.isfinite().all())}
        write_atomic(path, save(finite, {"tokens": str(self.tokens)}))

    def packed(self) -> bytes:
        """The sums, for the process that adds those of all; layers with one input shared theirs so far."""
        from safetensors.torch import save

        counts = {name: str(count) for name, count in self._counts.items()}
        return save({name: total.to("cpu", copy=True) for name, total in self._sums.items()}, counts)

    def add(self, packed: bytes) -> None:
        """Take in what another process has seen of other rows."""
        from safetensors.torch import load

        length = int.from_bytes(packed[:8], "little")
        counts = json.loads(packed[8 : 8 + length]).get("__metadata__", {})
        for name, total in load(packed).items():
            here = self._sums.get(name)
            self._sums[name] = total if here is None else here + total.to(here.device)
            self._counts[name] = self._counts.get(name, 0) + int(counts[name])

    def observe(self, name: str, inputs: torch.Tensor) -> None:
        """Take in the inputs (tokens x width) of a layer."""
        found = self._squares(inputs)
        self._sums[name] = self._sums[name] + found if name in self._sums else found
        self._counts[name] = self._counts.get(name, 0) + len(inputs)

    def _squares(self, inputs: torch.Tensor) -> torch.Tensor:
        """The sum over the tokens; query, key and value read the same tensor, which is summed once.

        A square overflows in float16 and not in bfloat16, whose precision is enough here.
        """
        import torch

        if self._last is None or self._last[0] is not inputs:
            dtype = torch.bfloat16 if inputs.dtype == torch.bfloat16 else torch.float32
            total = torch.zeros(inputs.shape[-1], device=inputs.device)
            for part in inputs.detach().split(SLICE):  # type: ignore[no-untyped-call]
                total += part.to(dtype).square().sum(0, dtype=torch.float32)
            self._last = (inputs, total)
        return self._last[1]
