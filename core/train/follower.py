"""A process that follows: it reads what the leader reads, computes what it is told to, and writes nothing."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.launch import become
from ollama_tune.core.train.group import Group, Order
from ollama_tune.core.train.recovery import Restart
from ollama_tune.core.train.session import Session, StopWish
from ollama_tune.core.train.shortage import NEED_LESS, free_memory, is_out_of_memory
from ollama_tune.core.train.world import Ended, Lost, LostMemory, World

if TYPE_CHECKING:
    from ollama_tune.core.train.loop import Trainer


def assist(folder: RunFolder, stage: str, stop: StopWish, world: World) -> int:
    """Follow the leader of a run to the end of its training; returns the exit status."""
    session = Session(folder, stop, world=world)
    try:
        from ollama_tune.core.train.recipe import train

        train(session, ["train"])
    except Ended:
        pass
    except Restart:
        become(folder, stage)
    except Lost as lost:
        if not session.group.ended:
            _print(lost)
            return 1
    except BaseException as error:
        _print(traceback.format_exc())
        return _tell(session, error)
    session.group.leave()
    return 0


def _tell(session: Session, error: BaseException) -> int:
    """Let the leader end the run with what happened here; of an unforeseen error only its kind is told."""
    if not isinstance(error, TuneError):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        name = type(error).__name__
        place = f"{name} in {frame.filename.rpartition('/')[2]}, line {frame.lineno}"
        fix = f"Look into {session.folder.log_path}; resuming the run tries again."
        if is_out_of_memory(error):
            error = LostMemory("its memory was used up.", NEED_LESS, details=place)
        else:
            error = TuneError(f"{name}.", fix, details=place)
    if isinstance(session.group, Group):
        with contextlib.suppress(Lost):
            session.group.fail(error)
    return 1


def _print(*lines: object) -> None:
    with contextlib.suppress(OSError):
        print(*lines, sep="\n", file=sys.stderr)


def follow(session: Session, trainer: Trainer) -> None:
    """Carry out the leader's orders; raises `Ended` or `Restart`."""
    assert isinstance(session.group, Group)
    _Follower(session, trainer, session.group).serve()


class _Follower:
    def __init__(self, session: Session, trainer: Trainer, group: Group) -> None:
        self._session, self._trainer, self._group = session, trainer, group
        self._computer = trainer.computer
        self._weights = list(self._computer.path.weights.values())
        self._do: dict[str, Callable[[Order], None]] = {
            "window": self._window,
            "losses": self._losses,
            "decode": self._decode,
            "logits": self._logits,
            "likelihoods": self._likelihoods,
        }

    def serve(self) -> None:
        """One order after the other."""
        while True:
            order = self._group.next_order()
            if order["do"] == "reduce":
                self._group.add_gradients(self._weights)
            elif order["do"] == "forget":
                self._trainer.discard()
            elif order["do"] == "restart":
                self._group.answer()
                self._group.begin_again()
                raise Restart
            else:
                self._computer.recompute(order["keep"])
                self._group.spread(self._weights)
                self._guarded(order)

    def _guarded(self, order: Order) -> None:
        """Carry out an order; where memory does not suffice, say so and be ready for the next one."""
        try:
            self._do[order["do"]](order)
            return
        except Exception as error:
            if self._group.lockstep or not is_out_of_memory(error):
                raise
            short = str(error)[:200]
        self._trainer.discard()
        self._trainer.recovery.drain()
        free_memory()
        self._group.answer(short=short)

    def _own(self, order: Order) -> tuple[Any, int]:
        rank = self._group.rank
        return order["shares"][rank], order["idle"][rank]

    def _window(self, order: Order) -> None:
        share, idle = self._own(order)
        factor = order["scale"]
        batches = self._computer.begin(share, order["step"], self._group.rank)
        tokens = sum(batch.supervised_tokens for batch in batches)
        loss = self._computer.backward(batches, order["supervised"], lambda loss: loss * factor, idle)
        self._group.answer(sum=[loss, tokens], tallies=self._computer.path.tallies())

    def _losses(self, order: Order) -> None:
        from ollama_tune.core.train.importance import LayerInputs

        share, idle = self._own(order)
        inputs = LayerInputs() if order["watch"] else None
        parts = [(start, end) for start, end in share]
        found = self._computer.losses(parts, tuned=order["tuned"], inputs=inputs, idle=idle)
        seen = inputs.packed() if inputs is not None else b""
        self._group.answer(sum=list(found), tallies=self._computer.path.tallies(), data=seen)

    def _decode(self, order: Order) -> None:
        from ollama_tune.core.train.leader import Ear

        about = {name: order[name] for name in ("max_new_tokens", "tuned", "stop_ids")}
        prompts, engine = order["shares"][self._group.rank], self._computer.engine
        if not self._group.lockstep:
            self._group.answer(tokens=engine.decode(prompts, **about) if prompts else [])
            return
        ear = Ear(self._group)
        engine.decode(prompts, **about, choose=ear.choose, stopped=ear.stopped)

    def _logits(self, order: Order) -> None:
        self._computer.engine.logits(order["ids"], order["positions"], tuned=order["tuned"])

    def _likelihoods(self, order: Order) -> None:
        from ollama_tune.core.data.values import Example

        rows = [Example("", tuple(ids), tuple(trained), ()) for ids, trained in order["rows"]]
        self._computer.engine.likelihoods(rows, tuned=order["tuned"])
