"""The probe: before a run's first step its longest rows are tried once, and every trace is undone.

It tells the true peak of memory next to the predicted one, and chooses a cheaper way to compute the same
steps while there is time. Two whole steps, because the optimizer's state exists from the second on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.core.machine.host import read_memory
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.calibration import method_of, ratio_key, store_ratio
from ollama_tune.core.plan.memory import predict_parts
from ollama_tune.core.text import human_bytes
from ollama_tune.core.train.session import Session, peak_memory
from ollama_tune.core.train.shortage import Shortage, free_memory, is_out_of_memory
from ollama_tune.core.train.world import LostMemory

if TYPE_CHECKING:
    from ollama_tune.core.train.loop import Trainer

FAR = 0.5
"""On the CPU nothing is tried where at most this share of the limit is predicted: a step takes long there,
and the longest rows come first anyway."""
AGAIN = 2
"""How often the probe is repeated with cheaper settings."""
LEAST_SPARE = 256 << 20


@dataclass(frozen=True)
class Budget:
    """What this process may use, in bytes, read before the model is loaded.

    `limit` is what was free then (on a GPU by NVML, which makes no CUDA context) less a spare for what
    changes during the run; on the CPU with what the process held already.
    """

    device: str
    name: str
    driver: str
    free: int
    limit: int


def read_budget(device: str) -> Budget:
    """Look at the device that trains."""
    if device == "cpu":
        free, total = read_memory()
        return Budget("cpu", "cpu", "", free, free + psutil.Process().memory_info().rss - _spare(total))
    report = read_gpus()
    if not report.gpus:
        return Budget(device, "unknown", report.driver or "", 0, 0)
    gpu = report.gpus[0]
    return Budget(device, gpu.name, report.driver or "", gpu.free, gpu.free - _spare(gpu.total))


def _spare(total: int) -> int:
    return max(LEAST_SPARE, total // 50)


@contextlib.contextmanager
def unchanged(weights: Iterable[Any], optimizer: Any, device: str) -> Iterator[None]:
    """Undo bit for bit what happens inside to weights, optimizer states, learning rate and random numbers."""
    import torch

    kept = [(weight, weight.detach().to("cpu", copy=True)) for weight in weights]
    states = {
        weight: {
            name: (tensor, tensor.to("cpu", copy=True))
            for name, tensor in state.items()
            if isinstance(tensor, torch.Tensor)
        }
        for weight, state in optimizer.state.items()
    }
    counts = [(state, state["step"]) for state in optimizer.state.values()]
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []), torch.no_grad():
        try:
            with torch.enable_grad():
                yield
        finally:
            for weight, copy in [*kept, *(pair for state in states.values() for pair in state.values())]:
                weight.copy_(copy)
            for state, count in counts:
                if isinstance(count, int):
                    state["step"] = count
            for weight in [weight for weight in optimizer.state if weight not in states]:
                del optimizer.state[weight]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


def probe(session: Session, trainer: Trainer, spec: ModelSpec, longest: int, budget: Budget) -> None:
    """Measure the peak of the worst micro-batch (rows of `longest` tokens); settle for less where it must be.

    On a GPU the measured figure decides, for trying costs nothing but a second. On the CPU the prediction
    does: there the kernel would end the process. Without a step left nothing is tried.
    """
    training, recovery = session.settings.training, trainer.recovery

    def predicted() -> int:
        share = recovery.micro_batch / recovery.most_rows
        now = {
            "batch_size": math.ceil(training.batch_size * share),
            "gradient_checkpointing": recovery.recompute,
            "sharding": "fsdp" if session.group.lockstep else "ddp",
        }
        tokens = trainer.plan.most_tokens(recovery.micro_batch)
        parts = predict_parts(training.model_copy(update=now), spec, longest, tokens, session.group.size)
        return sum(part.bytes for part in parts)

    if trainer.state.step >= trainer.plan.total_steps or not _worth_it(session, trainer, predicted, budget):
        return
    session.phase("probing", "Trying the longest rows once, to see how much memory they take.")
    several = f" {session.group.size} ranks" if session.group.size > 1 else ""
    key = ratio_key(budget.name, budget.driver, spec.model_type, method_of(training) + several)
    for attempt in range(1 + AGAIN):
        measured = _attempt(session, trainer, budget, predicted(), key)
        if measured is None:
            continue
        over = 0 < budget.limit < measured and attempt < AGAIN
        if not over or not _settle(session, trainer, "The probe measured", measured, budget):
            return


def _worth_it(session: Session, trainer: Trainer, predicted: Callable[[], int], budget: Budget) -> bool:
    """Always on a GPU; on the CPU where the prediction is near the limit but not above it.

    Not of a whole model on the CPU: the copy that undoes the trial would be the largest part of its memory.
    Where ranks share out a model a trial that fails ends the run, so the prediction comes first there too.
    """
    gpu = budget.device != "cpu"
    if gpu and not session.group.lockstep:
        return True
    while (budget.limit or not gpu) and predicted() > budget.limit:
        if not _settle(session, trainer, "The prediction is", predicted(), budget):
            return gpu
    if gpu:
        return True
    whole = session.settings.training.method == "full"
    return not whole and predicted() > FAR * budget.limit


def _settle(session: Session, trainer: Trainer, who: str, needed: int, budget: Budget) -> bool:
    """Choose the next cheaper way and say why; False when there is none."""
    what = trainer.recovery.cheaper()
    if what is None:
        return False
    figures = f"{human_bytes(needed)}, and {human_bytes(max(budget.limit, 0))} can be used"
    session.warn(f"{who} {figures}.", what[0].upper() + what[1:])
    return True


def _attempt(session: Session, trainer: Trainer, budget: Budget, predicted: int, key: str) -> int | None:
    """Try once and tell both figures; the measured peak, or None when memory ran out and less was chosen."""
    before = trainer.recovery.micro_batch
    try:
        used, figures = _measure(trainer, budget)
    except LostMemory as lost:
        raise trainer.spare(lost) from lost
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = Shortage.of(error, budget.device)
    else:
        told = {"predicted": predicted, "measured": used, "ratio": store_ratio(key, predicted, used)}
        session.emit("memory", **session.gauge(), probe=told | figures | {"limit": budget.limit})
        return used
    trainer.discard()
    free_memory()
    what = trainer.recovery.cheaper() or "the run goes on and recovers step by step."
    trainer.recovery.tell_probe(what, shortage, before)
    return None


def _measure(trainer: Trainer, budget: Budget) -> tuple[int, dict[str, int]]:
    """Rehearse, and read what the whole process used of the device at its peak; with figures by their names.

    On a GPU: what NVML's free memory fell by, context and kernels included, for PyTorch keeps what it
    reserved. On the CPU the most resident memory.
    """
    import torch

    if budget.device == "cpu":
        trainer.rehearse(thorough=False)
        return peak_memory() * trainer.computer.ranks, {}
    torch.cuda.reset_peak_memory_stats()
    trainer.rehearse(thorough=True)
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    used = budget.free - torch.cuda.mem_get_info()[0] if budget.free else reserved
    return max(used, reserved), {"allocated": allocated, "reserved": reserved}
