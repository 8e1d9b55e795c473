"""Follows a run in plain lines: for pipes, logs, screen readers and terminals that can do no more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence

from ollama_tune.core.evaluate.compare import Sample
from ollama_tune.core.export.values import Verification
from ollama_tune.core.runs.events import Event, EventReader
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.text import human_bytes, human_count, human_seconds, one_line, visible
from ollama_tune.tui.coach import Advice, advise
from ollama_tune.tui.rank_words import memory_lines
from ollama_tune.tui.run_values import Preferred, Scored
from ollama_tune.tui.run_view import RunView

Print = Callable[[str], None]
SIGNS = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "–"}
POLL = 0.2
STEP_SECONDS = 3.0
PROGRESS_SECONDS = 2.0
ADVICE_SECONDS = 10.0


class Raw:
    """Prints events as they stand in the log, each on a line of its own. `told` is the number of the last."""

    def __init__(self, out: Print) -> None:
        self._out = out
        self.told = -1

    def show(self, event: Event) -> None:
        """Print the event."""
        self.told = event.n
        self._out(json.dumps({"n": event.n, "t": event.t, "kind": event.kind, **event.data}))


class Follower:
    """Turns events into lines; step lines at most every few seconds, everything else at once. Where the
    coach's verdict on the curves turns, it is told.

    `before` are the events that were told already, or need not be.
    """

    def __init__(
        self, out: Print, *, step_seconds: float = STEP_SECONDS, before: Iterable[Event] = ()
    ) -> None:
        self._out = out
        self._view = RunView()
        self._view.fold(before)
        self._advice, self._advised = "started", 0.0
        self._step_seconds = step_seconds
        self._last_step = 0.0
        self._last_progress = 0.0
        self._tokens = self._seconds = 0.0
        self._steps = 0
        self._started: float | None = None
        self._path = ""
        self._told_memory = False
        self.verification: Verification | None = None
        self.done: dict[str, Event] = {}

    def show(self, event: Event) -> None:
        """Print what the event says, if it says something for a person."""
        method = getattr(self, f"_show_{event.kind}", None)
        if method is not None:
            method(event)
        self._view.fold([event])
        if event.kind == "evaluation" or (
            event.kind == "step" and time.monotonic() - self._advised >= ADVICE_SECONDS
        ):
            self._advised = time.monotonic()
            advice = advise(self._view)
            if advice is not None and advice.kind != self._advice:
                self._advice = advice.kind
                self.tell(advice)

    def tell(self, advice: Advice) -> None:
        """Print what the curves mean now, which is another thing than before."""
        self._out(f"{advice.sign} {advice.sentence} {advice.advice}".rstrip())

    def _show_start(self, event: Event) -> None:
        if event["stage"] == "train":
            resumed = event.get("resumed_from")
            verb = f"Going on from step {resumed}" if resumed else "Started"
            self._out(f"{verb} on {event['device']}, worker {event['pid']}.")
            self._started = event.t
            self._show_data(event)

    def _show_data(self, event: Event) -> None:
        """Which code computes the model, once it is known."""
        path, reason = event.get("path"), event.get("path_reason")
        if path and path != self._path:
            self._path = str(path)
            self._out(f"{one_line(self._path, 40)} path: {one_line(str(reason or ''), 200)}")

    def _show_phase(self, event: Event) -> None:
        self._out(visible(str(event["text"])))

    def _show_progress(self, event: Event) -> None:
        whole = event["done"] >= event["total"]
        if not whole and time.monotonic() - self._last_progress < PROGRESS_SECONDS:
            return
        self._last_progress = time.monotonic()
        words = str(event["name"]).replace("_", " ")
        if event["unit"] == "B":
            self._out(f"  {words}: {human_bytes(event['done'])} of {human_bytes(event['total'])}")
        elif not whole:
            self._out(f"  {words}: {event['done']:,} of {event['total']:,} {event['unit']}")

    def _show_step(self, event: Event) -> None:
        self._tokens += event["useful_tokens"]
        self._seconds += event["seconds"]
        self._steps += 1
        if self._started is not None:
            self._out(f"  first step done {event.t - self._started:.1f} s after the start")
            self._started = None
        last = event["step"] >= event["total_steps"]
        if not last and event["step"] > 1 and time.monotonic() - self._last_step < self._step_seconds:
            return
        self._last_step = time.monotonic()
        speed = self._tokens / self._seconds if self._seconds else 0.0
        left = (event["total_steps"] - event["step"]) * self._seconds / self._steps
        loss = "not a number" if event["loss"] is None else f"{event['loss']:.4f}"
        self._out(
            f"  step {event['step']:>5,} of {event['total_steps']:,}   loss {loss}   "
            f"{human_count(speed)} tokens/s   {_mfu(event)}{human_seconds(left)} left"
        )

    def _show_evaluation(self, event: Event) -> None:
        parts = [f"loss {event['loss']:.4f}"] if event.get("loss") is not None else []
        if preferred := Preferred.of(event):
            parts.append(f"the better answer is preferred in {preferred.words}")
        elif event.get("exact_match") is not None and not self._view.pairs:
            parts.append(f"{event['exact_match']:.1%} of {event['rows']} held-out answers exactly right")
        if scored := Scored.of(event):
            parts.append(f"{scored.title} {scored.words(scored.score)} of {event['score_rows']} questions")
        waited = event.get("without_better") if event.get("patience") else 0
        if waited:
            parts.append(f"{waited} of {event['patience']} evaluations no better")
        elif event.get("best_step") is not None and event["best_step"] == event["step"]:
            parts.append("the best so far")
        who = "base model" if event["model"] == "base" else "tuned model"
        self._out(f"  held-out rows, {who}: {', '.join(parts)}")
        if not self._told_memory:
            self._tell_memory()

    def _show_sample(self, event: Event) -> None:
        """Answers in between; those before and after training are shown side by side at the end."""
        if event.get("step") is not None:
            cut = " …" if event.get("cut") else ""
            answer, wanted = one_line(str(event["tuned"]), 60), one_line(str(event["reference"]), 60)
            self._out(f"  answer at step {event['step']:,}: {answer}{cut}   (wanted: {wanted})")

    def _show_checkpoint(self, event: Event) -> None:
        if event.get("reason") == "stop":
            self._out(f"  checkpoint at step {event['step']} written")

    def _show_out_of_memory(self, event: Event) -> None:
        self._out(f"! Out of memory at step {event['step']}. {visible(str(event.get('change') or ''))}")

    def _show_memory(self, event: Event) -> None:
        if probe := event.get("probe"):
            measured, predicted = (human_bytes(probe[name]) for name in ("measured", "predicted"))
            self._out(f"  the longest rows take {measured} of memory; {predicted} were predicted")

    def _tell_memory(self) -> None:
        """Of several processes, what each took at its peak so far."""
        if len(self._view.memories) > 1:
            self._told_memory = True
            for line in memory_lines(self._view.memories.values()):
                self._out(line)

    def _show_continued(self, event: Event) -> None:
        self._out(f"Going on at step {event['step']}.")

    def _show_paused(self, event: Event) -> None:
        self._show_warning(event)

    def _show_warning(self, event: Event) -> None:
        self._out(f"! {visible(str(event['what']))} {visible(str(event['fix']))}")

    def _show_error(self, event: Event) -> None:
        self._out(f"✗ {visible(str(event['what']))} {visible(str(event['fix']))}")

    def _show_verification(self, event: Event) -> None:
        self.verification = Verification.from_dict(event.data)
        for line in card_lines(self.verification):
            self._out(line)

    def _show_stopped(self, event: Event) -> None:
        self._out(f"Stopped at step {event['step']}: {visible(str(event['reason']))}")

    def _show_done(self, event: Event) -> None:
        self.done[str(event["stage"])] = event
        if event["stage"] == "train":
            self._tell_memory()
        if event["stage"] == "train" and event.get("best_step") is not None:
            loss = event.get("best_loss")
            held_out = f", held-out loss {loss:.4f}" if loss is not None else ""
            if scored := self._view.scored:
                held_out = f", {scored.title} {scored.words(scored.best)}{held_out}"
            self._out(
                f"Training ended after {event['steps']:,} steps; the best state is that of step "
                f"{event['best_step']:,}{held_out}."
            )


def _mfu(event: Event) -> str:
    share = event.get("mfu")
    return f"MFU {share:.0%}   " if share is not None else ""


def card_lines(verification: Verification) -> list[str]:
    """The verification card as lines: a sign, the name, the figure and what it means."""
    words = {"pass": "proved", "warn": "proved with remarks", "fail": "NOT proved"}
    lines = [f"Proof of {one_line(verification.file, 60)} ({human_bytes(verification.bytes)}):"]
    for check in verification.checks:
        name, figure = one_line(check.name, 24), one_line(check.figure, 30)
        lines.append(f"  {SIGNS[check.verdict]} {name:<24} {figure:<30} {one_line(check.text, 240)}")
    lines.append(f"  => {words[verification.verdict]}: sha256 {verification.sha256[:16]}…")
    return lines


def sample_lines(samples: Sequence[Sample], width: int) -> list[str]:
    """Before/after answers side by side, one block a question."""
    half = max((width - 5) // 2, 20)
    lines: list[str] = []
    for sample in samples:
        lines.append(f"Q: {one_line(sample.prompt, width - 3)}")
        lines.append(f"   {'before (base model)':<{half}}  after (tuned model)")
        base, tuned = (one_line(answer or "(nothing)", half) for answer in (sample.base, sample.tuned))
        lines.append(f"   {base:<{half}}  {tuned}")
    return lines


def follow(folder: RunFolder, follower: Follower | Raw, *, skip: int = 0) -> State:
    """Print the run's events, after the first `skip`, until its worker ends; returns how it ended."""
    reader = EventReader(folder.events_path)
    while True:
        alive = folder.alive()
        events = [event for event in reader.poll() if event.n >= skip]
        for event in events:
            follower.show(event)
        if not alive and not events:
            return folder.status().state
        if alive:
            time.sleep(POLL)
