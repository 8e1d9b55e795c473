"""The seam between the training loop and the two ways to compute a model with its adapter.

`fast` is this project's own forward and backward for the families that the export room covers; `general`
is transformers with peft, for every other architecture. The loop, the checkpoints, the measurements and the
recovery from a shortage of memory know only what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.paths import PathName
from ollama_tune.core.plan.settings import Recompute, TrainingSettings

if TYPE_CHECKING:
    import torch

STEPS_DOWN: tuple[Recompute, ...] = ("none", "mlp", "layers", "offload")
"""From the fastest to the one that needs the least memory of the device."""

Observe = Callable[[str, "torch.Tensor"], None]
"""Gets the name of a linear layer (`model.layers.0.mlp.down_proj`) and its inputs, tokens x width."""

Choose = Callable[["torch.Tensor"], "torch.Tensor"]
"""Takes logits (rows x vocabulary) and gives the next token of each row."""


class Batch(Protocol):
    """Rows made ready to be computed at once on the device; what else is in it is the path's own business."""

    @property
    def useful_tokens(self) -> int:
        """Tokens of the rows, without padding; a prefix that rows share counts with each."""

    @property
    def supervised_tokens(self) -> int:
        """Tokens whose prediction is learned."""


class TrainPath(Protocol):
    """A model with its adapter that can be trained, measured and asked."""

    name: PathName
    reason: str
    """Why this path, for the screen."""
    device: str
    weights: Mapping[str, torch.nn.Parameter]
    """The trained weights in float32, under their names in PEFT's `adapter_model.safetensors`."""
    padded: bool
    """True where rows computed at once are padded to one length; else they lie end to end."""
    whole: bool
    """True where the weights of the model itself are trained: the result is a model folder of its own, and
    `without_adapter` is the base model only before the first step."""

    def begin(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Told before the first step, so that a method can do its own after each update of the weights."""

    def collate(self, examples: Sequence[Example], capacity: int = 0) -> Batch:
        """Rows as one micro-batch; with a capacity, in packed sequences of at most so many tokens."""

    def loss(self, batch: Batch, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """The sum of the cross entropies of the supervised tokens, float32; differentiable where wanted.

        With `lengths` the sums of runs of so many of them each, in the order of the rows: all add up.
        """

    def tallies(self) -> Mapping[str, tuple[float, int]]:
        """Further figures of what was computed since `train` was last called, each as a sum and its count."""

    def check(self, examples: Sequence[Example]) -> str:
        """Compare on a few short rows what this path takes for granted; a remark for the user, or nothing.

        Raises `TuneError` where the model cannot be trained like this, with what to set instead.
        """

    def train(self, on: bool) -> None:
        """Dropout on or off."""

    def without_adapter(self) -> AbstractContextManager[None]:
        """While it lasts, the base model alone."""

    def recompute(self, what: Recompute) -> None:
        """From now on keep less for the backward pass; a second call changes nothing."""

    def watched(self, observe: Observe) -> AbstractContextManager[None]:
        """While it lasts, tell the inputs of every linear layer but the head, padding left out."""

    def write_adapter(self, folder: Path) -> None:
        """Write what is published: `adapter_model.safetensors` and `adapter_config.json`, or a model."""

    def write_state(self, folder: Path) -> None:
        """Write what a checkpoint keeps of the weights, in one safetensors file."""

    def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put the tensors of a checkpoint into the weights."""

    def way_back(self) -> Callable[[], None]:
        """What puts the weights back as they are now, before the first step."""

    @property
    def engine(self) -> Engine:
        """What writes answers with this model."""

    def parts(self) -> dict[str, int]:
        """Bytes on the device that stay through the run, by part: weights, adapter."""


class Engine(Protocol):
    """Writes answers with a model, with its adapter (`tuned`) or without."""

    @property
    def rows(self) -> int:
        """Prompts that are well answered at once."""

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        tuned: bool,
        stop_ids: Sequence[int],
        choose: Choose | None = None,
        stopped: Callable[[], bool] = lambda: False,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> list[list[int]]:
        """The tokens after each prompt, up to a stop token, which is included, or the limit.

        `choose` takes each step's logits and gives the tokens; without it the most likely ones are taken.
        `on_tokens` gets every new token of each prompt that is still being answered.
        """

    def logits(self, ids: Sequence[int], positions: Sequence[int], *, tuned: bool) -> Any:
        """float32 logits (positions x vocabulary) of the token after each position."""

    def likelihoods(self, examples: Sequence[Example], *, tuned: bool) -> list[float]:
        """Of each row the natural log of the probability of its supervised tokens, summed."""


def remembered(path: TrainPath) -> Callable[[], None]:
    """A way back by copies in the computer's memory; of weights that are zero only the shape is kept."""
    import torch

    zero = torch.zeros(())
    start = {
        name: weight.detach().to("cpu", copy=True) if bool(weight.any()) else zero.expand(weight.shape)
        for name, weight in path.weights.items()
    }
    return lambda: path.load_adapter(start)


def make_path(
    chosen: tuple[PathName, str],
    folder: Path,
    training: TrainingSettings,
    base: str,
    progress: Callable[[int, int], None],
) -> TrainPath:
    """Load the model and make ready what is trained of it; `base` is what an adapter says its base is.

    `progress` gets the bytes loaded and all bytes, where the path can tell.
    """
    name, reason = chosen
    if training.method == "full":
        from ollama_tune.core.train.full import make_full

        return make_full(folder, training, reason)
    if name == "general":
        from ollama_tune.core.train.general import make_general

        return make_general(folder, training, base, reason)
    from ollama_tune.core.train.fast.path import make_fast

    return make_fast(folder, training, base, progress, reason)
