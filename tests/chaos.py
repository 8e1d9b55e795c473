"""Disturbs real runs of a tiny model in every way a run can be disturbed, and compares what comes out.

Each run is trained by forked workers; between two steps, while it loads, pauses or recovers, something
happens to it, until it is done. Then its history must be that of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ollama_tune.core.runs import control
from ollama_tune.core.runs.events import Event, EventReader, back_to, effective
from ollama_tune.core.runs.folder import RunFolder, State
from tests.forked import ForkServer
from tests.small_disk import SmallDisk
from tests.train_faults import ask_for_fault, damage

PATIENCE = 300.0
FARTHEST = 9
"""Steps until the next disturbance, at most."""
FIGURES = {
    "step": ("step", "total_steps", "epoch", "loss", "learning_rate", "gradient_norm", "useful_tokens"),
    "evaluation": ("step", "loss", "exact_match", "rows", "model"),
    "done": ("stage", "steps", "best_step", "best_loss", "base_exact_match", "tuned_exact_match"),
}
WITHOUT_A_WORD = "ended without a word"


@dataclass
class Tally:
    """What was done to runs and what they did then: counts by kind of disturbance."""

    done: Counter[str] = field(default_factory=Counter)
    resumed: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    seconds: float = 0.0


def essence(folder: RunFolder) -> list[tuple[Any, ...]]:
    """What a run came to, without times: every step and measurement in order, and its adapter's bytes."""
    told = [
        (event.kind, *(event[name] for name in FIGURES[event.kind]))
        for event in effective(folder.events())
        if event.kind in FIGURES
    ]
    steps = [entry for entry in told if entry[0] == "step"]
    weights = (folder.adapter / "adapter_model.safetensors").read_bytes()
    return [*steps, *sorted((entry for entry in told if entry[0] != "step"), key=repr), (weights,)]


def check_log(events: list[Event]) -> None:
    """No gap and no double in the numbers, nor in the steps between two places where the run went back."""
    assert [event.n for event in events] == list(range(len(events)))
    expected = 1
    for event in events:
        again = back_to(event)
        if again is not None:
            assert again < expected, event
            expected = again + 1
        if event.kind == "step":
            assert event["step"] == expected, event
            expected += 1
    steps = [event["step"] for event in effective(events) if event.kind == "step"]
    assert steps == list(range(1, expected))


def check_words(events: list[Event]) -> None:
    """A worker says so where the one before it was killed, and only there, if it lived to say anything."""
    told = [event for event in events if event.kind != "memory"]
    for before, start, after in zip(told, told[1:], told[2:], strict=False):
        if start.kind != "start" or after.kind == "start":
            continue
        same = next(event["pid"] for event in reversed(told[: told.index(start)]) if event.kind == "start")
        killed = before.kind not in ("done", "stopped", "error") and same != start["pid"]
        assert (WITHOUT_A_WORD in str(after.get("what"))) == killed, (before, start, after)


