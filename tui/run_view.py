"""What a viewer knows of a run: the event log folded into one value. No widget, no clock, no file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ollama_tune.core.evaluate.compare import Sample
from ollama_tune.core.export.values import Verification
from ollama_tune.core.runs.events import Event, back_to
from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.pace import Pace
from ollama_tune.tui.rank_words import by_rank
from ollama_tune.tui.run_values import (
    Asked,
    Checkpoint,
    LogLine,
    Memory,
    Patience,
    Preferred,
    ProbeResult,
    Progress,
    Said,
    Scored,
    ValidationPoint,
)
from ollama_tune.tui.widgets.curves import LossCurve

LOG_LINES = 4000
WARNINGS = 50
WIDE = 400
ONCE = "evaluating_base"
"""The phase that a run has once in its life, between two steps."""


class RunView:
    """The state of one run, kept up to date by `fold`.

    Times are Unix seconds, speeds useful tokens a second. A log that was resumed reads as one run:
    steps after the checkpoint that a worker went on from are taken back.
    """

    def __init__(self) -> None:
        self.stage = ""
        self.started = 0.0
        self.device = ""
        self.path = self.path_reason = ""
        self.model = ""
        self.train_rows = self.validation_rows = self.left_out = 0
        self.phase = ""
        self.phase_since = 0.0
        self.progress: Progress | None = None
        self.step = self.total_steps = 0
        self.epoch = 0.0
        self.loss: float | None = None
        self.learning_rate: float | None = None
        self.gradient_norm: float | None = None
        self.losses, self.norms, self.rates = LossCurve(), LossCurve(), LossCurve()
        self.first_step_seconds: float | None = None
        self.patience: Patience | None = None
        self.scored: Scored | None = None
        self.preferred: Preferred | None = None
        self.pairs = False
        """Whether preferences are learned, of pairs of answers."""
        self.validation: dict[int, ValidationPoint] = {}
        self.answered = 0
        self.before: float | None = None
        self.after: float | None = None
        self.memory: Memory | None = None
        self.memories: dict[str, Memory] = {}
        self.probe: ProbeResult | None = None
        self.predicted: Mapping[str, int] = {}
        self.checkpoints: list[Checkpoint] = []
        self.samples: dict[tuple[str, str], Sample] = {}
        self.asked: dict[tuple[str, str], Asked] = {}
        self.warnings: dict[str, str] = {}
        self.log: deque[LogLine] = deque(maxlen=LOG_LINES)
        self.logged = 0
        self.verification: Verification | None = None
        self.done: dict[str, Event] = {}
        self.error: Event | None = None
        self.stopped: Event | None = None
        self.pause: Event | None = None
        self.last: Event | None = None
        self.version = 0
        self.pace = Pace()

    def fold(self, events: Iterable[Event]) -> bool:
        """Take in events in their order; False when there were none. Foreign ones are passed over."""
        before = self.version
        for event in events:
            handler = _HANDLERS.get(event.kind, RunView._foreign)
            try:
                handler(self, event)
            except (KeyError, TypeError, ValueError):
                self._foreign(event)
            self.last = event
            self.version += 1
        return self.version != before

    def _foreign(self, event: Event) -> None:
        """An event of another version of this program, or one that somebody edited."""

    @property
    def updated(self) -> float:
        """When the last event was written."""
        return self.last.t if self.last else 0.0

    @property
    def trained(self) -> bool:
        """True when training came to its end."""
        return "train" in self.done

    @property
    def paused(self) -> bool:
        """True while the worker waits."""
        return self.pause is not None

    @property
    def training(self) -> bool:
        """True between the first and the last step of this start."""
        return self.pace.running and not self.trained

    @property
    def validation_loss(self) -> float | None:
        """The newest loss on the validation rows."""
        return self.validation[max(self.validation)].loss if self.validation else None

    @property
    def best(self) -> Checkpoint | None:
        """The newest checkpoint that was the best so far."""
        return next((point for point in reversed(self.checkpoints) if point.best), None)

    @property
    def tokens_per_second(self) -> float | None:
        """Useful tokens a second over the last 32 steps."""
        return self.pace.tokens_per_second

    @property
    def mfu(self) -> float | None:
        """The share of the card's arithmetic that the last 32 steps used; None where it is not known."""
        return self.pace.mfu

    @property
    def unsaved(self) -> int:
        """Steps that would have to be done again if the worker ended now."""
        return self.step - (self.checkpoints[-1].step if self.checkpoints else 0)

    @property
    def elapsed(self) -> float:
        """Seconds spent on training over all starts, up to the last event."""
        return self.pace.elapsed(self.updated)

    @property
    def finish_time(self) -> float | None:
        """When the last step is expected; None while it is not known."""
        return None if self.trained else self.pace.finish(self.total_steps)

    def _say(self, event: Event, text: str, sign: str = "") -> None:
        self.log.append(LogLine(event.t, sign, text))
        self.logged += 1

    def _start(self, event: Event) -> None:
        self.pace.end(self.updated)
        self.stage, self.started = str(event["stage"]), event.t
        self.error = self.stopped = None
        self.pause = None
        self.progress = None
        self.phase, self.phase_since = "", event.t
        self.done.pop(self.stage, None)
        if self.stage == "train":
            self._start_training(event)
        else:
            self.verification = None
            self._say(event, "Export started.")

    def _start_training(self, event: Event) -> None:
        self.pace.start(event.t)
        self.device, self.model = str(event.get("device", "")), str(event.get("model", ""))
        self.first_step_seconds = None
        self.memories = {}
        self._data(event)
        step = int(event.get("resumed_from") or 0)
        self._go_back(step)
        self._say(event, f"Going on from step {step:,}." if step else f"Training started on {self.device}.")

    def _go_back(self, step: int) -> None:
        """Later steps come again; what they were counts no more."""
        for curve in (self.losses, self.norms, self.rates):
            curve.cut(step)
        self.step = min(self.step, step)
        self.pace.back()
        self.validation = {at: point for at, point in self.validation.items() if at <= step}
        self.checkpoints = [point for point in self.checkpoints if point.step <= step]
        for asked in self.asked.values():
            asked.back(step)

    def _data(self, event: Event) -> None:
        self.total_steps = int(event.get("total_steps") or self.total_steps)
        self.train_rows = int(event.get("train_rows") or self.train_rows)
        self.validation_rows = int(event.get("validation_rows") or self.validation_rows)
        self.left_out = int(event.get("left_out") or self.left_out)
        self.predicted = event.get("predicted") or self.predicted
        self.path = one_line(str(event.get("path") or self.path), 40)
        self.path_reason = one_line(str(event.get("path_reason") or self.path_reason), WIDE)

    def _phase(self, event: Event) -> None:
        self.phase, self.phase_since = one_line(str(event["text"]), WIDE), event.t
        self.progress = None
        (self.pace.once if event.get("name") == ONCE else self.pace.every)(event.t)
        self._say(event, self.phase)

    def _progress(self, event: Event) -> None:
        self.progress = Progress(
            one_line(str(event["name"]), 40), int(event["done"]), int(event["total"]), str(event["unit"])
        )

    def _step(self, event: Event) -> None:
        data = event.data
        self.step = step = int(data["step"])
        self.total_steps = data["total_steps"]
        self.epoch = data["epoch"]
        self.loss = data["loss"]
        self.learning_rate = data["learning_rate"]
        self.gradient_norm = data.get("gradient_norm")
        self.losses.add(step, data["loss"])
        self.pairs = data.get("reward_accuracy") is not None
        self.norms.add(step, self.gradient_norm)
        self.rates.add(step, self.learning_rate)
        if not self.pace.running:
            self.progress = None
        self.pace.step(event.t, step, data["useful_tokens"], data["seconds"], data.get("mfu"))
        if self.first_step_seconds is None:
            self.first_step_seconds = event.t - self.started

    def _evaluation(self, event: Event) -> None:
        loss, exact = event.get("loss"), event.get("exact_match")
        tuned = event["model"] == "tuned"
        step = int(event["step"]) if tuned else 0
        if loss is not None:
            self.validation[step] = ValidationPoint(step, loss, exact)
        if event.get("patience") is not None:
            self.patience = Patience(int(event["without_better"]), int(event["patience"]))
        if exact is not None and not self.pairs:
            self.answered = int(event.get("rows") or 0)
            self.before, self.after = (self.before, exact) if tuned else (exact, self.after)
        figures = [f"held-out loss {loss:.4f}"] if loss is not None else []
        if scored := Scored.of(event):
            self.scored = scored
            figures.append(f"{scored.title} {scored.words(scored.score)}")
        if preferred := Preferred.of(event):
            self.preferred = preferred
            figures.append(f"the better answer is preferred in {preferred.words}")
        figures += [f"{exact:.1%} exact matches"] if exact is not None else []
        who = f"Step {step:,}" if tuned else "Base model"
        self._say(event, f"{who}: {', '.join(figures)}.")

    def _sample(self, event: Event) -> None:
        key = str(event["prompt"]), str(event.get("reference") or "")
        old = self.samples.get(key, Sample(*key, None, None))
        base, tuned = event.get("base"), event.get("tuned")
        self.samples[key] = Sample(
            *key, old.base if base is None else str(base), old.tuned if tuned is None else str(tuned)
        )
        self._answered(self.asked.setdefault(key, Asked(*key)), event)

    def _answered(self, asked: Asked, event: Event) -> None:
        base, tuned, step = event.get("base"), event.get("tuned"), event.get("step")
        if base is not None:
            asked.base = str(base)
        if tuned is not None and step is not None:
            asked.take(Said(int(step), str(tuned), bool(event.get("cut"))))
        elif tuned is not None:
            asked.final = str(tuned)

    def _memory(self, event: Event) -> None:
        parts = event.get("parts") or (self.memory.parts if self.memory else {})
        used, peak, free, total = (int(event.get(name) or 0) for name in ("used", "peak", "free", "total"))
        self.memory = Memory(str(event["device"]), used, peak, free, total, dict(parts))
        if event.get("ranks"):
            self.memories = by_rank(self.memory, event.data)
        elif len(self.memories) > 1:  # the others have left, rank 0 goes on
            first = next(iter(self.memories))
            self.memories = {**self.memories, first: replace(self.memory, device=first)}
        else:
            self.memories = {self.memory.device: self.memory}
        if probe := event.get("probe"):
            self.probe = ProbeResult(probe["predicted"], probe["measured"], int(probe.get("limit") or 0))
            measured, predicted = (human_bytes(probe[name]) for name in ("measured", "predicted"))
            self._say(event, f"The longest rows take {measured} of memory; {predicted} were predicted.")

    def _checkpoint(self, event: Event) -> None:
        point = Checkpoint(
            int(event["step"]),
            int(event["bytes"]),
            bool(event.get("best")),
            str(event.get("reason", "")),
            event.t,
        )
        self.checkpoints.append(point)
        best = ", the best so far" if point.best else ""
        self._say(event, f"Checkpoint at step {point.step:,} ({human_bytes(point.bytes)}{best}).")

    def _out_of_memory(self, event: Event) -> None:
        what = f"Out of memory at step {event['step']}."
        self._warn(event, what, one_line(str(event.get("change") or ""), WIDE))

    def _paused(self, event: Event) -> None:
        self.pause = event
        self.pace.pause(event.t)
        self._say(event, one_line(f"{event['what']} {event['fix']}", WIDE), "‖")

    def _continued(self, event: Event) -> None:
        self.pause = None
        self.pace.go_on(float(event.get("seconds") or 0.0))
        self._say(event, f"Going on at step {event['step']:,}.")

    def _warning(self, event: Event) -> None:
        step = back_to(event)
        if step is not None:
            self._go_back(step)
        self._warn(event, one_line(str(event["what"]), WIDE), one_line(str(event.get("fix", "")), WIDE))

    def _warn(self, event: Event, what: str, fix: str) -> None:
        if what not in self.warnings and len(self.warnings) < WARNINGS:
            self.warnings[what] = fix
        self._say(event, f"{what} {fix}", "!")

    def _error(self, event: Event) -> None:
        self.pace.end(event.t)
        self.error = event
        self._say(event, one_line(f"{event['what']} {event.get('fix', '')}", WIDE), "✗")

    def _verification(self, event: Event) -> None:
        self.verification = Verification.from_dict(event.data)

    def _stopped(self, event: Event) -> None:
        self.pace.end(event.t)
        self.stopped = event
        self._say(event, f"Stopped at step {event['step']:,}: {one_line(str(event['reason']), WIDE)}.")

    def _done(self, event: Event) -> None:
        self.pace.end(event.t)
        stage = str(event["stage"])
        self.done[stage] = event
        self.progress = None
        if stage == "train":
            if not self.pairs:
                self.before = _first(event.get("base_exact_match"), self.before)
                self.after = _first(event.get("tuned_exact_match"), self.after)
            trained = f"Training finished after {event['steps']:,} steps."
            self._say(event, "Trained by another program." if event.get("imported") else trained, "✓")
        else:
            self._say(event, "Export finished.", "✓")


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


_HANDLERS: dict[str, Callable[[RunView, Event], Any]] = {
    "start": RunView._start,
    "data": RunView._data,
    "phase": RunView._phase,
    "progress": RunView._progress,
    "step": RunView._step,
    "evaluation": RunView._evaluation,
    "sample": RunView._sample,
    "memory": RunView._memory,
    "checkpoint": RunView._checkpoint,
    "out_of_memory": RunView._out_of_memory,
    "paused": RunView._paused,
    "continued": RunView._continued,
    "warning": RunView._warning,
    "error": RunView._error,
    "verification": RunView._verification,
    "stopped": RunView._stopped,
    "done": RunView._done,
}
