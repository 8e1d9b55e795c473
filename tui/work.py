"""The slow work behind the wizard: each piece in its own thread, each ending in one message."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.reactive import var
from textual.worker import get_current_worker

from ollama_tune.core.data.child import Cancelled
from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.heap import give_back, one_heap
from ollama_tune.tui import data_tasks, messages, tasks
from ollama_tune.tui.key_order import KeyOrderApp
from ollama_tune.tui.state import BUNDLED, Facts, WizardState
from ollama_tune.tui.tasks import Probe

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import DatasetProfile, Lengths
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.values import ModelSpec
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.plan.values import Offer

NEWS_EVERY = 0.2
STOPPED = TuneError("The reading was stopped.", "Enter reads it from the start; or name other data.")


def _is_cancelled() -> Callable[[], bool]:
    """Says whether the work of this thread is overtaken, to whoever asks from another."""
    worker = get_current_worker()
    return lambda: worker.is_cancelled


class FactsApp(KeyOrderApp):
    """Holds the answers and the facts, and keeps the facts true to the answers.

    Machine, model and data are read side by side; then the rows are measured; then the plan is made.
    A changed answer repeats what depends on it and nothing else.
    """

    facts: var[Facts] = var(Facts, init=False)

    def __init__(self, answers: WizardState, probe: Probe | None = None) -> None:
        super().__init__()
        self.answers = answers
        self._probe = probe or tasks.probe
        self._weighing = False
        self._weighed: tuple[Machine | None, Lengths | None] = None, None

    def read_everything(self) -> None:
        """Start on all facts; called once the first frame is painted."""
        one_heap()
        self.probe_again()
        self.read_answers()

    def read_answers(self) -> None:
        """Read what the answers name: the model and the data; and list the models there are."""
        self._read_model_again()
        self._check_data_again()
        self._list_models()

    def take_answers(self, answers: WizardState) -> None:
        """Go on with other answers; what was found out for the old ones, but for this box, is forgotten."""
        self.answers = answers
        for group in ("model", "data", "rows", "plan"):
            self.workers.cancel_group(self, group)
        known = self.facts
        kept = ("machine", "in_use", "unloaded", "base", "fits", "models", "logout")
        busy = {name: words for name, words in known.busy.items() if name in ("machine", "unload", "models")}
        facts = {name: getattr(known, name) for name in kept}
        self.facts = Facts(**facts, busy=busy | {"data": "Reading the data …"})

    # What the screens ask for

    def look_at_box(self) -> Machine:
        """What the box is and what is free on it, as of now; slow, so only from a thread."""
        return self._probe()

    def probe_again(self) -> None:
        """Look at the box again; the plan follows."""
        self._busy("machine", "Looking at this machine …")
        self._run_probe()

    def unload_ollama(self) -> None:
        """Let the Ollama of this box give back the memory of its models; the box is looked at again."""
        if self.facts.machine is not None and "unload" not in self.facts.busy:
            self._busy("unload", "Asking Ollama to unload its models …")
            self._unload(self.facts.machine.ollama.url)

    def weigh_bases(self) -> None:
        """Say what each listed base model needs here, with the person's own rows where they are counted.

        Nothing is done while that is going on, or when nothing has changed since.
        """
        lengths = self.facts.lengths if self.answers.data != BUNDLED else None
        asked = self.facts.machine, lengths
        if self.facts.machine is not None and not self._weighing and asked != self._weighed:
            self._weighing, self._weighed = True, asked
            self._recommend_base(self.facts.machine, lengths)

    def choose_model(self, source: str, revision: str | None = None) -> None:
        """Take another model and read it; nothing is done when it is the one already taken."""
        same = (source, revision) == (self.answers.model, self.answers.revision)
        if same and (self.facts.spec is not None or "model" in self.facts.busy):
            return
        self.answers = replace(self.answers, model=source, revision=revision, template=None)
        self._read_model_again()

    def take_template(self) -> None:
        """Take the chat form that is offered for a base model."""
        if self.facts.about is not None and self.facts.about.offer is not None:
            self.answers = replace(self.answers, template=self.facts.about.offer.name)
            self._read_model_again()

    def choose_data(self, path: str) -> None:
        """Take other data and check it; nothing is done when it is the file already taken."""
        facts, same = self.facts, path == self.answers.data
        if same and facts.data_error is not STOPPED and (facts.profile is not None or "data" in facts.busy):
            return
        if not same or facts.data_error is not STOPPED:
            self.answers = replace(self.answers.read_as({}), data=path)
        self._known("", profile=None, columns=(), data_error=None)
        self._check_data_again()

    def read_changed_data(self) -> bool:
        """Read the data again, in the same way, where the file has changed since; True then."""
        changed = self.facts.profile is not None and tasks.stamp(self.answers.data) != self._stamp
        if changed:
            self._check_data_again()
        return changed

    @work(thread=True, exclusive=True, exit_on_error=False, group="logout")
    def read_logout(self) -> None:
        """Ask what a logout ends here; systemd's programs may take a moment."""
        self.post_message(messages.LogoutRead(tasks.logout()))

    @on(messages.LogoutRead)
    def _logout_read(self, message: messages.LogoutRead) -> None:
        self._known("", logout=message.remark)

    def stop_reading(self) -> None:
        """End the reading of the data and the counting of its tokens; rows that are shown stay."""
        for group in ("data", "rows"):
            self.workers.cancel_group(self, group)
            self._known(group)
        self._known("", data_error=STOPPED, lengths=None, length_problems=(), plan=None, plan_error=None)

    def read_as(self, values: Mapping[str, Any]) -> None:
        """Read the same data otherwise: `values` are all that the person says about it, by dotted path."""
        if dict(values) != self.answers.reading_values():
            self.answers = self.answers.read_as(values)
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

    def restore_all(self) -> None:
        """Take the recommended value of every field again; how the data is read stays as it was said."""
        self.answers = replace(self.answers, changed=self.answers.reading_values())
        self._plan_again()

    def take_offer(self, offer: Offer) -> None:
        """Set an offer's values as if by hand; another model is read first."""
        model = offer.changes.get("model.source")
        values = {path: value for path, value in offer.changes.items() if not path.startswith("model.")}
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
        self._known("", spec=None, about=None, chat=None, fitted=None, model_error=None)
        self._known("", lengths=None, plan=None, plan_error=None)
        self._busy("model", "Reading the model …")
        self._read_model(self.answers.model, self.answers.revision, self.answers.template)

    def _check_data_again(self) -> None:
        """The rows that are shown stay until the new ones are there."""
        self._known("", data_error=None, lengths=None, length_problems=(), plan=None, plan_error=None)
        self._busy("data", "Reading the data …")
        self._stamp = tasks.stamp(self.answers.data)
        self._check_data(self.answers.data, self.answers.reading_values())

    def _measure_again(self) -> None:
        if self.facts.chat is None or self.facts.profile is None:
            return
        self._known("", lengths=None, length_problems=(), plan=None, plan_error=None, fitted=None)
        self._busy("rows", "Counting tokens …")
        self._measure(self.facts.chat, self.facts.profile, self.answers.reading_values())

    def _plan_again(self) -> None:
        facts = self.facts
        if facts.machine and facts.spec and facts.lengths:
            self._busy("plan", "Planning …")
            self._make_plan(facts.machine, facts.spec, facts.lengths, self.answers)

    @on(messages.ProbeFinished)
    def _probed(self, message: messages.ProbeFinished) -> None:
        self._known("machine", machine=message.machine, in_use=message.in_use)
        self._plan_again()

    @on(messages.OllamaUnloaded)
    def _unloaded(self, message: messages.OllamaUnloaded) -> None:
        self._known("unload", unloaded=message.text)
        self.probe_again()

    @on(messages.BaseRecommended)
    def _recommended(self, message: messages.BaseRecommended) -> None:
        self._weighing = False
        self._known("", base=message.base, fits=message.fits)

    @on(messages.ModelsListed)
    def _listed(self, message: messages.ModelsListed) -> None:
        self._known("models", models=message.models)

    @on(messages.ModelRead)
    def _model_read(self, message: messages.ModelRead) -> None:
        if (message.source, message.revision) != (self.answers.model, self.answers.revision):
            return
        if message.about is not None and message.about.offer is None:
            self.answers = replace(self.answers, template=None)
        found = {"spec": message.spec, "about": message.about, "chat": message.chat}
        self._known("model", **found, model_error=message.error)
        self._measure_again()

    @on(messages.DatasetChecked)
    def _data_checked(self, message: messages.DatasetChecked) -> None:
        if (message.path, dict(message.reading)) != (self.answers.data, self.answers.reading_values()):
            return
        first_page = message.profile is not None and not message.profile.exact
        found = {"profile": message.profile, "columns": message.columns, "data_error": message.error}
        self._known("" if first_page else "data", **found)
        self._measure_again()

    @on(messages.RowsMeasured)
    def _rows_measured(self, message: messages.RowsMeasured) -> None:
        profile, lengths = self.facts.profile, message.lengths
        known = (
            replace(lengths, kind=profile.kind) if profile is not None and lengths is not None else lengths
        )
        found: dict[str, Any] = {"lengths": known, "plan_error": message.error}
        found["fitted"] = message.chat or self.facts.fitted
        self._known("rows" if message.last else "", length_problems=message.problems, **found)
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
        machine = self.look_at_box()
        self.post_message(messages.ProbeFinished(machine, tasks.in_use(machine)))

    @work(thread=True, exclusive=True, exit_on_error=False, group="unload")
    def _unload(self, url: str) -> None:
        worker, began = get_current_worker(), time.monotonic()

        def stopped() -> bool:
            seconds = f"{time.monotonic() - began:.0f} s"
            self.post_message(messages.WorkAdvanced("unload", f"Ollama unloads its models … {seconds}"))
            return worker.is_cancelled

        self._post(lambda: tasks.unload(url, stopped), _not_unloaded)

    @work(thread=True, exit_on_error=False, group="base")
    def _recommend_base(self, machine: Machine, lengths: Lengths | None) -> None:
        self.post_message(tasks.recommend_base(machine, lengths))
        give_back()

    def shortage_now(self, settings: Settings, own: int | None = None) -> TuneError | None:
        """The box's memory once more, from a thread: why the run that was planned to fit does not any more.

        The plan is then made anew for what is free now. `own` is the process id of a warm worker.
        """
        if self.facts.plan is None or not self.facts.plan.memory.fits:
            return None
        machine, lack = tasks.shortage(settings, self.facts, self._probe, own)
        if not lack:
            return None
        self.post_message(messages.ProbeFinished(machine, tasks.in_use(machine)))
        return TuneError(lack, "The plan is made anew for what is free now: look at it, and start again.")

    @work(thread=True, exclusive=True, exit_on_error=False, group="models")
    def _list_models(self) -> None:
        self.post_message(messages.ModelsListed(tasks.list_models()))

    @work(thread=True, exclusive=True, exit_on_error=False, group="model")
    def _read_model(self, source: str, revision: str | None, form: str | None) -> None:
        failed = partial(messages.ModelRead, source, revision)
        self._post(lambda: tasks.read_model(source, revision, form), failed)

    @work(thread=True, exclusive=True, exit_on_error=False, group="data")
    def _check_data(self, path: str, reading: Mapping[str, Any]) -> None:
        progress = self._news("data", "Reading the data: {:.0%}")
        cancelled = _is_cancelled()
        with contextlib.suppress(Cancelled):
            page = data_tasks.first_page(path, reading, progress)
            self._post(lambda: page, _nothing)
            if page is not None and (page.profile is None or page.profile.exact):
                return
            failed = partial(messages.DatasetChecked, path, reading)
            self._post(lambda: data_tasks.check_data(path, reading, progress, cancelled), failed)

    @work(thread=True, exclusive=True, exit_on_error=False, group="rows")
    def _measure(self, chat: ChatFormat, profile: DatasetProfile, reading: Mapping[str, Any]) -> None:
        progress = self._news("rows", "Counting tokens: {:.0%}")
        self._post(lambda: data_tasks.measure_sample(chat, profile, reading), _nothing)
        if profile.exact:
            rows, cancelled = profile.rows, _is_cancelled()
            self._post(lambda: data_tasks.measure(chat, rows, progress, cancelled), messages.RowsMeasured)

    def _news(self, name: str, words: str) -> Callable[[int, int], None]:
        """Says how far the work of this thread is, now and then; ends it once it is overtaken."""
        worker, told = get_current_worker(), [time.monotonic()]

        def progress(done: int, total: int) -> None:
            if worker.is_cancelled:
                raise Cancelled
            if time.monotonic() - told[0] > NEWS_EVERY:
                told[0] = time.monotonic()
                share = min(done / total, 1.0) if total else 0.0
                self.post_message(messages.WorkAdvanced(name, words.format(share)))

        return progress

    @work(thread=True, exclusive=True, exit_on_error=False, group="plan")
    def _make_plan(self, machine: Machine, spec: ModelSpec, lengths: Lengths, answers: WizardState) -> None:
        def work() -> messages.PlanChanged:
            return messages.PlanChanged(*tasks.plan(machine, spec, lengths, answers))

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
        if message is not None and not worker.is_cancelled:
            self.post_message(message)
        give_back()


def _nothing(error: TuneError) -> None:
    """A first look that failed: the exact one that follows says why."""


def _not_unloaded(error: TuneError) -> messages.OllamaUnloaded:
    return messages.OllamaUnloaded(str(error))
