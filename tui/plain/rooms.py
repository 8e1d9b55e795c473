"""What the questions are about: the answers so far, and what the real rooms say to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line
from ollama_tune.tui import tasks
from ollama_tune.tui.shell import Interrupted
from ollama_tune.tui.state import BUNDLED, Facts, WizardState

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import Column, DatasetProfile, Lengths, Problem, Reading
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.about import About
    from ollama_tune.core.models.values import ModelChoice, ModelSpec
    from ollama_tune.core.plan.bases import BaseFit
    from ollama_tune.core.plan.values import Choice, Plan
    from ollama_tune.tui.plain.talk import Talk

T = TypeVar("T")


@dataclass(frozen=True)
class Counted:
    """The rows in tokens: the model's form as it suits them, their lengths, and what was odd."""

    chat: ChatFormat
    lengths: Lengths
    problems: tuple[Problem, ...]


class Rooms:
    """Holds the answers; every fact is found out when it is asked for, said in a line, and kept until an
    answer that it rests on changes. `TuneError` says why there is none. `own` is the process id of the warm
    worker: what it holds is the run's.
    """

    def __init__(self, answers: WizardState, talk: Talk, probe: tasks.Probe | None = None) -> None:
        self.answers = answers
        self.probe = probe or tasks.probe
        self.own: int | None = None
        self._talk = talk
        self._known: dict[str, tuple[Any, Any]] = {}

    def _once(self, name: str, key: Any, words: str, make: Callable[[], T]) -> T:
        """What is known of a name for that key, else what is made now, after saying the words.

        Ctrl+C ends that work and not the conversation: it is an `Interrupted`.
        """
        known = self._known.get(name)
        if known is None or known[0] != key:
            try:
                self._talk.say(*filter(None, [words]))
                known = self._known[name] = key, make()
            except KeyboardInterrupt:
                self._talk.say("")
                raise Interrupted("That was stopped.", "It can be tried again; q quits.") from None
        return cast("T", known[1])

    # The box and its models

    def machine(self, *, again: bool = False) -> Machine:
        """The box; it is looked at once, and `again` when asked for."""
        if again:
            self._known.pop("machine", None)
        words = "Looking at this machine ..."
        return self._once("machine", (), words, lambda: tasks.without(self.own, self.probe()))

    def in_use(self) -> tuple[str, ...]:
        """Sentences about who holds memory on the box."""
        machine = self.machine()
        return self._once("in use", machine, "", lambda: tasks.in_use(machine))

    def models(self) -> tuple[ModelChoice, ...]:
        """The models on this box and in the list."""
        return self._once("models", (), "", tasks.list_models)

    def weighed(self) -> tuple[Choice, dict[str, BaseFit]]:
        """Which base model suits the box, and what each listed one needs here."""
        machine = self.machine()
        return self._once("bases", machine, "", lambda: tasks.weighed(machine, None))

    # Model and data

    def described(self) -> tuple[ModelSpec, About, ChatFormat | None]:
        """The chosen model; its chat form is missing where that of a base model is not taken yet."""
        answers = self.answers
        key = answers.model, answers.revision, answers.template
        words = f"Reading the model {one_line(answers.model, 80)} ..."
        return self._once("model", key, words, lambda: tasks.described(*key))

    def spec(self) -> ModelSpec:
        """The chosen model's shape."""
        return self.described()[0]

    def chat(self) -> ChatFormat:
        """Its chat form."""
        _, found, chat = self.described()
        if chat is None:
            name = found.offer.name if found.offer is not None else ""
            raise TuneError(
                "The chosen base model has no chat form yet.", f"Go back to Model and take {name}."
            )
        return chat

    def profile(self) -> DatasetProfile:
        """The chosen data, all rows read and checked."""
        from ollama_tune.core.data.load import load_dataset

        answers = self.answers
        key = answers.data, answers.reading_values()
        news = self._talk.news("Reading the data: {:.0%} ...")

        def load() -> DatasetProfile:
            return load_dataset(answers.data, self.reading(), news)

        return self._once("data", key, f"Reading {one_line(answers.data, 200)} ...", load)

    def reading(self) -> Reading:
        """What the person said about how the data is read."""
        from ollama_tune.core.plan.settings import parse

        said = {name.removeprefix("data."): value for name, value in self.answers.reading_values().items()}
        return parse({"data": {"path": self.answers.data} | said}).data.reading()

    def columns(self) -> tuple[Column, ...]:
        """The columns of data that could not be read, as far as its beginning tells; empty without any."""
        from ollama_tune.core.data.load import peek

        with contextlib.suppress(TuneError):
            return peek(self.answers.data, self.reading()).columns
        return ()

    def counted(self) -> Counted:
        """The rows in tokens of the chosen model."""
        chat, profile = self.chat(), self.profile()
        key = chat, profile
        return self._once("rows", key, "Counting tokens ...", lambda: self._count(chat, profile))

    def _count(self, chat: ChatFormat, profile: DatasetProfile) -> Counted:
        from ollama_tune.core.data.chat.options import fit_options
        from ollama_tune.core.data.tokens.lengths import encode_rows
        from ollama_tune.core.data.tokens.sides import measure_rows

        chat = fit_options(chat, profile.rows)
        news = self._talk.news("Counting tokens: {:.0%} ...")
        examples, problems = encode_rows(chat, profile.rows, news)
        if examples:
            lengths = replace(measure_rows(chat, profile.rows, examples), kind=profile.kind)
            return Counted(chat, lengths, tuple(problems))
        reason = problems[0].text if problems else "There is no usable row."
        raise TuneError(f"No row can be trained on: {reason}", "Use other data or another model.")

    # The plan

    def plan(self) -> Plan:
        """The plan for the answers."""
        return self._planned()[0]

    def recommended(self) -> Mapping[str, Choice]:
        """For each changed field what would be recommended."""
        return self._planned()[1]

    def _planned(self) -> tuple[Plan, dict[str, Choice]]:
        machine, spec, lengths, answers = self.machine(), self.spec(), self.counted().lengths, self.answers
        key = machine, spec, lengths, answers.plan_values()
        return self._once("plan", key, "", lambda: tasks.plan(machine, spec, lengths, answers))

    def confirmed(self) -> Plan:
        """The plan with its memory simulated, where there is a GPU whose memory can be."""
        from ollama_tune.core.plan.confirm import can_confirm, confirm
        from ollama_tune.core.plan.predict import Simulator

        plan, machine = self.plan(), self.machine()
        if not can_confirm(plan, machine):
            return plan

        def simulate() -> Plan:
            with contextlib.suppress(KeyboardInterrupt), Simulator() as simulator:
                return confirm(plan, machine, self.spec(), self.counted().lengths, simulator)
            return plan

        words = "Simulating a step with the installed libraries, some seconds; Ctrl+C goes on without ..."
        return self._once("simulation", plan, words, simulate)

    def shortage(self, plan: Plan) -> str:
        """What the plan lacks on the box as it is now; then the box is looked at anew for the next plan."""
        facts = Facts(spec=self.spec(), lengths=self.counted().lengths)
        machine, lack = tasks.shortage(plan.settings, facts, self.probe, self.own)
        if lack:
            self._known["machine"] = (), machine
        return lack

    # Answers

    def set(self, **values: Any) -> None:
        """Replace answers."""
        self.answers = replace(self.answers, **values)

    def choose_data(self, path: str) -> None:
        """Take other data; what was said about how the old was read is forgotten."""
        if path != self.answers.data:
            self.answers = replace(self.answers.read_as({}), data=path)

    def read_as(self, values: Mapping[str, Any]) -> None:
        """Read the same data otherwise."""
        self.answers = self.answers.read_as({path: value for path, value in values.items() if value})

    def change(self, path: str, value: Any) -> None:
        """Set a field by hand."""
        self.set(changed=dict(self.answers.changed) | {path: value})

    def restore(self, path: str) -> None:
        """Take the recommended value of a field again."""
        self.set(changed={name: value for name, value in self.answers.changed.items() if name != path})

    @property
    def remote(self) -> bool:
        """Whether the data is of the hub."""
        return self.answers.data != BUNDLED and not self.answers.data.startswith("/")
