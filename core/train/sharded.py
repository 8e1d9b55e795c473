"""A model that does not fit one GPU: each rank holds a part of the frozen weights (torch's FSDP2).

The weights of a layer are gathered just before it is computed and dropped right after, forward and backward.
What is trained stays whole on every rank, as do the embeddings and the head, which are computed outside the
layers' order; so gradients, checkpoints and adapters are what they are with one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.memory import predict_parts
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.plan.sharding import can_share_out
from ollama_tune.core.train.general import GeneralPath, put_weights
from ollama_tune.core.train.model import add_adapter, decoder_layers, load_base
from ollama_tune.core.train.world import Alone


def shares_out(
    group: Alone, training: TrainingSettings, spec: ModelSpec, longest: int, tokens: int, limit: int
) -> bool:
    """Whether the ranks share out the model: as the settings say or, left to us, where only that fits.

    `longest` and `tokens` as in `predict_parts`; `limit` is what may be used of this rank's GPU, in bytes;
    the smallest counts. All ranks get the leader's answer.
    """
    least = min(map(int, group.meet("limit", str(limit))))

    def fits(sharding: str) -> bool:
        asked = training.model_copy(update={"sharding": sharding})
        return sum(part.bytes for part in predict_parts(asked, spec, longest, tokens, group.size)) <= least

    if group.size == 1 or training.sharding != "auto":
        return group.size > 1 and training.sharding == "fsdp"
    wanted = can_share_out(training) and not fits("ddp") and fits("fsdp")
    return group.meet("sharing", str(wanted))[0] == str(True)


def make_sharded(
    folder: Path, training: TrainingSettings, name: str, reason: str, group: Alone
) -> SharedPath:
    """As `make_general`, with a part of the frozen weights on this rank.

    Models are loaded into the computer's memory, by one rank of a machine after the other, so that it has to
    hold one of them; each layer then leaves its part on the rank's device.
    """
    there = training.model_copy(update={"device": "cpu"})
    mesh = init_device_mesh(training.device, (group.size,))

    def load() -> Any:
        with _rounding(training):
            model = add_adapter(load_base(folder, there), training, name)
        shard(model, mesh)
        return model

    model = group.one_by_one(load)
    group.meet("sharded", "")
    return SharedPath(model, training, reason)


def _rounding(training: TrainingSettings) -> contextlib.AbstractContextManager[None]:
    """Where 4-bit weights are made of the model's own ones: on the GPU, which is far quicker."""
    if training.quantization == "none" or training.device == "cpu":
        return contextlib.nullcontext()
    from ollama_tune.core.train.sharded_nf4 import rounded_on

    return rounded_on(training.device)


class SharedPath(GeneralPath):
    """The general path with a part of the frozen weights on this rank."""

    def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy them as they are: a module that loads lets go of the layers that it gathered, on this rank
        only, and the ranks would then wait for different layers."""
        put_weights(self.weights, tensors)


def shard(model: Any, mesh: Any) -> None:
    """Leave this rank of the mesh its part of each layer's frozen weights; a PEFT model on the CPU."""
    from torch.distributed.fsdp import fully_shard

    base = model.get_base_model()
    decoder = base.base_model
    whole = [module for module in (decoder.get_input_embeddings(), base.get_output_embeddings()) if module]
    kept = {weight for weight in model.parameters() if weight.requires_grad}
    kept |= {weight for module in whole for weight in module.parameters()}
    for weight in kept:
        weight.data = weight.data.to(mesh.device_type)
    if getattr(base, "is_loaded_in_4bit", False):
        from ollama_tune.core.train.sharded_nf4 import open_up

        open_up(decoder, mesh.device_type)
    for layer in decoder_layers(base)[1]:
        fully_shard(layer, mesh=mesh, ignored_params=kept)
    fully_shard(decoder, mesh=mesh, ignored_params=kept)
