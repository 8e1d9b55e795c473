"""Which base model suits this box: the largest that trains, runs in Ollama as fast as one reads, and is
fetched and trained the same day."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Disk, Machine
from ollama_tune.core.models.catalogue import CatalogueModel, catalogue, spec_of
from ollama_tune.core.models.locate import is_complete, snapshots
from ollama_tune.core.plan.draft import Draft
from ollama_tune.core.plan.gguf_types import export_bytes, ollama_room, serving_context, type_offers
from ollama_tune.core.plan.recommend import solve
from ollama_tune.core.plan.rules import MEMORY
from ollama_tune.core.plan.settings import GgufType
from ollama_tune.core.plan.speed import CPU_BANDWIDTH
from ollama_tune.core.plan.values import Choice
from ollama_tune.core.text import human_bytes, human_estimate, one_line

USUAL = Lengths(
    rows=1000,
    tokens=300_000,
    trained_tokens=150_000,
    median=250,
    percentile_95=700,
    percentile_99=900,
    longest=1024,
    longest_answer=400,
)
"""A data set of chats as people bring it, for a box whose own data is not known yet."""
SPARE = 0.1
"""Share of the free memory that a recommended model leaves, as the data may have longer rows."""
LONGEST = 4 * 3600.0
"""Seconds until the first result, download and training, that a beginner is offered."""
LINE = 12.5e6
"""Bytes a second of a download, as a line of 100 Mbit/s has them."""
READING = 5.0
"""Tokens a second of an answer that one does not have to wait for."""
DISK_SPARE = 1 << 30
WIDTH = 80


@dataclass(frozen=True)
class BaseFit:
    """What a listed model needs on one box, in bytes and seconds.

    `obstacle` is empty when it trains and then runs there, else says in a few words what is in the way;
    `slow` where it is only time. `seconds` are those of the training.
    """

    model: CatalogueModel
    obstacle: str
    training_bytes: int
    free_bytes: int
    seconds: float
    gguf_type: GgufType
    serving_bytes: int
    slow: bool = False


def recommend_base(machine: Machine, lengths: Lengths = USUAL) -> Choice:
    """The largest offered model that trains and then runs in Ollama here; `value` is a `CatalogueModel`.

    `lengths` are those of the person's data where it is known. Where nothing fits it is the smallest, and
    the reason says what it lacks. Models that ask to accept a licence are never recommended.
    """
    larger: BaseFit | None = None
    for model in reversed([model for model in catalogue() if model.offered]):
        fit = fit_of(model, machine, lengths)
        if not fit.obstacle:
            return Choice(model, one_line(_reason(fit, larger), WIDTH), MEMORY)
        larger = fit
    assert larger is not None
    return Choice(larger.model, one_line(f"the smallest; {larger.obstacle}", WIDTH), MEMORY)


def base_fits(machine: Machine, lengths: Lengths = USUAL) -> tuple[BaseFit, ...]:
    """Every listed model with what it needs here, the smallest first."""
    return tuple(fit_of(model, machine, lengths) for model in catalogue())


def fit_of(model: CatalogueModel, machine: Machine, lengths: Lengths = USUAL) -> BaseFit:
    """One listed model with the settings that would be recommended for it."""
    spec = spec_of(model)
    plan = solve(Draft(machine, spec, lengths, {}))
    kind, memory, work = plan.settings.export.type, plan.memory, plan.work
    offer = type_offers(spec, machine, serving_context(plan.settings, spec))[kind]
    here = any(is_complete(folder) for folder in snapshots(model.id))
    fetched = 0 if here else spec.weight_bytes
    disks = [
        (machine.models_disk or machine.disk, fetched),
        (machine.disk, work.checkpoint_bytes + export_bytes(spec, kind)),
        (machine.ollama_disk or machine.disk, work.ollama_bytes),
    ]
    fit = BaseFit(model, "", memory.needed, memory.free, work.seconds, kind, offer.needed)
    if obstacle := _obstacle(fit, offer.fits) or _short_disk(disks):
        return replace(fit, obstacle=obstacle)
    on_cpu = offer.fits and ollama_room(machine).place == "RAM"
    slow = _slow(fit, fetched / LINE, CPU_BANDWIDTH / offer.bytes if on_cpu else math.inf)
    return replace(fit, obstacle=slow, slow=bool(slow))


def _obstacle(fit: BaseFit, runs: bool | None) -> str:
    if fit.training_bytes > fit.free_bytes * (1 - SPARE):
        return f"{human_bytes(fit.training_bytes)} to train, {human_bytes(fit.free_bytes)} free"
    if runs is False:
        return f"{human_bytes(fit.serving_bytes)} to run"
    return ""


def _slow(fit: BaseFit, fetching: float, tokens: float) -> str:
    """What takes too long: the training, that and the download, or the answers, in tokens a second."""
    if fit.seconds > LONGEST:
        return f"{human_estimate(fit.seconds)} to train"
    if fit.seconds + fetching > LONGEST:
        return f"{human_estimate(fit.seconds + fetching)} with its download"
    return f"answers slowly, {tokens:.0f} tokens/s" if tokens < READING else ""


def _short_disk(disks: list[tuple[Disk, int]]) -> str:
    """The first file system that is too small for all that goes there."""
    needed: dict[int | str, int] = {}
    for disk, size in disks:
        place = disk.device or disk.path
        needed[place] = needed.get(place, DISK_SPARE) + size
        if needed[place] > disk.free:
            return f"{human_bytes(needed[place])} of disk, {human_bytes(disk.free)} free"
    return ""


def _reason(fit: BaseFit, larger: BaseFit | None) -> str:
    """Figures of the choice, and what speaks against the next larger one."""
    words = f"trains in {human_bytes(fit.training_bytes)}, runs as {fit.gguf_type}"
    if larger is None:
        return f"{words}; the largest here"
    against = f"{larger.model.name}: {larger.obstacle}"
    said = f"{words}; the next, {against}"
    return said if len(said) <= WIDTH else f"{words}; {against}"
