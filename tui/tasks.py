"""What the wizard asks the real rooms, for its threads and for the plain questions.

Nothing here imports Textual, except the functions whose answer is a message of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.state import BUNDLED, WizardState

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import Lengths
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.models.about import About
    from ollama_tune.core.models.values import ModelChoice, ModelSpec
    from ollama_tune.core.plan.bases import BaseFit
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.plan.values import Choice, Plan
    from ollama_tune.tui import messages
    from ollama_tune.tui.state import Facts

IMPORTING = threading.Lock()
"""One thread imports at a time: modules that import each other may be seen half made by another thread."""
Probe = Callable[[], "Machine"]


def probe() -> Machine:
    """The box as it is now."""
    with IMPORTING:
        from ollama_tune.core.machine.probe import probe_machine

    return probe_machine()


def in_use(machine: Machine) -> tuple[str, ...]:
    """Sentences about who holds memory on the box."""
    with IMPORTING:
        from ollama_tune.core.machine.processes import in_use

    return tuple(in_use(machine))


def logout() -> str:
    """What a logout would end, in a sentence; empty where a run goes on after it."""
    with IMPORTING:
        from ollama_tune.core.machine.logout import logout_remark

    return logout_remark()


def shortage(settings: Settings, facts: Facts, probe: Probe, own: int | None) -> tuple[Machine, str]:
    """The box once more, and what a run that was planned to fit lacks there now; empty when it fits still.

    `own` is the warm worker's process id: the RAM it holds already is the run's.
    """
    with IMPORTING:
        from ollama_tune.core.plan.room import look_again, shortage

    assert facts.spec is not None and facts.lengths is not None
    machine = without(own, look_again(probe))
    return machine, shortage(settings, facts.spec, machine, facts.lengths.longest)


def stamp(path: str) -> tuple[int, int] | None:
    """What changes with a file: its time and size. None where there is no such file."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def require_there(settings: Settings) -> None:
    """Raise `TuneError` where the model's folder or the data went away after they were read.

    Better than a run folder whose run fails at once; what has no whole path is a name on the hub.
    """
    for path, what, step in (("model.source", "model", "Model"), ("data.path", "data", "Data")):
        place = Path(str(settings.get(path)))
        if place.is_absolute() and not place.exists():
            raise TuneError(
                f"The {what} {place} was there when it was read, and is gone now.",
                f"Put it back, or choose another in the step {step}. Nothing was started.",
            )


def without(own: int | None, machine: Machine) -> Machine:
    """The box as if the warm worker's RAM were free: the run that it is for needs that itself."""
    free = machine.host.ram_available + (resident(own) if own is not None else 0)
    return replace(machine, host=replace(machine.host, ram_available=free))


def resident(pid: int) -> int:
    """Bytes of RAM that a process holds, without the files it has mapped; 0 for one that is gone."""
    import psutil

    try:
        held = psutil.Process(pid).memory_info()
        return int(held.rss - getattr(held, "shared", 0))
    except psutil.Error:
        return 0


def unload(url: str, stopped: Callable[[], bool]) -> messages.OllamaUnloaded:
    """What Ollama let go and what that gained, as a message."""
    from ollama_tune.tui import messages

    return messages.OllamaUnloaded(unloaded(url, stopped))


def unloaded(url: str, stopped: Callable[[], bool]) -> str:
    """What Ollama let go and what that gained, in a sentence."""
    with IMPORTING:
        from ollama_tune.core.machine.unload import unload_loaded

    done = unload_loaded(url, stopped=stopped)
    gone, left = (", ".join(one_line(model.name, 40) for model in part) for part in (done.gone, done.left))
    gained = f" {human_bytes(done.gained)} of GPU memory more are free." if done.gained > 0 else ""
    words = f"Ollama let {gone} go.{gained}" if gone else "Ollama let nothing go."
    words += f" It still holds {left}: somebody may be using it." if left else ""
    return words


