"""Ways out of a plan that does not fit: the nearest plans that do, each with its cost in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

from ollama_tune.core.data.values import LENGTH_STEP, Lengths
from ollama_tune.core.machine.values import Disk
from ollama_tune.core.models.catalogue import CatalogueModel, catalogue, spec_of
from ollama_tune.core.models.locate import is_complete, snapshots
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.methods import adapter_parameters
from ollama_tune.core.plan.values import Offer, Plan
from ollama_tune.core.rounding import round_up
from ollama_tune.core.text import human_bytes, human_count, human_estimate, one_line

Values = Mapping[str, Any]
Solve = Callable[[Values, ModelSpec], Plan]
"""Plans with these values of the person's, for that model; without offers."""

MOST = 5
A_DAY = 24 * 3600
"""Seconds; nobody waits longer for another device."""
MEMORY_FIELDS = (
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.gradient_checkpointing",
    "training.optimizer",
    "training.compute_dtype",
    "training.method",
    "training.quantization",
    "training.sequence_length",
    "training.rank",
    "training.dropout",
)
"""What decides memory, in the order in which it is given up: what costs only time comes first."""
CHEAPER: Mapping[str, tuple[Any, ...]] = {
    "training.gradient_checkpointing": ("none", "mlp", "layers", "offload"),
    "training.optimizer": ("adamw", "adamw_8bit"),
    "training.compute_dtype": ("float32", "bfloat16"),
    "training.method": ("full", "lora"),
    "training.quantization": ("none", "nf4"),
}
"""Values by field, each needing less memory than the one before."""
RESULT = (
    "epochs",
    "sequence_length",
    "packing",
    "quantization",
    "compute_dtype",
    "optimizer",
    "rank",
    "learning_rate",
)
"""Recommended fields of a training that decide what is learned."""
OWN: Mapping[str, tuple[str, ...]] = {"training.method": ("rank", "learning_rate")}
"""Those that belong to the value offered, and would not tell more."""
ONLY_TIME = (
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.gradient_checkpointing",
)
PRICES: Mapping[str, str] = {
    **dict.fromkeys(ONLY_TIME, "the same result"),
    "training.method": "an adapter learns as well from most data",
    "training.quantization": "the base is held in 4 bit, so the adapter learns on slightly rounded weights",
    "training.compute_dtype": "half the bytes, with rounder sums",
    "training.optimizer": "the averages of the optimizer are rounded",
    "training.dropout": "no dropout; overfitting shows on the held-out rows",
}
"""What giving up a value costs, where that is not told by figures."""


