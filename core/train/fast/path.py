"""The fast path as the loop sees it: this project's own model, adapter, streams of rows and answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.blueprint import Blueprint, read_blueprint
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.plan.paths import PathName
from ollama_tune.core.plan.settings import Recompute, TrainingSettings
from ollama_tune.core.train.fast.adapter import Adapter, new_adapter, read_adapter
from ollama_tune.core.train.fast.model import FastModel
from ollama_tune.core.train.fast.stream import Stream, lay_stream
from ollama_tune.core.train.fast.weights import BaseWeights, Progress, load_weights
from ollama_tune.core.train.path import STEPS_DOWN, Observe, remembered

if TYPE_CHECKING:
    from ollama_tune.core.train.fast.decode import FastEngine
    from ollama_tune.core.train.path import Engine

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""By which share the loss of the same rows may differ between two layouts: rounding, and nothing more."""


def make_fast(
    folder: Path,
    training: TrainingSettings,
    name: str,
    progress: Progress | None = None,
    reason: str = "",
) -> FastPath:
    """Load the model of a folder and put a fresh adapter on it; `name` is what that says its base is.

    `progress` gets the bytes read and all bytes. Raises `TuneError` for a model that the fast path does not
    compute, for damaged weights, and where the settings ask for a GPU that is not there.
    """
    blueprint = read_blueprint(read_json(folder / "config.json") or {})
    weights = _load(folder, blueprint, training, progress)
    adapter = new_adapter(blueprint, training)
    return FastPath(FastModel(blueprint, weights, adapter), adapter, training, name, reason)


def load_engine(folder: Path, training: TrainingSettings, adapter: Path | None) -> FastEngine:
    """What answers with the model of a folder and a finished adapter on it, if there is one.

    Raises `TuneError` where the fast path does not compute one of the two.
    """
    from ollama_tune.core.train.fast.decode import FastEngine

    blueprint = read_blueprint(read_json(folder / "config.json") or {})
    finished = read_adapter(blueprint, adapter, training.device) if adapter else None
    return FastEngine(FastModel(blueprint, _load(folder, blueprint, training, None), finished))


def _load(
    folder: Path, blueprint: Blueprint, training: TrainingSettings, progress: Progress | None
) -> BaseWeights:
    if training.device == "cuda" and not torch.cuda.is_available():
        raise TuneError(
            "The settings ask for a GPU, but torch finds none.",
            "Set training.device to cpu, or install a torch build for this GPU's driver.",
        )
    return load_weights(
        folder,
        blueprint,
        device=training.device,
        dtype=getattr(torch, training.compute_dtype),
        quantization=training.quantization,
        progress=progress,
    )


class FastPath:
    """A `FastModel` with its adapter as the loop sees it (`TrainPath`)."""

    name: PathName = "fast"
    padded = False
    whole = False

    def __init__(
        self, model: FastModel, adapter: Adapter, training: TrainingSettings, base: str, reason: str = ""
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.reason = reason
        self.device: str = training.device
        self.weights: Mapping[str, torch.nn.Parameter] = adapter.named()
        self._base = base
        model.neftune = training.neftune
        self.recompute(training.gradient_checkpointing)

    def begin(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Nothing has to follow the optimizer's steps."""

    def collate(self, examples: Sequence[Example], capacity: int = 0) -> Stream:
        """The rows as one stream, without padding; it needs no packing, so the capacity plays no part.

        With noise on the embeddings no opening is shared: each row has noise of its own.
        """
        return lay_stream(examples, self.device, share=not self.model.neftune)

    def loss(self, batch: Any, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """The sum of the cross entropies of the supervised tokens, float32; or the sums of runs of them."""
        return self.model.loss(batch, lengths)

    def tallies(self) -> Mapping[str, tuple[float, int]]:
        """Nothing besides the loss."""
        return {}

    def check(self, examples: Sequence[Example]) -> str:
        """Compare rows together and alone on a device whose own kernel attends; on the CPU rows are apart by
        the way they are computed."""
        if self.device != "cpu":
            self.compare(examples)
        return ""

    @torch.no_grad()
    def compare(self, examples: Sequence[Example]) -> None:
        """Compare the loss of rows together with that of each alone, where no kernel can mix them up.

        Each row is also laid a second time behind all, so that even a single one has something before it.
        Raises `TuneError` where they differ.
        """
        self.train(False)
        alone = sum(float(self.loss(lay_stream([row], self.device))) for row in examples)
        rows = [*examples, *examples]
        for share in (True, False):
            together = float(self.loss(lay_stream(rows, self.device, share=share))) / 2
            if not abs(together - alone) <= CLOSE[self.model.weights.embedding.dtype] * abs(alone):
                raise TuneError(
                    f"On this device the fast path computes a loss of {together:.4f} for rows together and "
                    f"of {alone:.4f} for the same rows alone.",
                    "Set training.path to general, and report the device and the model.",
                )

    def train(self, on: bool) -> None:
        """Dropout on or off."""
        self.model.training = on

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """While it lasts, the base model alone."""
        before, self.model.adapter_on = self.model.adapter_on, False
        try:
            yield
        finally:
            self.model.adapter_on = before

    def recompute(self, what: Recompute) -> None:
        """From now on keep less for the backward pass; a second call changes nothing."""
        self.model.recompute = max(self.model.recompute, what, key=STEPS_DOWN.index)

    @contextlib.contextmanager
    def watched(self, observe: Observe) -> Iterator[None]:
        """While it lasts, tell the inputs of every linear layer but the head."""
        self.model.observe = observe
        try:
            yield
        finally:
            self.model.observe = None

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""
        self.adapter.write(folder, self._base)

    def write_state(self, folder: Path) -> None:
        """Write what a checkpoint keeps: the same."""
        self.write_adapter(folder)

    def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put the tensors of an `adapter_model.safetensors` into the weights."""
        self.adapter.load(tensors)

    def way_back(self) -> Callable[[], None]:
        """What puts the weights back as they are now."""
        return remembered(self)

    @property
    def engine(self) -> Engine:
        """What writes answers with this model."""
        from ollama_tune.core.train.fast.decode import FastEngine

        return FastEngine(self.model)

    def parts(self) -> dict[str, int]:
        """Bytes of the base's and of the adapter's weights."""
        adapter = sum(weight.nbytes for weight in self.weights.values())
        return {"weights": self.model.weights.nbytes, "adapter": adapter}
