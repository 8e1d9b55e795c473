"""The plan's memory simulated in the background while the person reads the plan."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual import on, work
from textual.message import Message
from textual.worker import get_current_worker

from ollama_tune.tui.tasks import IMPORTING
from ollama_tune.tui.work import FactsApp

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Lengths
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.values import ModelSpec
    from ollama_tune.core.plan.predict import Simulator
    from ollama_tune.core.plan.values import Plan

SIMULATING = "Simulating a step with the installed libraries …"


class ConfirmingApp(FactsApp):
    """Adds to the facts that a plan for a GPU is confirmed by simulation, in a process of its own.

    Nothing waits for it: a run can be started, and every key works, while it goes on. A plan that has
    changed meanwhile is not touched.
    """

    @dataclass
    class Confirmed(Message):
        """A plan's memory was simulated; `made` is the plan with the figure."""

        asked: Plan
        made: Plan

    may_simulate = True
    _simulator: Simulator | None = None
    _simulating = threading.Lock()
    _asked: Plan | None = None

    def confirm_plan(self) -> None:
        """Simulate the present plan, unless that was done or is being done."""
        facts = self.facts
        if not (self.may_simulate and facts.plan and facts.machine and facts.spec and facts.lengths):
            return
        if facts.plan is self._asked or facts.plan.settings.training.device != "cuda":
            return
        self._asked = facts.plan
        self._busy("simulation", SIMULATING)
        self._confirm(facts.plan, facts.machine, facts.spec, facts.lengths)

    def stop_confirming(self) -> None:
        """End the process that simulates; its figure is not waited for any more."""
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            simulator.close()

    @work(thread=True, exclusive=True, exit_on_error=False, group="simulation")
    def _confirm(self, plan: Plan, machine: Machine, spec: ModelSpec, lengths: Lengths) -> None:
        with IMPORTING:
            from ollama_tune.core.plan.confirm import can_confirm, confirm
            from ollama_tune.core.plan.predict import Simulator

        worker = get_current_worker()
        with self._simulating:
            if worker.is_cancelled:
                return
            if not can_confirm(plan, machine):
                self.post_message(self.Confirmed(plan, plan))
                return
            with Simulator(polite=True) as self._simulator:
                made = confirm(plan, machine, spec, lengths, self._simulator)
        if not worker.is_cancelled:
            self.post_message(self.Confirmed(plan, made))

    @on(Confirmed)
    def _confirmed(self, message: Confirmed) -> None:
        if self.facts.plan is message.asked:
            self._asked = message.made
            self._known("simulation", plan=message.made)
        elif self._asked is message.asked:
            self._known("simulation")
