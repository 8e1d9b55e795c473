"""AdaLoRA through PEFT: every layer starts with more rank than it keeps, and where it helps least it goes.

The change of a weight is B diag(E) A, and singular values in E are set to zero by their importance (Zhang et
al., arXiv 2303.10512). What PEFT does in its own forward pass and leaves to the caller is done here: the pull
of A and B to orthogonal rows, the budget after each step, and the averages of importance in checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig

from ollama_tune.core.plan.methods import initial_rank
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.general import GeneralPath, put_weights, write_weights
from ollama_tune.core.train.model import Places
from ollama_tune.core.train.optimizer import updates

WARM_SHARE = 10
"""The first tenth of the updates changes no rank, as in the paper's runs (8 to 12 %)."""
SETTLED_SHARE = 2
"""In the last half the ranks stay as they are (there: 52 to 63 %)."""
ALLOCATIONS = 1000
"""How often at most the ranks change (there: 670 to 860 times a run)."""
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
PATTERN = "rank_pattern"


def adalora_config(training: TrainingSettings, places: Places) -> AdaLoraConfig:
    """PEFT's settings; those of the schedule follow when the number of steps is known."""
    return AdaLoraConfig(
        init_r=initial_rank(training.rank),
        target_r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=training.dropout,
        **places,
        task_type="CAUSAL_LM",
        **schedule(2),
    )


def schedule(steps: int) -> dict[str, int]:
    """PEFT's `total_step`, `tinit`, `tfinal` and `deltaT` for so many updates.

    Between `tinit` and `total_step - tfinal` the ranks fall, every `deltaT` updates. PEFT needs an update
    before the last of these, where it takes the averages without making them.
    """
    total = max(steps, 2)
    settled = min(total // SETTLED_SHARE, total - 2)
    return {
        "total_step": total,
        "tinit": total // WARM_SHARE,
        "tfinal": settled,
        "deltaT": max(total // ALLOCATIONS, 1),
    }


class AdaLoraPath(GeneralPath):
    """A model with an AdaLoRA adapter as the loop sees it."""

    configure = staticmethod(adalora_config)

    def loss(self, batch: Any, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """The cross entropy alone, with a gradient that pulls A and B to orthogonal rows, too.

        The loop divides by the supervised tokens of a step, so that this pull has its weight once a step.
        Sums that something else is made of (`lengths`) come without, as PEFT's own have it without labels.
        """
        found = super().loss(batch, lengths)
        if lengths is not None or not torch.is_grad_enabled():
            return found
        pull = self._config.orth_reg_weight * batch.supervised_tokens * self._skew()
        pulled: torch.Tensor = found + (pull - pull.detach())
        return pulled

    @property
    def _config(self) -> AdaLoraConfig:
        config: AdaLoraConfig = self.model.peft_config["default"]
        return config

    @property
    def _allocator(self) -> Any:
        return self.model.base_model.rankallocator

    def _skew(self) -> torch.Tensor:
        """How far the rows of A and the columns of B are from orthonormal, as a mean over the matrices."""
        found = []
        for name, weight in self.weights.items():
            if name.endswith("lora_E"):
                continue
            products = weight @ weight.T if name.endswith("lora_A") else weight.T @ weight
            found.append((products - torch.eye(len(products), device=weight.device)).norm())
        return torch.stack(found).mean()

    def begin(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Let every update of the weights be followed by that of the ranks.

        The schedule counts updates, so steps that are left out do not move it. A rehearsal has a rate of zero
        and changes no rank, nor does a step that the scaler of float16 leaves out.
        """
        for name, value in schedule(total_steps).items():
            setattr(self._config, name, value)
        last, before = list(self.weights.values())[-1], 0

        def remember(*_: Any) -> None:
            nonlocal before
            before = updates(optimizer, last)

        def allocate(*_: Any) -> None:
            done = updates(optimizer, last)
            if done > before and optimizer.param_groups[0]["lr"] > 0:
                self._allocate(done)

        optimizer.register_step_pre_hook(remember)
        optimizer.register_step_post_hook(allocate)

    def _allocate(self, done: int) -> None:
        """Weigh what the last update changed, and set singular values to zero by the budget."""
        if done == 1:
            self._forget()
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)  # a layer that no token of the step went through
        self.model.base_model.update_and_allocate(done)

    def _forget(self) -> None:
        self._allocator.reset_ipt()
        self._config.rank_pattern = None

    def write_adapter(self, folder: Path) -> None:
        """The adapter as plain LoRA, which everything else can read."""
        config, tensors = as_lora(self._config, self.weights)
        write_weights(folder, tensors, config)

    def write_state(self, folder: Path) -> None:
        """All singular values, the averages of their importance, and which of them are kept."""
        found: dict[str, torch.Tensor] = dict(self.weights)
        for kind in AVERAGES:
            found |= {f"{kind}:{name}": tensor for name, tensor in getattr(self._allocator, kind).items()}
        for name, kept in (self._config.rank_pattern or {}).items():
            found[f"{PATTERN}:{name}"] = torch.tensor(kept)
        write_weights(folder, found, self._config)

    def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put the tensors of a checkpoint into the weights, and its averages and ranks where PEFT has them.

        PEFT begins averages anew for weights of which it has no last importance, whatever that was.
        """
        put_weights(self.weights, {name: tensor for name, tensor in tensors.items() if ":" not in name})
        self._forget()
        device = next(iter(self.weights.values())).device
        for kind in AVERAGES:
            held = {
                name.partition(":")[2]: tensor for name, tensor in tensors.items() if name.startswith(kind)
            }
            setattr(self._allocator, kind, {name: tensor.to(device) for name, tensor in held.items()})
            self._allocator.ipt = dict.fromkeys(held)
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith(PATTERN)}
        if kept:
            self._config.rank_pattern = {name.partition(":")[2]: kept[name].tolist() for name in kept}


def as_lora(
    config: AdaLoraConfig, weights: Mapping[str, torch.Tensor]
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """The plain LoRA with the same outputs: A' = diag(E) A without the rows that are zero, B' = B.

    All layers get the rank of the largest, filled up with zeros, for few programs read different ranks. A'
    takes in what parts PEFT's scale of AdaLoRA, alpha / (initial rank + 1e-5), from alpha / rank.
    """
    modules = [name.removesuffix(".lora_E") for name in weights if name.endswith(".lora_E")]
    kept = {module: (weights[f"{module}.lora_E"] != 0).flatten() for module in modules}
    rank = max(1, *(int(rows.sum()) for rows in kept.values()))
    scale = rank / (torch.tensor(float(config.init_r)) + 1e-5).item()
    tensors: dict[str, torch.Tensor] = {}
    for module, rows in kept.items():
        a, e, b = (weights[f"{module}.lora_{part}"].detach().cpu() for part in "AEB")
        rows = rows.cpu()
        whole_a, whole_b = a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)
        count = int(rows.sum())
        whole_a[:count], whole_b[:, :count] = (a * e)[rows] * scale, b[:, rows]
        tensors |= {f"{module}.lora_A.weight": whole_a, f"{module}.lora_B.weight": whole_b}
    shared = {field.name: getattr(config, field.name) for field in fields(LoraConfig) if field.init}
    return LoraConfig(**shared | {"r": rank, "rank_pattern": {}}), tensors
