"""The processes of one run: rank 0 leads, the others follow.

The leader alone decides, writes and holds the run's lock; a follower computes what it is told to and holds
nothing that would be missed. Orders and answers go through torch's key-value store, weights and gradients
through its collectives (NCCL on GPUs, gloo on the CPU). Every rank gives a sign of life each second: one that
ends or hangs ends the run, and no rank outlives the leader.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import psutil

from ollama_tune.core.errors import TuneError
from ollama_tune.core.train.collectives import Collectives, give_up
from ollama_tune.core.train.store import Store
from ollama_tune.core.train.world import ATTEMPT, Ended, Lost, LostMemory, World

T = TypeVar("T")
Order = dict[str, Any]

BEAT = 1.0
"""Seconds between two signs of life, and at most between two looks while something is waited for."""
SILENCE = 30.0
"""Seconds without a sign of life after which a rank is lost ..."""
CONFIRM = 4.0
"""... and where another one may have ended: a collective failed, or the launcher told this one to end."""
GRACE = 120.0
"""Seconds in which the leader should notice a loss by itself ..."""
GRACE_WAITING = 10.0
"""... and while it waits for the others in a collective."""
JOINING = 300.0
"""Longest time in which all processes have to be there."""


class Group(Collectives):
    """This process among several. `gauge` gives its memory figures, `wish` who asked it to end, if anybody.

    `look` is called while something is waited for, and may raise. `on_hang` ends this process where it does
    not notice by itself that a rank is lost. `lockstep` is set where every rank has to compute all that the
    others compute, because each holds a part of the model.
    """

    def __init__(
        self, world: World, gauge: Callable[[], dict[str, Any]], wish: Callable[[], str | None]
    ) -> None:
        super().__init__()
        self.rank, self.size, self.local_size = world.rank, world.size, world.local_size
        self.leads = world.rank == 0
        self.lockstep = False
        self.look: Callable[[], None] = self.check
        self.on_hang: Callable[[Lost], None] = lambda lost: None
        self._world, self._gauge, self._own_wish = world, gauge, wish
        self._orders = self._turns = 0
        self._beats = 0
        self._ended = self._left = False
        self._whole = False
        self._seen: dict[int, tuple[int, float]] = {}
        self._about: dict[int, dict[str, Any]] = {}
        self._loss: Lost | None = None
        self._over = threading.Event()
        self._serves, patience = self.leads and not world.agent, timedelta(seconds=JOINING)
        there = world.address, world.port, None

        def client(*, serves: bool) -> Any:
            base = self._dist.TCPStore(*there, serves, patience, False)
            return self._dist.PrefixStore(world.prefix, base)

        self._torch_store = client(serves=self._serves)
        self._store, self._heart_store = Store(self._torch_store), Store(client(serves=False))
        self._heart = threading.Thread(target=self._live, name="ranks", daemon=True)

    @property
    def wish(self) -> str | None:
        """See `Alone.wish`."""
        return next((about["wish"] for about in self._about.values() if about.get("wish")), None)

    def join(self) -> None:
        """Wait until all ranks are there. Raises `Lost` for one that is missing."""
        self._beat()
        self._store.set(f"here/{self.rank}", b"1")
        deadline = time.monotonic() + JOINING
        missing = list(range(self.size))
        while missing := [rank for rank in missing if not self._store.has(f"here/{rank}")]:
            self._hear_end()
            self.look()
            if time.monotonic() > deadline:
                names = ", ".join(map(str, missing))
                raise Lost(
                    f"Of {self.size} processes rank {names} did not come within {JOINING:.0f} seconds.",
                    "Look into the log of that rank, and for a firewall between the machines.",
                )
            time.sleep(0.05)
        self._watch()
        self._heart.start()

    # Orders of the leader and what the followers answer.

    def order(self, do: str, **about: Any) -> None:
        """Tell all followers what to do next."""
        self._orders += 1
        self._store.set(f"order/{self._orders}", json.dumps({"do": do, **about}))
        if self._orders > 8:
            self._store.forget(f"order/{self._orders - 8}")

    def next_order(self) -> Order:
        """Wait for what to do next."""
        self._orders += 1
        name = f"order/{self._orders}"
        self._await([name])
        found: Order = json.loads(self._store.get(name))
        return found

    def answer(self, *, data: bytes = b"", **about: Any) -> None:
        """Answer the last order."""
        self._store.set(f"answer/{self._orders}/{self.rank}", json.dumps(about).encode() + b"\n" + data)

    def answers(self) -> list[tuple[Order, bytes]]:
        """What every follower answers to the last order, by rank from 1."""
        names = [f"answer/{self._orders}/{rank}" for rank in range(1, self.size)]
        self._await(names)
        found = [self._store.get(name).partition(b"\n") for name in names]
        for name in names:
            self._store.forget(name)
        return [(json.loads(about), data) for about, _, data in found]

    def say(self, name: str, value: Any) -> None:
        """Put down a value under the last order, for all to read."""
        self._store.set(f"said/{self._orders}/{name}", json.dumps(value))

    def hear(self, name: str) -> Any:
        """Wait for a value that the leader says."""
        place = f"said/{self._orders}/{name}"
        self._await([place])
        return json.loads(self._store.get(place))

    def in_turn(self, work: Callable[[], T]) -> T:
        """After the leader, then one rank a machine, then the others."""
        first = self.rank - self._world.local_rank
        return self._after(0 if first == self.rank else first, work)

    def one_by_one(self, work: Callable[[], T]) -> T:
        """See `Alone.one_by_one`."""
        return self._after(self.rank - bool(self._world.local_rank), work)

    def _after(self, before: int, work: Callable[[], T]) -> T:
        """Do the work after another rank did it, or at once where that is this one."""
        self._turns += 1
        if before != self.rank:
            self._await([f"turn/{self._turns}/{before}"])
        found = work()
        self._store.set(f"turn/{self._turns}/{self.rank}", b"1")
        return found

    def meet(self, name: str, value: str) -> list[str]:
        """See `Alone.meet`; each name serves once."""
        names = [f"meet/{name}/{rank}" for rank in range(self.size)]
        self._store.set(names[self.rank], value)
        self._await(names)
        return [self._store.get(place).decode() for place in names]

    def _await(self, names: Sequence[str]) -> None:
        while True:
            self.look()
            if self._store.wait(names, BEAT):
                return

    # Signs of life.

    def check(self) -> None:
        """See `Alone.check`; to be called often."""
        if self._loss is not None:
            raise self._loss
        if self._ended:
            raise Ended

    def confirm(self) -> None:
        """See `Alone.confirm`: every rank that is watched must give a new sign of life."""
        before, began = {rank: self._told_by(self._store, rank)["n"] for rank in self._seen}, time.monotonic()
        while silent := [rank for rank, count in before.items() if self._seen[rank][0] <= count]:
            self.check()
            for rank in silent:
                if time.monotonic() - began > self._patience(rank):
                    raise self._missing(rank)
            time.sleep(BEAT / 10)
        self.check()

    @property
    def ended(self) -> bool:
        """See `Alone.ended`."""
        return self._ended

    def told(self) -> dict[str, Any]:
        """The memory of every other rank, as it told last."""
        ranks = [about | {"rank": rank} for rank, about in self._figures()]
        return {"host": socket.gethostname(), "ranks": ranks} if self.leads else {}

    def _figures(self) -> list[tuple[int, dict[str, Any]]]:
        names = ("host", "device", "used", "peak", "free", "total")
        return [
            (rank, {name: about.get(name) for name in names}) for rank, about in sorted(self._about.items())
        ]

    def fail(self, error: TuneError) -> None:
        """Tell the leader what ends this rank."""
        self._stop_heart()
        self._beat(failed=[error.what, error.fix, error.details], short=isinstance(error, LostMemory))

    def leave(self, *, whole: bool = False) -> None:
        """See `Alone.leave`; a second call does nothing."""
        if self._left:
            return
        self._left = True
        self._stop_heart()
        try:
            self._store.set("end" if self.leads else f"left/{self.rank}", b"1" if whole else b"0")
        except Lost:
            return  # the launcher is gone, and with it the followers
        if self._serves and self._loss is None:
            self._await_farewells()
        if whole or self._whole:
            self.disconnect()

    def _await_farewells(self) -> None:
        """Serve the store until every follower that came knows that the end is one, within about a second."""
        deadline = time.monotonic() + SILENCE
        with contextlib.suppress(Lost):
            came = [rank for rank in range(1, self.size) if self._store.has(f"beat/{rank}")]
            while time.monotonic() < deadline and not all(self._store.has(f"left/{rank}") for rank in came):
                time.sleep(BEAT / 20)

    def _hear_end(self) -> None:
        """Notice that the leader is done with this rank, and tell it so: from then on it may go."""
        if not (self.leads or self._ended) and self._heart_store.has("end"):
            self._whole = self._heart_store.get("end") == b"1"
            self._ended = True
            self._heart_store.set(f"left/{self.rank}", b"1")

    def restart(self) -> None:
        """See `Alone.restart`."""
        self.order("restart")
        self.answers()
        self.begin_again()

    def begin_again(self) -> None:
        """Get ready for a fresh process in the place of this one."""
        self._left = True
        self._stop_heart()
        os.environ[ATTEMPT] = str(int(os.environ.get(ATTEMPT, "0")) + 1)

    def _stop_heart(self) -> None:
        self._over.set()
        if self._heart.is_alive() and threading.current_thread() is not self._heart:
            self._heart.join()

    def _beat(self, **more: Any) -> None:
        self._beats += 1
        about = {"n": self._beats, "pid": os.getpid(), "host": socket.gethostname()}
        about |= {} if self.leads else {"wish": self._own_wish()}
        with contextlib.suppress(OSError, RuntimeError):  # a GPU that broke can no longer be asked
            about |= self._gauge()
        self._heart_store.set(f"beat/{self.rank}", json.dumps(about | more))

    def _watch(self) -> None:
        """Look at the signs of life: the leader at all, a follower at the leader's."""
        losses, seen = list[Lost](), dict(self._seen)
        for rank in range(1, self.size) if self.leads else [0]:
            self._about[rank] = about = self._told_by(self._heart_store, rank)
            before, since = seen.get(rank, (-1, 0.0))
            if about["n"] != before:
                seen[rank] = about["n"], time.monotonic()
            elif time.monotonic() - since > (self._patience(rank) if self._own_wish() else SILENCE):
                losses.append(self._missing(rank))
            if about.get("failed"):
                kind, (what, fix, details) = LostMemory if about["short"] else Lost, about["failed"]
                losses.append(kind(f"{self._named(rank)} could not go on: {what}", fix, details=details))
        if losses and self._loss is None:  # where memory ran out others fail too, because of that
            self._loss = min(losses, key=lambda loss: not isinstance(loss, LostMemory))
        self._seen = seen
        self._hear_end()

    @staticmethod
    def _told_by(store: Store, rank: int) -> dict[str, Any]:
        """What a rank told with its last sign of life."""
        found: dict[str, Any] = json.loads(store.get(f"beat/{rank}"))
        return found

    def _patience(self, rank: int) -> float:
        """How long a rank may be silent that has perhaps ended: only a busy box keeps a live one quiet."""
        about = self._about.get(rank, {})
        here = about.get("host") == socket.gethostname()
        return SILENCE if here and _runs(about["pid"]) else CONFIRM

    def _live(self) -> None:
        """Beat and watch, until the group is left or lost."""
        while not self._over.wait(BEAT):
            try:
                self._hear_end()
                self._beat()
                self._watch()
            except Lost as lost:
                self._loss = self._loss or lost
            if self._loss is not None or self._ended:
                return self._see_that_it_ends()
        return None

    def _see_that_it_ends(self) -> None:
        """Wait for the main thread, which may hang in a collective; then end the process from here.

        On GPUs a collective waits for a lost rank for ever, unless it is given up.
        """
        if self._aborts and self._loss is not None:
            threading.Thread(target=give_up, daemon=True).start()
        began = time.monotonic()
        while not self._over.wait(BEAT / 4):
            waiting = self._colliding or self.lockstep or not self.leads
            if time.monotonic() - began > (GRACE_WAITING if waiting else GRACE):
                if self._loss is not None and self.leads:
                    self.on_hang(self._loss)
                os._exit(0 if self._ended else 1)

    def _named(self, rank: int) -> str:
        about = self._about.get(rank, {})
        where = f", process {about['pid']} on {about['host']}" if about else ""
        return f"Rank {rank} of {self.size} (counted from 0{where})"

    def _missing(self, rank: int) -> Lost:
        return Lost(
            f"{self._named(rank)} ended or no longer answers, so the run cannot go on.",
            "Resume the run: it goes on from its last checkpoint. If it happens again, look into stdout.log, "
            "and with `sudo dmesg` for memory that ran out or a GPU that failed.",
        )


def _runs(pid: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