class Offers:
    """Looks for values that make one plan fit; every offer was planned with its values set.

    A model that would have to be fetched is offered only where `disk` has room for it.
    """

    def __init__(
        self, plan: Plan, changed: Values, spec: ModelSpec, lengths: Lengths, solve: Solve, disk: Disk
    ) -> None:
        self._plan, self._changed, self._spec, self._lengths = plan, dict(changed), spec, lengths
        self._solve, self._disk = solve, disk

    def find(self) -> tuple[Offer, ...]:
        """The cheapest ways first, five at most; empty where nothing helps."""
        single = [way for path in MEMORY_FIELDS if (way := self._way(path))]
        together = [] if single else self._together()
        found = chain(single, together, self._elsewhere(), self._smaller_model())
        return tuple(offer for offer, _ in zip(found, range(MOST), strict=False))

    def _planned(self, changes: Values, spec: ModelSpec | None = None) -> Plan | None:
        """The plan with these values set; None where it does not fit either."""
        plan = self._solve(self._changed | dict(changes), spec or self._spec)
        return plan if plan.memory.fits else None

    def _way(self, path: str) -> Offer | None:
        """The nearest other value of one field, with which the plan fits."""
        if path == "training.sequence_length":
            return self._shorter()
        whole = self._plan.settings.training.method == "full"
        useless = path == "training.quantization" and (whole or rules.mixture_of_experts(self._spec))
        if path not in self._changed or useless:
            return None
        for changes in self._lower(path):
            plan = self._planned(changes)
            if plan is not None:
                return Offer(changes, self._cost(path, changes, plan), plan.memory)
        return None

    def _lower(self, path: str) -> Iterator[dict[str, Any]]:
        """Values of a field that need less memory, the nearest first."""
        training = self._plan.settings.training
        value = self._plan.settings.get(path)
        if path == "training.batch_size":
            rows = value * training.gradient_accumulation_steps
            for size in (size for size in range(value - 1, 0, -1) if rows % size == 0):
                yield {path: size, "training.gradient_accumulation_steps": rows // size}
        elif path == "training.gradient_accumulation_steps" and "training.batch_size" not in self._changed:
            yield from ({path: value << shift} for shift in range(1, training.batch_size.bit_length()))
        elif path == "training.rank":
            yield from ({path: 1 << bit} for bit in range((value - 1).bit_length() - 1, 2, -1))
        elif path == "training.dropout" and value:
            yield {path: 0.0}
        elif value in CHEAPER.get(path, ()):
            steps = CHEAPER[path]
            yield from ({path: less} for less in steps[steps.index(value) + 1 :])

    def _shorter(self) -> Offer | None:
        """The longest rows with which the plan fits, found by halving; at least half of the rows stay."""
        path, now = "training.sequence_length", self._plan.settings.training.sequence_length
        rows = self._lengths.of_rows
        now = min(now, round_up(rows.longest, LENGTH_STEP))
        low, high = max(round_up(rows.median, LENGTH_STEP), LENGTH_STEP), now
        best: Plan | None = None
        low, high = low // LENGTH_STEP, -(-high // LENGTH_STEP)
        while low < high:
            middle = (low + high) // 2
            plan = self._planned({path: middle * LENGTH_STEP})
            if plan is None:
                high = middle
            else:
                best, low = plan, middle + 1
        if best is None:
            return None
        changes = {path: best.settings.training.sequence_length}
        return Offer(changes, self._cost(path, changes, best), best.memory)

    def _together(self) -> Iterator[Offer]:
        """All of the person's values that decide memory given up at once; the rest is kept."""
        mine = [path for path in MEMORY_FIELDS if path in self._changed]
        if len(mine) < 2:
            return
        rest = {path: value for path, value in self._changed.items() if path not in mine}
        settings = self._solve(rest, self._spec).settings
        changes = {path: settings.get(path) for path in mine}
        plan = self._planned(changes)
        if plan is not None:
            names = ", ".join(f"{_name(path)} {settings.get(path)}" for path in mine)
            words = [f"the recommended values: {names}", *self._also(changes, plan)]
            yield Offer(changes, _joined(*words, self._time(plan)), plan.memory)

    def _elsewhere(self) -> Iterator[Offer]:
        """The other device: the CPU may have the memory that a GPU lacks, at another speed."""
        training = self._plan.settings.training
        changes = {"training.device": "cuda" if training.device == "cpu" else "cpu"}
        if self._changed.get("training.compute_dtype") == "float16":
            changes["training.compute_dtype"] = "bfloat16"
        if str(self._changed.get("training.optimizer")).startswith("paged"):
            changes["training.optimizer"] = "adamw_8bit"
        plan = self._planned(changes)
        if plan is not None and plan.work.seconds <= A_DAY:
            device = "GPU" if training.device == "cpu" else "CPU"
            took = human_estimate(plan.work.seconds)
            yield Offer(changes, f"train on the {device}: about {took} in all", plan.memory)

    def _smaller_model(self) -> Iterator[Offer]:
        """The largest of the recommended base models that fits."""
        mine = [path for path in ("model.revision", "model.chat_template") if self._changed.get(path)]
        for model in reversed(catalogue()):
            if not model.offered or model.parameters >= self._spec.parameters or not self._has_room(model):
                continue
            changes = {"model.source": model.id} | dict.fromkeys(mine)
            plan = self._planned(changes, spec_of(model))
            if plan is not None:
                yield Offer(changes, _model_cost(model), plan.memory)
                return

    def _has_room(self, model: CatalogueModel) -> bool:
        """Whether its weights are here, or the disk can take them; one of 0 bytes is not known."""
        return _is_here(model) or not self._disk.total or 2 * model.parameters < self._disk.free

    def _cost(self, path: str, changes: Values, plan: Plan) -> str:
        """`sequence_length 4,096 → 2,560: 150 of 5,000 rows (3.0 %) are left out, 8 % less time`."""
        before = self._plan.settings
        steps = [f"{_name(p)} {_shown(before.get(p))} → {_shown(v)}" for p, v in changes.items()]
        also = self._also(changes, plan, OWN.get(path, ()))
        price = "" if also and path in ONLY_TIME else self._price(path, changes, plan)
        return f"{_joined(*steps)}: {_joined(price, *also, self._time(plan))}"

    def _price(self, path: str, changes: Values, plan: Plan) -> str:
        if path == "training.sequence_length":
            return self._rows_lost(changes[path])
        if path == "training.rank":
            trained = human_count(self._lengths.trained_tokens)
            held = adapter_parameters(plan.settings.training, self._spec)
            return f"the adapter has {human_count(held)} parameters for {trained} trained tokens"
        return PRICES[path]

    def _also(self, changes: Values, plan: Plan, own: tuple[str, ...] = ()) -> list[str]:
        """What else is recommended then that decides the result, such as `with rank 8 → 16`."""
        before, then = self._plan.settings.training, plan.settings.training
        others = [name for name in RESULT if f"training.{name}" not in changes and name not in own]
        pairs = [(name, getattr(before, name), getattr(then, name)) for name in others]
        found = [f"{name} {_shown(old)} → {_shown(new)}" for name, old, new in pairs if old != new]
        return [f"with {' and '.join(found)}"] if found else []

    def _time(self, plan: Plan) -> str:
        """`12 % more time`; empty where it is about the same."""
        times = plan.work.seconds / max(self._plan.work.seconds, 1e-9)
        if times >= 2:
            return f"{times:.1f} times as long"
        more = round(100 * (times - 1))
        return f"{abs(more)} % {'more' if more > 0 else 'less'} time" if more else ""

    def _rows_lost(self, length: int) -> str:
        left_out = rules.rows_left_out(self._lengths, length)
        longer, _ = rules.rows_longer(self._lengths, length)
        if not left_out:
            return "no row is longer"
        return f"{left_out} ({100 * longer / max(self._lengths.of_rows.rows, 1):.1f} %) are left out"


def _is_here(model: CatalogueModel) -> bool:
    return any(map(is_complete, snapshots(model.id)))


def _model_cost(model: CatalogueModel) -> str:
    fetch = "" if _is_here(model) else f", {human_bytes(2 * model.parameters)} to download"
    return f"the smaller model {one_line(model.name, 60)}: {human_count(model.parameters)} parameters{fetch}"


def _name(path: str) -> str:
    return path.partition(".")[2]


def _joined(*words: str) -> str:
    return ", ".join(word for word in words if word)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
