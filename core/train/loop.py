"""The training loop: steps, measurements, checkpoints. Read `Trainer.run` from top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from ollama_tune.core.data.tokens.encoded import counted
from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train import checkpoint
from ollama_tune.core.train.batches import Batch, StepPlan, collate, fingerprint
from ollama_tune.core.train.checkpoint import Checkpoint, TrainState
from ollama_tune.core.train.importance import LayerInputs
from ollama_tune.core.train.loss import Objective
from ollama_tune.core.train.model import compute_dtype, trainable
from ollama_tune.core.train.probe import unchanged
from ollama_tune.core.train.recovery import OutOfMemory, Recovery, Restart, Rows
from ollama_tune.core.train.session import Session, Stopped
from ollama_tune.core.train.shortage import is_out_of_memory

EVALUATIONS = 8
VALIDATION_ROWS = 512


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


def autocast(training: TrainingSettings) -> Any:
    """16-bit arithmetic around float32 adapter weights; nothing where the run computes in float32."""
    if training.compute_dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(training.device, dtype=compute_dtype(training))


class Trainer:
    """Trains the adapter of a model on rows, from the start or from a checkpoint.

    All random numbers of a step (dropout) come from the seed and the step's number, so a step repeated
    after a resume is the same step.
    """

    def __init__(
        self,
        session: Session,
        model: Any,
        examples: Sequence[Example],
        validation: Sequence[Example],
        pad_id: int,
    ) -> None:
        self._session = session
        self._training = session.settings.training
        self._device = self._training.device
        self._model = model
        self._examples = counted(examples)
        self._validation = sorted(validation[:VALIDATION_ROWS], key=lambda example: -len(example.ids))
        self._pad_id = pad_id
        self._weights = trainable(model)
        self._optimizer = torch.optim.AdamW(
            self._weights.values(),
            lr=self._training.learning_rate,
            weight_decay=self._training.weight_decay,
            fused=True,
        )
        self._scaler = self._new_scaler()
        self._saved = time.monotonic()
        self._saved_step = 0
        self.plan = StepPlan(self._examples.counts, self._training)
        self.objective = Objective(model.get_base_model())
        self.state = TrainState(rows=fingerprint(self._examples))
        self.recovery = Recovery(session, model, self.state, self.discard, self.plan.most_rows)

    def _new_scaler(self) -> torch.amp.GradScaler:
        half = self._training.compute_dtype == "float16"
        return torch.amp.GradScaler(self._device, enabled=half)

    @property
    def interval(self) -> int:
        """Steps between two measurements."""
        return self._training.evaluation_interval or max(math.ceil(self.plan.total_steps / EVALUATIONS), 1)

    def check_objective(self) -> bool:
        """Whether the fast way to the loss is right for this model; the slow one is used where it is not.

        Raises `TuneError` where rows are packed and the model would let them see each other.
        """
        self._model.eval()
        alone = collate([self._examples[row] for row in self.plan.shortest()], self._pad_id, self._device)
        with autocast(self._training):
            right = self.objective.check(alone)
            if self._training.packing:
                self._check_packing(alone)
        return right

    def _check_packing(self, alone: Batch) -> None:
        """Compare the shortest row behind another one with the same row alone."""
        self.objective.pack()
        (last,) = self.plan.shortest()
        pair = [self._examples[row] for row in (last - 1, last)]
        packed = collate(pair, self._pad_id, self._device, sum(len(example.ids) for example in pair))
        if not self.objective.keeps_rows_apart(packed, alone):
            raise TuneError(
                "This model carries something over from one row of a packed sequence to the next.",
                "Start a run with training.packing set to no.",
            )

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint; refused when the rows are not those it was trained on."""
        if found.state.rows != self.state.rows:
            raise TuneError(
                "The training rows are not those this run was started with.",
                "Put the former data file back, or start a new run.",
            )
        checkpoint.load(found, self._model, self._optimizer)
        self.state = found.state
        self.recovery.adopt(found.state)
        self._saved_step = self._session.step = found.state.step
        if self.state.scaler:
            self._scaler.load_state_dict(self.state.scaler)

    def run(self) -> None:
        """Train to the last step; asked to stop, write a checkpoint of the last whole step and raise."""
        try:
            self._measure_if_due()
            while self.state.step < self.plan.total_steps:
                self._step()
                self._measure_if_due()
                if self.recovery.changed:
                    self._save("out_of_memory")
                if time.monotonic() - self._saved > 60 * self._training.checkpoint_minutes:
                    self._save("time")
        except (Stopped, OutOfMemory) as end:
            self.discard()
            if self.state.step != self._saved_step:
                self._save("stop" if isinstance(end, Stopped) else "out_of_memory")
            raise
        except Restart as restart:
            if not self._save("out_of_memory"):
                raise OutOfMemory.at(self.state.step + 1) from restart
            raise

    def _step(self) -> None:
        start, cpu, step = time.perf_counter(), time.process_time(), self.state.step
        rate = learning_rate(step, self.plan.total_steps, self._training)
        self._optimizer.param_groups[0]["lr"] = rate
        window = self.plan.window(step)
        loss, norm = self.recovery.window(step + 1, window, lambda parts: self.compute(parts, step))
        rows = [row for batch in window for row in batch]
        self.state.step = self._session.step = step + 1
        self._session.emit(
            "step",
            step=step + 1,
            total_steps=self.plan.total_steps,
            epoch=round(self.plan.epoch_at(step + 1), 4),
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            useful_tokens=sum(self._examples.counts[row] for row in rows),
            supervised_tokens=sum(self._examples.supervised[row] for row in rows),
            seconds=round(time.perf_counter() - start, 6),
            cpu_seconds=round(time.process_time() - cpu, 6),
        )

    def collate(self, rows: Sequence[int]) -> Batch:
        """The tensors of a micro-batch of training rows."""
        capacity = self._training.sequence_length if self._training.packing else 0
        return collate([self._examples[row] for row in rows], self._pad_id, self._device, capacity)

    def compute(self, window: Rows, step: int) -> tuple[float, float]:
        """Compute a whole window and step; the loss, and the gradient's norm before clipping.

        A window computed again draws the same random numbers; in other parts, others (the masks' shapes
        differ), but always the same for the same parts.
        """
        torch.manual_seed(self._training.seed * 1_000_003 + step)
        batches = [self.collate(rows) for rows in window]
        loss = self._accumulate(batches, sum(batch.supervised_tokens for batch in batches))
        return loss, self._update(loss, step)

    def rehearse(self, *, thorough: bool) -> None:
        """Compute two steps with the longest rows and a rate of zero, and one evaluation batch; undo it all.

        More than one micro-batch a step adds the gradients that wait to the peak, so there are two then. Not
        thorough, the shortest row stands in for all but the last micro-batch: the peak is the same.
        """
        rows = self.recovery.micro_batch
        worst, short = self.plan.longest(rows), self.plan.shortest()
        waiting = self._training.gradient_accumulation_steps > 1 or rows < self.plan.most_rows
        other = worst if thorough else short
        windows: list[Rows] = [[other], [other, worst] if waiting else [worst]]
        if thorough and waiting:
            windows[0] = windows[1]
        with unchanged(self._weights.values(), self._optimizer, self._device):
            known = self._scaler.state_dict()
            self._optimizer.param_groups[0]["lr"] = 0.0
            try:
                for window in windows:
                    self.compute(window, self.state.step)
                self.mean_loss(self.recovery.evaluation_rows, self.recovery.evaluation_rows)
            finally:
                self.discard(known)

    def discard(self, scaler: dict[str, Any] | None = None) -> None:
        """Forget a window that was not computed to its end: gradients, and states half made or unscaled."""
        self._optimizer.zero_grad(set_to_none=True)
        states = self._optimizer.state
        for weight in [weight for weight, state in states.items() if "exp_avg_sq" not in state]:
            del states[weight]
        known, self._scaler = scaler or self._scaler.state_dict(), self._new_scaler()
        self._scaler.load_state_dict(known)

    def _accumulate(self, batches: Sequence[Batch], supervised: int) -> float:
        """Add up the gradients of the mean loss over the supervised tokens of the whole step."""
        self._model.train()
        total = torch.zeros((), device=self._device)
        for batch in batches:
            self._session.check_stop()
            with autocast(self._training):
                loss = self.objective(batch) / supervised
            self._scaler.scale(loss).backward()
            total += loss.detach()
        return float(total)

    def _update(self, loss: float, step: int) -> float:
        """Clip and step; returns the gradient norm before clipping."""
        self._scaler.unscale_(self._optimizer)
        weights = list(self._weights.values())
        norm = float(torch.nn.utils.clip_grad_norm_(weights, self._training.max_gradient_norm))
        if not math.isfinite(loss) or not (math.isfinite(norm) or self._scaler.is_enabled()):
            raise TuneError(
                f"In step {step + 1} the {'gradient' if math.isfinite(loss) else 'loss'} became infinite.",
                f"Start a run with a learning rate below {self._training.learning_rate:g}, "
                "and with bfloat16 if this one used float16.",
            )
        self._apply()
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _apply(self) -> None:
        """Change the weights, exactly once.

        The optimizer's last act is the update itself, which allocates nothing: memory can run out before
        its counter moves, then nothing has changed; or after, in a hook, then the step is done.
        """
        before = self._updates()
        try:
            self._scaler.step(self._optimizer)
        except Exception as error:
            if not is_out_of_memory(error) or self._updates() == before:
                raise

    def _updates(self) -> float:
        """How often the last weight was updated."""
        state = self._optimizer.state.get(list(self._weights.values())[-1], {})
        return float(state["step"]) if "step" in state else 0.0

    def _measure_if_due(self) -> None:
        """Measure and write a checkpoint at every interval and at the end."""
        step = self.state.step
        due = step > 0 and (step % self.interval == 0 or step == self.plan.total_steps)
        if not due or self.state.evaluated_step == step:
            return
        inputs, loss = self.recovery.evaluation(step, self._measure) or (None, None)
        left_out = loss is None and bool(self._validation)
        if not left_out and (loss is None or self.state.best_loss is None or loss < self.state.best_loss):
            self.state.best_step, self.state.best_loss = step, loss
            if inputs is not None:
                inputs.write(self._session.folder.importance_path)
        self.state.evaluated_step = step
        if loss is not None:
            rows = len(self._validation)
            self._session.emit("evaluation", step=step, loss=loss, exact_match=None, rows=rows, model="tuned")
        self._save("evaluation")

    def _measure(self, size: int) -> tuple[LayerInputs, float | None]:
        wanted = self._session.settings.export.importance
        with LayerInputs(self._model.get_base_model(), wanted) as inputs:
            return inputs, self.mean_loss(size)

    def validation_loss(self) -> float | None:
        """The mean loss over the validation rows; None where there are none or memory does not suffice."""
        return self.recovery.evaluation(self.state.step, self.mean_loss)

    @torch.no_grad()
    def mean_loss(self, size: int, rows: int | None = None) -> float | None:
        """Mean loss over the supervised tokens of the (first) validation rows, `size` rows at once."""
        if not self._validation:
            return None
        self._model.eval()
        total, tokens, chosen = 0.0, 0, self._validation[:rows]
        for start in range(0, len(chosen), size):
            self._session.check_stop()
            batch = collate(chosen[start : start + size], self._pad_id, self._device)
            with autocast(self._training):
                total += float(self.objective(batch))
            tokens += batch.supervised_tokens
        return total / tokens

    def base_loss(self) -> float | None:
        """The validation loss of the model without its adapter."""
        with self._model.disable_adapter():
            return self.validation_loss()

    def _save(self, reason: str) -> bool:
        """Write a checkpoint; False when memory did not suffice, then the former one stays."""
        self.state.scaler = self._scaler.state_dict()
        step, folder = self.state.step, self._session.folder
        arguments = (folder, self.state, self._model, self._optimizer)
        given_up = "the former checkpoint stays the newest."
        size = self.recovery.twice("checkpoint", step, lambda: checkpoint.save(*arguments), given_up)
        self._saved = time.monotonic()
        if size is None:
            return False
        self._saved_step, self.recovery.changed = step, False
        self._session.emit(
            "checkpoint",
            step=step,
            folder=f"checkpoints/{checkpoint.checkpoint_path(folder, step).name}",
            bytes=size,
            best=self.state.best_step == step,
            reason=reason,
        )
        self._session.writer.sync()
        return True
