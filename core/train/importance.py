"""What the tuned model's linear layers are fed with: the importance matrix of a later 4- to 6-bit export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ollama_tune.core.files import write_atomic

SLICE = 512
"""Tokens that are squared at once; bounds the memory this takes."""
MIN_TOKENS = 1000
"""Below so many tokens the figures are more chance than knowledge, and nothing is written."""

# A layer that an adapter wraps, under the name that the layer has without it.
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save\.\w+)$")


class LayerInputs:
    """Sums up the squared inputs of each linear layer, per column, while it is entered.

    `causal` is the model under the adapter; without `wanted` nothing is done. The layers are hooked as they
    are, wrapped by PEFT or held in 4 bit by bitsandbytes; only tokens that the attention mask of the call
    marks as real are counted. The head is left out: it keeps 6 bit or more in every type, and the loss feeds
    it in parts. So are stacked experts: each sees too few of the held-out tokens.
    """

    def __init__(self, causal: Any, wanted: bool = True) -> None:
        self._causal, self._wanted = causal, wanted
        self._sums: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []
        self._real = torch.empty(0)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        self.tokens = 0

    def __enter__(self) -> LayerInputs:
        if not self._wanted:
            return self
        decoder = self._causal.base_model
        self._handles.append(decoder.register_forward_pre_hook(self._begin, with_kwargs=True))
        head = set(self._causal.get_output_embeddings().modules())
        for name, module in self._causal.named_modules():
            if isinstance(module, torch.nn.Linear) and module not in head and ".lora_" not in name:
                self._handles.append(module.register_forward_pre_hook(self._hook(_WRAPPED.sub("", name))))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._real, self._last = torch.empty(0), None

    def write(self, path: Path) -> None:
        """Write the mean of each column's squared input, float32, under the name of its layer.

        A layer whose inputs overflowed is left out; too few tokens write nothing and remove an older file.
        """
        if self.tokens < MIN_TOKENS:
            path.unlink(missing_ok=True)
            return
        means = {name: (total / self.tokens).cpu() for name, total in self._sums.items()}
        finite = {name: mean for name, mean in means.items() if bool(mean.isfinite().all())}
        write_atomic(path, save(finite, {"tokens": str(self.tokens)}))

    def _begin(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """A new batch: 1 for its real tokens, 0 for padding."""
        self._real, self._last = kwargs["attention_mask"].reshape(-1), None
        self.tokens += int(self._real.sum())

    def _hook(self, name: str) -> Any:
        def add(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].numel() != len(self._real) * args[0].shape[-1]:
                return  # not one input a token
            found = self._squares(args[0])
            self._sums[name] = self._sums[name] + found if name in self._sums else found

        return add

    def _squares(self, inputs: torch.Tensor) -> torch.Tensor:
        """The sum over the real tokens; query, key and value read the same tensor, which is summed once.

        A square overflows in float16 and not in bfloat16, whose precision is enough here.
        """
        if self._last is None or self._last[0] is not inputs:
            rows = inputs.detach().reshape(-1, inputs.shape[-1])
            dtype = torch.bfloat16 if rows.dtype == torch.bfloat16 else torch.float32
            total = torch.zeros(rows.shape[-1], device=rows.device)
            for start in range(0, len(rows), SLICE):
                part = rows[start : start + SLICE].to(dtype)
                total += self._real[start : start + SLICE].to(dtype) @ part.square()
            self._last = (inputs, total)
        return self._last[1]
