"""Step 2 in plain lines: which base model is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import human_bytes, human_count, human_estimate, one_line, visible
from ollama_tune.tui import tasks
from ollama_tune.tui.state import BUNDLED
from ollama_tune.tui.text import tilde

if TYPE_CHECKING:
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.about import About
    from ollama_tune.core.models.chat_templates import TemplateOffer
    from ollama_tune.core.models.values import ModelChoice, ModelSpec
    from ollama_tune.core.plan.bases import BaseFit
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "model")


def ask_model(wizard: Wizard) -> None:
    """A number from the list, a folder or a name of the hub; asked until it is a model that can be tuned."""
    talk, rooms = wizard.talk, wizard.rooms
    choices = _in_order(wizard)
    _tell(wizard, choices)
    while True:
        talk.hint("Type a number, or a folder, or a name on the hub such as org/name.")
        before = rooms.answers
        answer = talk.ask("Model", _default(choices, wizard), TOPIC)
        if answer.lower() == "all":
            talk.say(*_list(choices, wizard))
            continue
        if answer.isdecimal() and not 1 <= int(answer) <= len(choices):
            talk.say(f"✗ Type a number from 1 to {len(choices)}.")
            continue
        if answer:
            _take(wizard, choices[int(answer) - 1].source if answer.isdecimal() else answer)
        try:
            if _read(wizard):
                return
        except TuneError as error:
            talk.error(error)
            rooms.answers = before


def _take(wizard: Wizard, typed: str) -> None:
    answers = wizard.rooms.answers
    source, revision = (typed, None) if typed == BUNDLED else tasks.model_source(typed)
    if (source, revision) != (answers.model, answers.revision):
        wizard.rooms.set(model=source, revision=revision, template=None)


def _read(wizard: Wizard) -> bool:
    """Say what the model is; False where it is a base model whose chat form is not wanted."""
    talk, rooms = wizard.talk, wizard.rooms
    spec, found, chat = rooms.described()
    if chat is None and found.offer is not None and not _agreed(wizard, found.offer):
        talk.say("Then choose another model, one with a chat form of its own.")
        return False
    if chat is None:
        spec, found, _ = rooms.described()
    talk.say(f"✓ {one_line(spec.name, 80)} can be tuned.", *describe(spec, found, rooms.machine()))
    return True


def _agreed(wizard: Wizard, offer: TemplateOffer) -> bool:
    wizard.talk.say(
        "! This is a base model: it only continues texts and has no form for questions and answers.",
        f"A form that suits it is called {visible(offer.name)}. Why: {visible(offer.reason)}",
    )
    if not wizard.talk.agrees(f"Take the form {visible(offer.name)}", True, ("plain", "chat form")):
        return False
    wizard.rooms.set(template=offer.name)
    return True


def _in_order(wizard: Wizard) -> list[ModelChoice]:
    """The bundled model, the recommended one, those on this box, those that would do here, and the rest."""
    base, fits = wizard.rooms.weighed()

    def place(choice: ModelChoice) -> int:
        first = {BUNDLED: 0, base.value.id: 1}.get(choice.source)
        return (
            first if first is not None else 2 if choice.kind != "catalogue" else 3 + _too_much(choice, fits)
        )

    return sorted(wizard.rooms.models(), key=place)


def _too_much(choice: ModelChoice, fits: Mapping[str, BaseFit]) -> bool:
    """Whether a model of the list is not advised on this box."""
    return choice.kind == "catalogue" and choice.source in fits and bool(fits[choice.source].obstacle)


def _tell(wizard: Wizard, choices: list[ModelChoice]) -> None:
    """Read out the models that would do here, and how to hear of the rest."""
    base, fits = wizard.rooms.weighed()
    near = [choice for choice in choices if choice.source == base.value.id or not _too_much(choice, fits)]
    wizard.talk.say("Models. Those with a download come from the hub when the run starts.")
    wizard.talk.say(*_list(near, wizard))
    if len(near) < len(choices):
        wizard.talk.say(f"{len(choices) - len(near)} more are too much for this machine; all reads them out.")
    number = next((n for n, choice in enumerate(choices, 1) if choice.source == base.value.id), 0)
    which = f"number {number}, " if number else ""
    wizard.talk.say(f"Recommended for this machine: {which}{visible(base.value.name)}. Why: {base.reason}.")


def _default(choices: list[ModelChoice], wizard: Wizard) -> str:
    """The model that is taken now: its number and name, or what was typed."""
    answers = wizard.rooms.answers
    for number, choice in enumerate(choices, 1):
        if choice.source == answers.model:
            return f"{number}, {one_line(choice.name, 60)}"
    revision = f"@{visible(answers.revision)}" if answers.revision else ""
    return tilde(answers.model) + revision


def _list(choices: list[ModelChoice], wizard: Wizard) -> list[str]:
    base, fits = wizard.rooms.weighed()
    return [
        f"{number}. {_words(choice, fits.get(choice.source))}"
        f"{' Recommended.' if choice.source == base.value.id else ''}"
        for number, choice in enumerate(choices, 1)
    ]


def _words(choice: ModelChoice, fit: BaseFit | None) -> str:
    """A model of the list: its size, and what it means here."""
    far = choice.kind == "catalogue"
    size = human_bytes(choice.size) if choice.size else ""
    parts = [one_line(choice.name, 60), f"{size} to download" if far and size else size]
    parts += [] if far else [one_line(choice.note, 80)]
    if fit is not None:
        parts += ["a licence has to be accepted on the hub"] if far and fit.model.gated else []
        time = human_estimate(fit.seconds)
        good = f"trains here in {human_bytes(fit.training_bytes)} of memory and about {time}"
        why = "slow on" if fit.slow else "too much for"
        parts.append(f"{why} this machine: {fit.obstacle}" if fit.obstacle else good)
    return ", ".join(filter(None, parts)) + "."


def describe(spec: ModelSpec, found: About, machine: Machine) -> list[str]:
    """A base model in sentences."""
    licence = one_line(spec.licence, 60) or "not stated"
    gated = "; it has to be accepted on the hub" if found.gated else ""
    form = "the model brings its own" if spec.chat_template is not None else "the one you took"
    lines = [
        f"Size: {human_count(spec.parameters)} parameters, {human_bytes(spec.weight_bytes)}.",
        f"Reads at most {spec.context_length:,} tokens; a token is a word or a piece of one.",
        f"Chat form: {form}.",
        f"Licence: {licence}{gated}.",
    ]
    if spec.export_reason:
        lines.append(f"! It cannot be exported to Ollama: {one_line(spec.export_reason, 200)}")
    if found.newer:
        lines.append(f"! {visible(found.newer)}")
    if found.to_download:
        disk = machine.models_disk or machine.disk
        lines.append(
            f"Download: {human_bytes(found.to_download)} when the run starts, "
            f"{human_bytes(disk.free)} of disk free."
        )
        if found.to_download > disk.free:
            lines.append("! There is too little room on the disk for it.")
    return lines
