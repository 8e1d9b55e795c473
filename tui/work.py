"""The slow work behind the wizard: each piece in its own thread, each ending in one message."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.app import App
from textual.reactive import var
from textual.worker import get_current_worker

from ollama_tune.core.errors import TuneError
from ollama_tune.tui import messages
from ollama_tune.tui.state import Facts, WizardState

if TYPE_CHECKING:
    from ollama_tune.core.data.render import ChatFormat
    from ollama_tune.core.data.values import DatasetProfile, Lengths, Row
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.values import ModelSpec
    from ollama_tune.core.plan.values import Choice, Offer, Plan

NEWS_EVERY = 0.2
IMPORTING = threading.Lock()
"""One thread imports at a time: modules that import each other may be seen half made by another thread."""
Probe = Callable[[], "Machine"]


def _probe() -> Machine:
    with IMPORTING:
        from ollama_tune.core.machine.probe import probe_machine

    return probe_machine()


class Cancelled(Exception):
    """The answer that this work was for has changed."""


class FactsApp(App[int]):
    """Holds the answers and the facts, and keeps the facts true to the answers.

    Machine, model and data are read side by side; then the rows are measured; then the plan is made.
    A changed answer repeats what depends on it and nothing else.
    """

    facts: var[Facts] = var(Facts, init=False)

    def __init__(self, answers: WizardState, probe: Probe | None = None) -> None:
        super().__init__()
        self.answers = answers
        self._probe = probe or _probe

    def read_everything(self) -> None:
        """Start on all facts; called once the first frame is painted."""
        self.probe_again()
        self._read_model_again()
        self._check_data_again()
        self._list_models()

    # What the screens ask for

    def look_at_box(self) -> Machine:
        """What the box is and what is free on it, as of now; slow, so only from a thread."""
        return self._probe()

    def probe_again(self) -> None:
        """Look at the box again; the plan follows."""
        self._busy("machine", "Looking at this machine …")
        self._run_probe()

    def choose_model(self, source: str, revision: str | None = None) -> None:
        """Take another model and read it; nothing is done when it is the one already taken."""
        same = (source, revision) == (self.answers.model, self.answers.revision)
        if same and (self.facts.spec is not None or "model" in self.facts.busy):
            return
        self.answers = replace(self.answers, model=source, revision=revision)
        self._read_model_again()

    def choose_data(self, path: str) -> None:
        """Take other data and check it; nothing is done when it is the file already taken."""
        if path == self.answers.data and (self.facts.profile is not None or "data" in self.facts.busy):
            return
        self.answers = replace(self.answers, data=path)
        self._check_data_again()

    def set_value(self, path: str, value: Any) -> None:
        """Set a field by hand; the recommendation leaves it alone from now on."""
        self.answers = replace(self.answers, changed=dict(self.answers.changed) | {path: value})
        self._plan_again()

    def restore_value(self, path: str) -> None:
        """Take the recommended value of a field again."""
        kept = {name: value for name, value in self.answers.changed.items() if name != path}
        self.answers = replace(self.answers, changed=kept)
        self._plan_again()

    def take_offer(self, offer: Offer) -> None:
        """Set an offer's values as if by hand; another model is read first."""
        values = dict(offer.changes)
        model, _ = values.pop("model.source", None), values.pop("model.revision", None)
        self.answers = replace(self.answers, changed=dict(self.answers.changed) | values)
        if model is None:
            self._plan_again()
        else:
            self.choose_model(str(model))

    # The chain

    def _busy(self, name: str, text: str) -> None:
        self.facts = replace(self.facts, busy=dict(self.facts.busy) | {name: text})

    def _known(self, done: str, **found: Any) -> None:
        busy = {name: text for name, text in self.facts.busy.items() if name != done}
        self.facts = replace(self.facts, busy=busy, **found)

    def _read_model_again(self) -> None:
        self._known("", spec=None, chat=None, model_error=None, lengths=None, plan=None, plan_error=None)
        self._busy("model", "Reading the model …")
        self._read_model(self.answers.model, self.answers.revision)

    def _check_data_again(self) -> None:
        self._known("", profile=None, data_error=None, lengths=None, plan=None, plan_error=None)
        self._busy("data", "Reading the data …")
        self._check_data(self.answers.data)

    def _measure_again(self) -> None:
        if self.facts.chat is None or self.facts.profile is None:
            return
        self._known("", lengths=None, length_problems=(), plan=None, plan_error=None)
        self._busy("rows", "Counting tokens …")
        self._measure(self.facts.chat, self.facts.profile)

    def _plan_again(self) -> None:
        facts = self.facts
        if facts.machine and facts.spec and facts.lengths:
            self._busy("plan", "Planning …")
            self._make_plan(facts.machine, facts.spec, facts.lengths, self.answers)

    @on(messages.ProbeFinished)
    def _probed(self, message: messages.ProbeFinished) -> None:
        self._known("machine", machine=message.machine)
        self._plan_again()

    @on(messages.ModelsListed)
    def _listed(self, message: messages.ModelsListed) -> None:
        self._known("models", models=message.models)

    @on(messages.ModelRead)
    def _model_read(self, message: messages.ModelRead) -> None:
        if (message.source, message.revision) != (self.answers.model, self.answers.revision):
            return
        self._known("model", spec=message.spec, chat=message.chat, model_error=message.error)
        self._measure_again()

    @on(messages.DatasetChecked)
    def _data_checked(self, message: messages.DatasetChecked) -> None:
        if message.path != self.answers.data:
            return
        self._known("data", profile=message.profile, data_error=message.error)
        self._measure_again()

    @on(messages.RowsMeasured)
    def _rows_measured(self, message: messages.RowsMeasured) -> None:
        self._known(
            "rows", lengths=message.lengths, length_problems=message.problems, plan_error=message.error
        )
        self._plan_again()

    @on(messages.WorkAdvanced)
    def _advanced(self, message: messages.WorkAdvanced) -> None:
        if message.name in self.facts.busy:
            self._busy(message.name, message.text)

    @on(messages.PlanChanged)
    def _planned(self, message: messages.PlanChanged) -> None:
        plan = message.plan or self.facts.plan
        self._known("plan", plan=plan, plan_error=message.error, recommended=message.recommended)

    # Threads: each only reads its arguments and posts messages

    @work(thread=True, exclusive=True, exit_on_error=False, group="machine")
    def _run_probe(self) -> None:
        self.post_message(messages.ProbeFinished(self._probe()))

    @work(thread=True, exclusive=True, exit_on_error=False, group="models")
    def _list_models(self) -> None:
        with IMPORTING:
            from ollama_tune.core.models.locate import list_models

        self.post_message(messages.ModelsListed(tuple(list_models())))

    @work(thread=True, exclusive=True, exit_on_error=False, group="model")
    def _read_model(self, source: str, revision: str | None) -> None:
        self._post(lambda: _read_model(source, revision), partial(messages.ModelRead, source, revision))

    @work(thread=True, exclusive=True, exit_on_error=False, group="data")
    def _check_data(self, path: str) -> None:
        self._post(lambda: _check_data(path), partial(messages.DatasetChecked, path))

    @work(thread=True, exclusive=True, exit_on_error=False, group="rows")
    def _measure(self, chat: ChatFormat, profile: DatasetProfile) -> None:
        worker, told = get_current_worker(), [time.monotonic()]

        def progress(done: int, total: int) -> None:
            if worker.is_cancelled:
                raise Cancelled
            if time.monotonic() - told[0] > NEWS_EVERY:
                told[0] = time.monotonic()
                text = f"Counting tokens: {done:,} of {total:,} rows"
                self.post_message(messages.WorkAdvanced("rows", text))

        self._post(lambda: _measure(chat, profile.rows, progress), messages.RowsMeasured)

    @work(thread=True, exclusive=True, exit_on_error=False, group="plan")
    def _make_plan(self, machine: Machine, spec: ModelSpec, lengths: Lengths, answers: WizardState) -> None:
        def work() -> messages.PlanChanged:
            return messages.PlanChanged(*_plan(machine, spec, lengths, answers))

        self._post(work, lambda error: messages.PlanChanged(None, {}, error=error))

    def _post(self, work: Callable[[], Any], failed: Callable[..., Any]) -> None:
        """Post what the work made, or the message for its `TuneError`; nothing once it is overtaken."""
        worker = get_current_worker()
        try:
            message = work()
        except TuneError as error:
            message = failed(error=error)
        except Cancelled:
            return
        if not worker.is_cancelled:
            self.post_message(message)


