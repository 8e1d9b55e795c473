"""Telling what ran out (memory, with figures, or the disk) or broke (the GPU); freeing memory.

Imports torch only where it is used, so that a worker can ask before it is loaded.
"""

from __future__ import annotations

import gc
import re
import sys
from dataclasses import dataclass
from typing import Any

import psutil

from ollama_tune.core.files import DISK_FULL
from ollama_tune.core.machine.host import read_memory
from ollama_tune.core.train.housekeeping import return_freed_memory

NEED_LESS = "Start a run with a smaller batch_size or sequence_length, or with gradient_checkpointing."
"""What helps where no rung of the ladder can be taken."""
_KINDS = {"MemoryError", "OutOfMemoryError"}
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Error out of memory",
)
_NO_ROOM = re.compile(r"os error (28|122)\b|No space left on device|Disk quota exceeded")
_BROKEN = re.compile(r"(CUDA|HIP|NCCL|CUBLAS|cuDNN|CUDNN) ?(driver )?(error|failure|_STATUS_)[\w: -]*")
_WISH = re.compile(r"[Tt]ried to allocate ([\d.]+ ?[KMGT]?i?(?:B|bytes))")


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's, the GPU allocator's, the CPU allocator's and the CUDA libraries' ways to say it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _KINDS) or any(word in str(error) for word in _WORDS)


def is_disk_full(error: BaseException) -> bool:
    """True where a file could not be written for want of room or quota, as Python or safetensors says it."""
    causes = [each for each in (error, error.__cause__) if each is not None]
    return any(getattr(each, "errno", None) in DISK_FULL or _NO_ROOM.search(str(each)) for each in causes)


def device_failure(error: BaseException) -> str | None:
    """The driver's words for what broke on the GPU, after which this process can compute no more; else None.

    Only the words up to the first punctuation: what follows may be anything.
    """
    if is_out_of_memory(error):
        return None
    found = _BROKEN.search(str(error))
    return found.group(0) if found else None


def free_memory() -> None:
    """Give back what nothing refers to any more. To be called outside the `except` block that caught the
    error: inside it the traceback keeps the tensors of every frame alive."""
    gc.unfreeze()
    gc.collect()
    return_freed_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def halved(rows: int) -> int:
    """The next smaller micro-batch."""
    return max((rows + 1) // 2, 1)


@dataclass(frozen=True)
class Shortage:
    """Figures of the moment when memory ran out, in bytes; `wish` is the allocator's text or None."""

    allocated: int
    free: int
    wish: str | None

    @classmethod
    def of(cls, error: BaseException, device: str) -> Shortage:
        """Read them before anything is freed; of the message only the size is taken, never its text."""
        found = _WISH.search(str(error))
        wish = found.group(1) if found else None
        if device == "cuda":
            import torch

            return cls(torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0], wish)
        return cls(psutil.Process().memory_info().rss, read_memory()[0], wish)


class Offload:
    """Keeps what the forward pass saves for backward in the computer's memory (a saved-tensor hook).

    Unlike torch's `save_on_cpu` it leaves the model's own weights where they are: every frozen linear
    layer saves its weight for backward, which would be copied to and fro in each step.
    """

    SMALL = 1 << 16

    def __init__(self, model: Any) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def hooks(self) -> Any:
        """The context in which a window is computed."""
        from torch.autograd.graph import saved_tensors_hooks

        return saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Any) -> tuple[Any, Any]:
        own = tensor.untyped_storage().data_ptr() in self._own
        if own or tensor.numel() * tensor.element_size() < self.SMALL:
            return None, tensor
        return tensor.device, self.to_host(tensor)

    def _unpack(self, packed: tuple[Any, Any]) -> Any:
        device, tensor = packed
        return tensor if device is None else self.to_device(tensor, device)

    def to_host(self, tensor: Any) -> Any:
        """A copy in the computer's memory."""
        return tensor.to("cpu", copy=True)

    def to_device(self, tensor: Any, device: Any) -> Any:
        """The copy back on the device that computes."""
        return tensor.to(device)