class Watch:
    """One run as its log tells it."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.step = 0
        self._reader = EventReader(folder.events_path)

    def poll(self) -> Watch:
        """Take in what is new."""
        for event in self._reader.poll():
            self.events.append(event)
            again = back_to(event)
            self.step = int(event["step"]) if event.kind == "step" else self.step if again is None else again
        return self

    def last(self, *kinds: str) -> Event | None:
        """The newest event of these kinds."""
        return next((event for event in reversed(self.events) if event.kind in kinds), None)

    @property
    def paused(self) -> bool:
        """True while the run waits."""
        turn = self.last("paused", "continued", "start")
        return turn is not None and turn.kind == "paused"

    @property
    def finished(self) -> bool:
        """True when the run is done."""
        return bool(self.events) and self.events[-1].kind == "done"


class Chaos:
    """Disturbs one run after the other; `chance` decides what happens when."""

    def __init__(self, server: ForkServer, chance: random.Random, disk: SmallDisk | None) -> None:
        self.tally = Tally()
        self._server = server
        self.chance = chance
        self._disk = disk

    @property
    def has_disk(self) -> bool:
        """True where the runs' disk can be filled."""
        return self._disk is not None

    def run(self, folder: RunFolder, wanted: list[str]) -> None:
        """Train a run to its end while the wanted disturbances happen to it, as far as it lasts."""
        began, watch = time.monotonic(), Watch(folder)
        while not watch.poll().finished:
            kind = wanted.pop() if wanted else ""
            self._start(folder)
            if kind:
                self._disturb(kind, watch)
                self.tally.done[kind] += 1
            if not wanted:
                _until(lambda: not folder.alive())
            if not folder.alive() and not watch.poll().finished:
                assert kind, watch.events[-1]
                self.tally.resumed[kind] += 1
        check_log(watch.events)
        check_words(watch.events)
        self.tally.runs += 1
        self.tally.seconds += time.monotonic() - began

    def _start(self, folder: RunFolder) -> None:
        """Start a worker where none holds the run."""
        if folder.alive():
            return
        control.continue_run(folder)
        pid = self._server.start(folder)
        _until(lambda: folder.worker().get("pid") == pid)

    def _disturb(self, kind: str, watch: Watch) -> None:
        """Wait for a random moment and let it happen; returns when it is over, the worker dead or alive."""
        self._moment(watch)
        getattr(self, f"_{kind}")(watch)

    def _moment(self, watch: Watch) -> None:
        """Some steps on, or a part of a second after the start; and there somewhere within a step."""
        if self.chance.random() < 0.15:
            time.sleep(self.chance.random() * 0.5)
            return
        target = watch.poll().step + self.chance.randrange(1, FARTHEST)
        self._wait(watch, lambda: watch.step >= target)
        time.sleep(self.chance.random() * 0.03)

    def _wait(self, watch: Watch, over: Callable[[], bool]) -> bool:
        """Until it is so, or the worker is gone: then False."""
        alive = True

        def ended() -> bool:
            nonlocal alive
            alive = watch.folder.alive()
            watch.poll()
            return over() or not alive

        _until(ended)
        return alive and over()

    def _signal(self, watch: Watch, number: signal.Signals) -> None:
        worker = watch.folder.process()
        if worker is not None:
            worker.send_signal(number)

    def _kill(self, watch: Watch) -> None:
        self._signal(watch, signal.SIGKILL)
        _until(lambda: not watch.folder.alive())

    def _oom(self, watch: Watch) -> None:
        self._fault("oom", watch)

    def _gpu(self, watch: Watch) -> None:
        self._fault("gpu", watch)
        _until(lambda: not watch.folder.alive())
        assert watch.folder.status().state in (State.FAILED, State.FINISHED)

    def _fault(self, kind: str, watch: Watch) -> None:
        seen = len(watch.poll().events)
        ask_for_fault(watch.folder.path, kind)
        told = ("out_of_memory", "error")
        if not self._wait(watch, lambda: any(event.kind in told for event in watch.events[seen:])):
            assert watch.poll().finished or kind == "gpu"

    def _term(self, watch: Watch) -> None:
        self._signal(watch, signal.SIGTERM)
        self._ended(watch)

    def _int(self, watch: Watch) -> None:
        self._signal(watch, signal.SIGINT)
        self._ended(watch)

    def _stop(self, watch: Watch) -> None:
        watch.folder.stop_path.touch()
        self._ended(watch)

    def _ended(self, watch: Watch) -> None:
        _until(lambda: not watch.folder.alive())
        assert watch.poll().events[-1].kind in ("stopped", "done")
        assert watch.folder.status().state in (State.STOPPED, State.FINISHED)

    def _hup(self, watch: Watch) -> None:
        before = watch.poll().step
        self._signal(watch, signal.SIGHUP)
        if self._wait(watch, lambda: watch.step > before):
            return
        assert watch.poll().finished

    def _pause(self, watch: Watch) -> bool:
        watch.folder.pause_path.touch()
        if not self._wait(watch, lambda: watch.paused):
            assert watch.poll().finished
            return False
        assert watch.folder.status().state is State.PAUSED
        return True

    def _pause_continue(self, watch: Watch) -> None:
        if self._pause(watch):
            time.sleep(self.chance.random() * 0.3)
            control.resume(watch.folder)
            self._wait(watch, lambda: not watch.paused)

    def _pause_kill(self, watch: Watch) -> None:
        if self._pause(watch):
            self._kill(watch)

    def _pause_stop(self, watch: Watch) -> None:
        if self._pause(watch):
            self._stop(watch)

    def _full(self, watch: Watch) -> bool:
        """Fill the disk until the run waits for room; False where it was done before it needed any."""
        assert self._disk is not None
        self._disk.fill()
        return self._wait(watch, lambda: watch.paused)

    def _disk_continue(self, watch: Watch) -> None:
        assert self._disk is not None
        waits = self._full(watch)
        self._disk.free()
        if waits:
            assert watch.last("paused") is not None and watch.last("paused")["reason"] == "disk"
            assert self._wait(watch, lambda: not watch.paused)

    def _disk_kill(self, watch: Watch) -> None:
        assert self._disk is not None
        if self._full(watch):
            self._kill(watch)
        self._disk.free()

    def _disk_term(self, watch: Watch) -> None:
        assert self._disk is not None
        if self._full(watch):
            self._term(watch)
        self._disk.free()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain"
        time.sleep(0.005)


ENDS = ("kill", "kill", "kill", "kill", "term", "int", "stop", "gpu", "pause_kill", "pause_stop")
GOES_ON = ("hup", "pause_continue")
DISK = ("disk_continue", "disk_continue", "disk_kill", "disk_term")
KINDS = {
    "plain": (*ENDS, *GOES_ON),
    "one row at once": (*ENDS, *GOES_ON, "oom", "oom", "oom"),
    "not finite": (*ENDS, *GOES_ON),
}
"""Runs by what happens to them. Memory runs out where a micro-batch is one row: parts of one would round
otherwise. In the third a weight is damaged: a step is left out, and the run goes back."""
TRAINING: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 2, "gradient_accumulation_steps": 2},
    "one row at once": {"batch_size": 1, "gradient_accumulation_steps": 4},
    "not finite": {"batch_size": 4, "gradient_accumulation_steps": 1},
}
ALL: dict[str, Any] = {"dropout": 0.1, "early_stopping": 0}


class Trial:
    """Runs of one kind, each disturbed and then compared with one that was not."""

    def __init__(self, kind: str, chaos: Chaos, make: Callable[[], RunFolder]) -> None:
        self._chaos = chaos
        self._make = make
        self._kinds = [*KINDS[kind], *(DISK if chaos.has_disk else ())]
        self._damaged = kind == "not finite"
        undisturbed = self._new()
        chaos.run(undisturbed, [])
        self._wanted = essence(undisturbed)
        self.went_back = sum(event.get("back_to") is not None for event in undisturbed.events())
        control.delete(undisturbed)

    def _new(self) -> RunFolder:
        folder = self._make()
        if self._damaged:
            damage(folder.path)
        return folder

    def disturb(self, count: int) -> None:
        """One run with so many disturbances, as far as it lasts; fails where it does not come to the same."""
        folder = self._new()
        self._chaos.run(folder, [self._chaos.chance.choice(self._kinds) for _ in range(count)])
        different = [pair for pair in zip(self._wanted, essence(folder), strict=True) if pair[0] != pair[1]]
        assert not different, different[:3]
        control.delete(folder)
