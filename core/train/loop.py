"""The training loop: steps, measurements, checkpoints. Read `Trainer.run` from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ollama_tune.core.data.tokens.encoded import counted
from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train import checkpoint
from ollama_tune.core.train.batches import StepPlan, fingerprint
from ollama_tune.core.train.checkpoint import Checkpoint, TrainState
from ollama_tune.core.train.guard import Guard, not_finite
from ollama_tune.core.train.hold import Hold
from ollama_tune.core.train.importance import LayerInputs
from ollama_tune.core.train.judge import Judge
from ollama_tune.core.train.leader import make_computer
from ollama_tune.core.train.optimizer import forget_half_made, make_optimizer, updates
from ollama_tune.core.train.path import TrainPath
from ollama_tune.core.train.probe import unchanged
from ollama_tune.core.train.recovery import OutOfMemory, Recovery, Restart, Rows
from ollama_tune.core.train.session import Session, Stopped
from ollama_tune.core.train.shortage import is_out_of_memory
from ollama_tune.core.train.world import Lost, LostMemory

EVALUATIONS = 8
VALIDATION_ROWS = 512
LAST_SAVES: dict[type[Exception], str] = {Stopped: "stop", Lost: "lost"}
"""Why the last checkpoint is written, by what ended the run."""


def learning_rate(step: int, total: int, training: TrainingSettings) -> float:
    """The rate of a step (from 0): linear rise over the warm-up, then the schedule down to zero."""
    warmup = math.ceil(training.warmup * total)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.schedule == "constant":
        return training.learning_rate
    left = 1 - (step - warmup) / max(total - warmup, 1)
    share = left if training.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return training.learning_rate * share


class Trainer:
    """Trains the adapter of a path's model on rows, from the start or from a checkpoint.

    All random numbers of a step (dropout) come from the seed and the step's number, so a step repeated
    after a resume is the same step.
    """

    def __init__(
        self,
        session: Session,
        path: TrainPath,
        examples: Sequence[Example],
        validation: Sequence[Example],
    ) -> None:
        self._session = session
        self._training = session.settings.training
        self._path = path
        self._examples = counted(examples)
        held = sorted(validation[:VALIDATION_ROWS], key=lambda example: -len(example.ids))
        self.computer = make_computer(session, path, self._examples, held)
        self._validation = held
        self._weights = list(path.weights.values())
        self._optimizer = make_optimizer(self._training, path.weights)
        self._scaler = self._new_scaler()
        self._saved = time.monotonic()
        self._saved_step = 0
        self.plan = self._new_plan()
        path.begin(self._optimizer, self.plan.total_steps)
        self.state = TrainState(rows=fingerprint(self._examples))
        self.recovery = Recovery(session, self.computer, self.state, self.discard, self.plan.most_rows)
        self.hold = Hold(session)
        self.judge = Judge(session, self.plan.total_steps)
        self._guard = Guard(session, path)
        self._checkpoint_bytes = 3 * sum(weight.nbytes for weight in self._weights)
        self.on_measured: Callable[[], object] = lambda: None
        """Called after each measurement, once its checkpoint is written."""

    def _new_plan(self) -> StepPlan:
        return StepPlan(self._examples.counts, self._training, padded=self._path.padded)

    def _new_scaler(self) -> torch.amp.GradScaler:
        half = self._training.compute_dtype == "float16"
        return torch.amp.GradScaler(self._path.device, enabled=half)

    @property
    def interval(self) -> int:
        """Steps between two measurements."""
        return self._training.evaluation_interval or max(math.ceil(self.plan.total_steps / EVALUATIONS), 1)

    def check(self) -> str:
        """Let the path compare what it takes for granted on the two shortest rows; a remark, or nothing.

        Raises `TuneError` where the model cannot be trained like this.
        """
        (last,) = self.plan.shortest()
        remark = self._path.check([self._examples[row] for row in (last - 1, last)])
        self.plan = self._new_plan()  # rows may have to be padded now
        self.judge = Judge(self._session, self.plan.total_steps)
        return remark

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint; refused when the rows are not those it was trained on."""
        if found.state.rows != self.state.rows:
            raise TuneError(
                "The training rows are not those this run was started with.",
                "Put the former data file back, or start a new run.",
            )
        self._optimizer.state.clear()
        checkpoint.load(found, self._path, self._optimizer)
        self.state = found.state
        self.recovery.adopt(found.state)
        self._saved_step = self._session.step = found.state.step
        if self.state.scaler:
            self._scaler.load_state_dict(self.state.scaler)

    def run(self) -> None:
        """Train to the last step, or until nothing gets better any more; asked to stop, write a
        checkpoint of the last whole step and raise."""
        if self.state.step == 0:
            self._guard.remember_start()
        try:
            self._measure_if_due()
            while self.state.step < self.plan.total_steps and not self.judge.ended(self.state):
                self._pause_if_asked()
                self._step()
                self._measure_if_due()
                if self.recovery.changed:
                    self._save("out_of_memory")
                if time.monotonic() - self._saved > 60 * self._training.checkpoint_minutes:
                    self._save("time")
        except LostMemory as lost:
            raise self.spare(lost) from lost
        except (Stopped, OutOfMemory, Lost) as end:
            self.discard()
            if self.state.step != self._saved_step:
                self._save(LAST_SAVES.get(type(end), "out_of_memory"), wait=False)
            raise
        except Restart as restart:
            if not self._save("out_of_memory"):
                raise OutOfMemory.at(self.state.step + 1) from restart
            raise

    def spare(self, lost: LostMemory) -> LostMemory:
        """Write a checkpoint from which the run goes on with less memory; the error that says so.

        For ranks that share out a model: they cannot do the step again in this process.
        """
        self.discard()
        what = self.recovery.cheaper()
        if what is None or not self._save("out_of_memory", wait=False):
            return lost
        return LostMemory(lost.what, f"Resume the run: {what}", details=lost.details)

    def _pause_if_asked(self) -> None:
        """Wait while the run is asked to, with a checkpoint written, or the log has no room."""
        self.hold.until_logged()
        if self.hold.asked:
            if self.state.step != self._saved_step:
                self._save("pause")
            self.hold.until_continued()

    def _step(self) -> None:
        start, cpu, step = time.perf_counter(), time.process_time(), self.state.step
        rate = self.state.rate_factor * learning_rate(step, self.plan.total_steps, self._training)
        self._optimizer.param_groups[0]["lr"] = rate
        window = self.plan.window(step)
        loss, norm = self.recovery.window(step + 1, window, lambda parts: self.compute(parts, step))
        bad = self._not_finite(loss, norm)
        if bad and not self._guard.leave_out(self.state, step + 1, bad):
            self._go_back(step + 1, bad)
            return
        rows = [row for batch in window for row in batch]
        useful, seconds = sum(self._examples.counts[row] for row in rows), time.perf_counter() - start
        self.state.step = self._session.step = step + 1
        self._session.emit(
            "step",
            step=step + 1,
            total_steps=self.plan.total_steps,
            epoch=round(self.plan.epoch_at(step + 1), 4),
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            useful_tokens=useful,
            supervised_tokens=sum(self._examples.supervised[row] for row in rows),
            seconds=round(seconds, 6),
            cpu_seconds=round(time.process_time() - cpu, 6),
            **self.computer.figures(),
            **self.judge.step(useful, seconds),
        )

    def compute(self, window: Rows, step: int) -> tuple[float, float]:
        """Compute a whole window and step; the loss, and the gradient's norm before clipping."""
        loss = self.computer.gradients(window, step, self._scaler.scale)
        return loss, self._update(loss)

    def rehearse(self, *, thorough: bool) -> None:
        """Compute two steps with the longest rows and a rate of zero, and one evaluation batch; undo it all.

        More than one micro-batch a step adds the gradients that wait to the peak, so there are two then. Not
        thorough, the shortest row stands in for all but the last micro-batch: the peak is the same.
        """
        rows = self.recovery.micro_batch
        worst, short = self.plan.longest(rows), self.plan.shortest()
        waiting = self._training.gradient_accumulation_steps > 1 or rows < self.plan.most_rows
        other = worst if thorough else short
        windows: list[list[list[int]]] = [[other], [other, worst] if waiting else [worst]]
        if thorough and waiting:
            windows[0] = windows[1]
        with unchanged(self._weights, self._optimizer, self._path.device):
            known = self._scaler.state_dict()
            self._optimizer.param_groups[0]["lr"] = 0.0
            try:
                for window in windows:
                    self.compute(self.computer.ranks * window, self.state.step)
                held = self.recovery.evaluation_rows
                self.mean_loss(held, self.computer.ranks * held)
            finally:
                self.discard(known)

    def discard(self, scaler: dict[str, Any] | None = None) -> None:
        """Forget a window that was not computed to its end: gradients, and states half made or unscaled."""
        self._optimizer.zero_grad(set_to_none=True)
        forget_half_made(self._optimizer)
        known, self._scaler = scaler or self._scaler.state_dict(), self._new_scaler()
        self._scaler.load_state_dict(known)

    def _update(self, loss: float) -> float:
        """Clip, and step if all is finite; returns the gradient norm before clipping."""
        self._scaler.unscale_(self._optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self._training.max_gradient_norm))
        if self._not_finite(loss, norm):
            self.discard()
            return norm
        self._apply()
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _not_finite(self, loss: float, norm: float) -> str | None:
        return not_finite(loss, norm, self._scaler.get_scale() if self._scaler.is_enabled() else None)

    def _go_back(self, step: int, what: str) -> None:
        """Return to a checkpoint or to the beginning because of a step that was not finite, and save that."""
        kept, found = self.state, self._guard.refuge(self.state)
        if found is None:
            self._guard.load_start()
            self._optimizer.state.clear()
            self.state = TrainState(rows=kept.rows, micro_batch=kept.micro_batch, recompute=kept.recompute)
            self.state.restarted_at = kept.restarted_at
            self.recovery.adopt(self.state)
            self._session.step = 0
        else:
            self.restore(found)
        self.state.not_finite, self.state.rate_factor = kept.not_finite, kept.rate_factor
        self._guard.tell_return(step, what, self.state)
        checkpoint.remove_later(self._session.folder, self.state.step)
        self._save("not_finite")

    def _apply(self) -> None:
        """Change the weights, exactly once.

        The optimizer's last act is the update itself, which allocates nothing: memory can run out before
        its counter moves, then nothing has changed; or after, in a hook, then the step is done.
        """
        before = updates(self._optimizer, self._weights[-1])
        try:
            self._scaler.step(self._optimizer)
        except Exception as error:
            if not is_out_of_memory(error) or updates(self._optimizer, self._weights[-1]) == before:
                raise

    def _measure_if_due(self) -> None:
        """Measure and write a checkpoint at every interval and at the end."""
        step = self.state.step
        due = step > 0 and (step % self.interval == 0 or step == self.plan.total_steps)
        if not due or self.state.evaluated_step == step:
            return
        inputs, loss = self.recovery.evaluation(step, self._measure) or (None, None)
        best, told = False, dict[str, Any]()
        if loss is not None or not self._validation:
            best, told = self.judge.measured(self.state, loss)
        if best and inputs is not None:
            target = self._session.folder.importance_path
            self.hold.write(0, lambda: inputs.write(target))
        self.state.evaluated_step = step
        if loss is not None:
            about = {"exact_match": None, "rows": len(self._validation), "model": "tuned"}
            self._session.emit("evaluation", step=step, loss=loss, **about, **self.computer.figures(), **told)
        self._save("evaluation")
        self.on_measured()
        self.judge.sample(self.state)

    def _measure(self, size: int) -> tuple[LayerInputs, float | None]:
        inputs = LayerInputs()
        if not self._session.settings.export.importance:
            return inputs, self.mean_loss(size)
        return inputs, self.mean_loss(size, inputs=inputs)

    def mean_loss(
        self, size: int, rows: int | None = None, inputs: LayerInputs | None = None
    ) -> float | None:
        """Mean loss over the supervised tokens of the (first) validation rows, `size` rows at once."""
        return self.computer.mean_loss(size, rows, inputs=inputs)

    def validation_loss(self) -> float | None:
        """The mean loss over the validation rows; None where there are none or memory does not suffice."""
        return self.recovery.evaluation(self.state.step, self.mean_loss)

    def base_loss(self) -> float | None:
        """The validation loss of the model without its adapter."""
        measure = partial(self.computer.mean_loss, tuned=False)
        return self.recovery.evaluation(self.state.step, measure)

    def _save(self, reason: str, *, wait: bool = True) -> bool:
        """Write a checkpoint; False when memory did not suffice, then the former one stays.

        With no room on the disk the run waits for it or, where it shall not, goes without, too. So it does
        where a weight is not finite.
        """
        if not self._guard.may_save(self.state.step):
            self._saved = time.monotonic()
            return False
        self._session.writer.sync()
        self.state.scaler = self._scaler.state_dict()
        step, folder = self.state.step, self._session.folder
        arguments = (folder, self.state, self._path, self._optimizer)
        given_up = "the former checkpoint stays the newest."
        write = self.hold.write if wait else self.hold.write_now

        def work() -> int:
            known = checkpoint.save_state(folder, self.state) if step == self._saved_step else None
            return known or checkpoint.save(*arguments)

        size = self.recovery.twice("checkpoint", step, lambda: write(self._checkpoint_bytes, work), given_up)
        self._saved = time.monotonic()
        if size is None:
            return False
        self._checkpoint_bytes = size
        self._guard.saved()
        self._saved_step, self.recovery.changed = step, False
        self._session.emit(
            "checkpoint",
            step=step,
            folder=f"checkpoints/{checkpoint.checkpoint_path(folder, step).name}",
            bytes=size,
            best=self.state.best_step == step,
            reason=reason,
        )
        return True
