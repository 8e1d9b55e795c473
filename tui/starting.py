"""Starting a run, and the worker that is warmed for it while the person still chooses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work

from ollama_tune.core.errors import TuneError
from ollama_tune.tui import messages, tasks
from ollama_tune.tui.confirming import ConfirmingApp
from ollama_tune.tui.state import SETTINGS, WizardState
from ollama_tune.tui.tasks import Probe

if TYPE_CHECKING:
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.core.runs.launch import WarmWorker

WARM_AFTER = 1.5


class StartingApp(ConfirmingApp):
    """Adds to the facts a run that is started from them. `warm` says whether a worker is warmed."""

    def __init__(self, answers: WizardState, probe: Probe | None, *, warm: bool) -> None:
        super().__init__(answers, probe)
        self.folder: RunFolder | None = None
        self._warm: WarmWorker | None = None
        self._may_warm = warm

    def on_mount(self) -> None:
        """Warm a worker once the first frame has settled; on the first step nothing says yet that there will
        be a run, and the step Model does it (`warm_up`)."""
        if self._may_warm and self.answers.step > 1:
            self.set_timer(WARM_AFTER, self.warm_up)

    def on_unmount(self) -> None:
        """End a warm worker that was not needed."""
        self.stop_confirming()
        if self._warm is not None:
            self._warm.close()

    def start_run(self, settings: Settings) -> None:
        """Make the run folder and start its worker; ends in `RunStarted` or `StartFailed`."""
        self._busy("start", "Starting the run …")
        self._start_run(settings)

    @work(thread=True, exclusive=True, exit_on_error=False, group="start")
    def _start_run(self, settings: Settings) -> None:
        from ollama_tune.core.plan.stopping import require_measurable
        from ollama_tune.core.runs.folder import create_run
        from ollama_tune.core.runs.launch import start
        from ollama_tune.core.runs.turns import step_aside

        step_aside()
        warm = self._warm
        lack = self.shortage_now(settings, warm.pid if warm is not None else None)
        if lack is not None:
            self.post_message(messages.StartFailed(lack))
            return
        lengths = self.facts.lengths
        try:
            require_measurable(settings.training.early_stopping_metric, lengths.kind if lengths else "")
            tasks.require_there(settings)
            folder = create_run(settings, settings.export.name or Path(settings.model.source).name)
            start(folder, "train", self.take_warm())
        except TuneError as error:
            self.post_message(messages.StartFailed(error))
        else:
            self.post_message(messages.RunStarted(folder))

    def warm_up(self) -> None:
        """Let a worker import the training libraries while the person is still choosing."""
        if self._may_warm and self._warm is None and self.folder is None:
            self._may_warm = False
            self._start_warm()

    @work(thread=True, exclusive=True, exit_on_error=False, group="warm")
    def _start_warm(self) -> None:
        from ollama_tune.core.runs.launch import WarmWorker

        self.post_message(messages.WarmStarted(WarmWorker()))

    @on(messages.WarmStarted)
    def _warmed(self, message: messages.WarmStarted) -> None:
        self._warm = message.worker
        self._foresee()

    @on(messages.PlanChanged)
    def _foresee(self) -> None:
        """Let it load what will likely be trained, from the settings step on and where that fits."""
        if self._warm is not None:
            plan = self.facts.plan
            likely = plan is not None and plan.memory.fits and self.answers.step >= SETTINGS
            self._warm.prepare(plan.settings if plan is not None and likely else None)

    def look_at_box(self) -> Machine:
        """As the parent; what the warm worker holds counts as free, for it is the run's."""
        return tasks.without(self._warm.pid if self._warm is not None else None, super().look_at_box())

    def take_warm(self) -> WarmWorker | None:
        """Give the warm worker away, once."""
        warm, self._warm = self._warm, None
        return warm