def _read_model(source: str, revision: str | None) -> messages.ModelRead:
    with IMPORTING:
        from ollama_tune.core.data.render import ChatFormat
        from ollama_tune.core.models.describe import describe

    spec = describe(source, revision)
    return messages.ModelRead(source, revision, spec, ChatFormat.from_folder(spec.folder))


def _check_data(path: str) -> messages.DatasetChecked:
    with IMPORTING:
        from ollama_tune.core.data.load import load_dataset

    return messages.DatasetChecked(path, load_dataset(path))


def _measure(
    chat: ChatFormat, rows: tuple[Row, ...], progress: Callable[[int, int], None]
) -> messages.RowsMeasured:
    with IMPORTING:
        from ollama_tune.core.data.lengths import encode_rows, measure

    examples, problems = encode_rows(chat, rows, progress)
    if examples:
        return messages.RowsMeasured(measure(examples), tuple(problems))
    reason = problems[0].text if problems else "There is no usable row."
    error = TuneError(f"No row can be trained on: {reason}", "Use other data or another model.")
    return messages.RowsMeasured(None, tuple(problems), error)


def _plan(
    machine: Machine, spec: ModelSpec, lengths: Lengths, answers: WizardState
) -> tuple[Plan, dict[str, Choice]]:
    """The plan, and for each field set by hand what would be recommended in its place."""
    with IMPORTING:
        from ollama_tune.core.plan.recommend import make_plan, solve

    values = answers.plan_values()
    plan = make_plan(machine, spec, lengths, values)
    recommended = {}
    for path in answers.changed:
        others = {name: value for name, value in values.items() if name != path}
        choice = solve(machine, spec, lengths, others).choices.get(path)
        if choice is not None:
            recommended[path] = choice
    return plan, recommended