def recommend_base(machine: Machine, lengths: Lengths | None) -> messages.BaseRecommended:
    """Which base model suits the box, and what each listed one needs there, as a message."""
    from ollama_tune.tui import messages

    return messages.BaseRecommended(*weighed(machine, lengths))


def weighed(machine: Machine, lengths: Lengths | None) -> tuple[Choice, dict[str, BaseFit]]:
    """Which base model suits the box, and what each listed one needs there by its id."""
    with IMPORTING:
        from ollama_tune.core.plan.bases import USUAL, base_fits, recommend_base

    fits = base_fits(machine, lengths or USUAL)
    base = recommend_base(machine, lengths or USUAL)
    return base, {fit.model.id: fit for fit in fits}


def read_model(source: str, revision: str | None, form: str | None) -> messages.ModelRead:
    """What a model is, as a message; `form` is the chat form taken for a base model."""
    from ollama_tune.tui import messages

    spec, found, chat = described(source, revision, form)
    read = partial(messages.ModelRead, source, revision, spec, found)
    if chat is None:
        from ollama_tune.core.models.chat_templates import NO_TEMPLATE

        return read(error=TuneError(NO_TEMPLATE, "The step Model offers one; Enter takes it there."))
    return read(chat)


def described(
    source: str, revision: str | None, form: str | None
) -> tuple[ModelSpec, About, ChatFormat | None]:
    """A model, what is to be known of it, and its chat form; none for a base model whose form is not taken.

    Of a model of the hub only small files come.
    """
    with IMPORTING:
        from ollama_tune.core.data.chat.render import ChatFormat
        from ollama_tune.core.models.about import about
        from ollama_tune.core.models.describe import describe
        from ollama_tune.core.plan.pins import model_news

    spec = describe(source, revision)
    found = replace(about(spec), newer=model_news(source, revision))
    if found.offer is not None and form != found.offer.name:
        return spec, found, None
    template = found.offer.template if found.offer is not None else None
    return spec, found, ChatFormat.from_folder(spec.folder, template=template)


def list_models() -> tuple[ModelChoice, ...]:
    """The models on this box, then those of the catalogue that are not."""
    with IMPORTING:
        from ollama_tune.core.models.catalogue import listed_choices
        from ollama_tune.core.models.locate import list_models

    here = list_models()
    return (*here, *listed_choices({choice.source for choice in here}))


def plan(
    machine: Machine, spec: ModelSpec, lengths: Lengths, answers: WizardState
) -> tuple[Plan, dict[str, Choice]]:
    """The plan, and for each field set by hand what would be recommended in its place."""
    with IMPORTING:
        from ollama_tune.core.plan.draft import Draft
        from ollama_tune.core.plan.recommend import make_plan, solve

    values = answers.plan_values()
    plan = make_plan(machine, spec, lengths, values)
    recommended = {}
    for path in answers.changed:
        others = {name: value for name, value in values.items() if name != path}
        choice = solve(Draft(machine, spec, lengths, others)).choices.get(path)
        if choice is not None:
            recommended[path] = choice
    return plan, recommended


def whole_path(typed: str) -> str:
    """What was typed as the settings take it: `bundled`, a hub id as it is, else an absolute path."""
    if typed in ("", BUNDLED):
        return BUNDLED
    from ollama_tune.core.models.locate import is_hub_id

    try:
        path = Path(typed).expanduser().absolute()
        return typed if is_hub_id(typed) and not path.exists() else str(path)
    except (OSError, RuntimeError, ValueError):
        return typed


def model_source(typed: str) -> tuple[str, str | None]:
    """What was typed as a folder, or as a hub id with or without `@revision`."""
    try:
        folder = Path(typed).expanduser()
        if typed.startswith(("~", "/", ".")) or folder.exists():
            return str(folder.absolute()), None
    except (OSError, RuntimeError, ValueError):
        return typed, None
    source, _, revision = typed.partition("@")
    return source.strip(), revision.strip() or None
