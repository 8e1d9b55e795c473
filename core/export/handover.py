"""The last stretch: a proved file goes to Ollama, and the model there earns its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import modelfile
from ollama_tune.core.export.order import Emit, Order, progress
from ollama_tune.core.export.reference import ReferenceAnswer
from ollama_tune.core.export.values import Check, ExportStopped, Stopped, Verification, worst
from ollama_tune.core.machine.generations import Generation, require_usable
from ollama_tune.core.models.architectures import read_config

if TYPE_CHECKING:
    from ollama_tune.core.export.ollama import OllamaClient
    from ollama_tune.core.export.publish import Published, Recipe


class _NotProved(Exception):
    """The model failed a check inside Ollama; it must get no name."""


@dataclass
class _Job:
    """One hand-over: the file, what the model there is compared with, and the checks made so far."""

    order: Order
    verification: Verification
    conversations: Sequence[Sequence[Message]]
    reference: Sequence[ReferenceAnswer]
    emit: Emit
    stopped: Stopped
    checks: list[Check]


def hand_over(
    order: Order,
    verification: Verification,
    conversations: Sequence[Sequence[Message]],
    reference: Sequence[ReferenceAnswer],
    emit: Emit,
    stopped: Stopped,
) -> Verification:
    """Send the proved file to Ollama and prove the model there; what goes wrong leaves the file as it is.

    Adds the checks "ollama prompt", "ollama answer", "ollama settings" and "ollama". The last one is
    `skipped` where nothing was asked for or nothing answers, `warn` where the server did not take the
    file, and `fail` where it cannot load the model. After a `fail` the model has no name in Ollama, and
    an older one of that name is untouched.
    """
    from ollama_tune.core.export.ollama import OllamaClient
    from ollama_tune.core.machine.ollama import read_ollama

    job = _Job(order, verification, conversations, reference, emit, stopped, [])
    if not order.wanted.push:
        return _ended(job, Check("ollama", "skipped", "not asked for", "The file was not to go to Ollama."))
    status = read_ollama()
    if not status.reachable:
        left = f"The GGUF, a Modelfile and the commands are in {order.folder.export}."
        return _ended(job, Check("ollama", "skipped", "no answer", f"{status.reason} {left}"))
    try:
        with OllamaClient(status.url) as client:
            published = _send(job, client)
    except ExportStopped:
        raise
    except _NotProved:
        return _failed(job)
    except TuneError as error:
        emit("warning", what=error.what, fix=error.fix)
        return _ended(job, Check("ollama", "warn", "not made", str(error)))
    return _made(job, published)


def _ended(job: _Job, last: Check | None = None) -> Verification:
    checks = (*job.verification.checks, *job.checks, *([last] if last else []))
    return replace(job.verification, checks=checks, verdict=worst(checks))


def _failed(job: _Job) -> Verification:
    """The commands would make the very model that has just failed, so they go."""
    wrong = [check for check in job.checks if check.verdict == "fail"]
    what = f"The model was not put into Ollama, because it failed there: {wrong[0].text}"
    job.emit("warning", what=what, fix="The GGUF file is kept; an older model of that name is untouched.")
    last = [] if any(check.name == "ollama" for check in wrong) else [_unnamed(job)]
    return replace(_ended(job, *last), commands=())


def _unnamed(job: _Job) -> Check:
    text = f"The model got no name in Ollama; an older {job.order.name} there is untouched."
    return Check("ollama", "fail", "not made", text)


def _made(job: _Job, published: Published) -> Verification:
    text = f"The model is in Ollama as {published.name}"
    last = Check("ollama", "pass", published.name, f"{text}; its test copy is deleted and out of memory.")
    if not published.unloaded:
        later = "still in memory and leaves it a few minutes later; wait before you train again."
        last = Check("ollama", "warn", published.name, f"{text}; its deleted test copy is {later}")
    short = published.name.removesuffix(":latest")
    commands = (f"ollama run {short}", *modelfile.push_commands(short))
    return replace(_ended(job, last), ollama_name=published.name, commands=commands)


def _send(job: _Job, client: OllamaClient) -> Published:
    from ollama_tune.core.export.preflight import require_room
    from ollama_tune.core.export.publish import publish

    order, emit, digest = job.order, job.emit, f"sha256:{job.verification.sha256}"
    found = require_usable(client.version())
    recipe = _recipe(job, found)
    require_room(client, found, digest, job.verification.bytes)
    emit("phase", name="uploading", text=f"Sending the file to Ollama at {client.url}.")
    return publish(
        client,
        order.name,
        order.folder.export / job.verification.file,
        digest,
        recipe,
        progress=progress(emit, "uploading", "B"),
        on_status=_statuses(emit),
        stopped=job.stopped,
        check=lambda temporary: _prove(job, client, temporary, recipe),
    )


def _recipe(job: _Job, found: Generation) -> Recipe:
    """Stop texts, context and, where they are needed, system prompt and Go template; nothing else."""
    from ollama_tune.core.export.publish import Recipe

    stop = list(job.order.chat.stop_texts)
    parameters = {"num_ctx": job.order.context} | ({"stop": stop} if stop else {})
    template = None if found.native_template else _go_template(job)
    return Recipe(parameters, template, job.order.wanted.system or None)


def _go_template(job: _Job) -> str:
    from ollama_tune.core.export.gotemplate import go_template

    found = go_template(job.order.chat)
    if isinstance(found, str):
        raise TuneError(
            f"This Ollama needs a template of its own kind, and this model's cannot be put so: {found}",
            "Update Ollama to 0.30 or newer and export again; the GGUF file is kept.",
        )
    if found.limits:
        job.checks.append(Check("ollama template", "warn", "limited", " ".join(found.limits)))
    return found.text


def _prove(job: _Job, client: OllamaClient, model: str, recipe: Recipe) -> None:
    """Check the model under its temporary name; raises `_NotProved` where it must not get its own."""
    from ollama_tune.core.export.ollama_settings import check_settings
    from ollama_tune.core.export.wire import Refused

    job.emit("phase", name="asking", text="Asking the new model in Ollama held-out prompts.")
    family = read_config(job.order.base).architecture.name
    stored = check_settings(client, model, recipe, family, job.order.wanted.type)
    try:
        job.checks += _asked(job, client, model, recipe.system, stored.forced)
    except Refused as error:
        job.checks.append(Check("ollama", "fail", "does not load", str(error)))
    job.checks.append(stored.check)
    if worst(tuple(job.checks)) == "fail":
        raise _NotProved


def _asked(
    job: _Job, client: OllamaClient, model: str, system: str | None, forced: bool
) -> tuple[Check, ...]:
    from ollama_tune.core.export.ollama_checks import Subject, check_model
    from ollama_tune.core.export.probes import CONVERSATIONS
    from ollama_tune.core.export.questions import choose_questions, read_questions

    order = job.order
    questions = choose_questions(order, job.conversations or CONVERSATIONS, job.reference, system)
    subject = Subject(
        client=client,
        model=model,
        chat=order.chat,
        type=order.wanted.type,
        limit=order.settings.evaluation.max_new_tokens,
        forced=forced,
        stopped=job.stopped,
    )
    others = read_questions(order, CONVERSATIONS, system)
    return check_model(subject, questions, others, progress(job.emit, "asking", "questions"))


def _statuses(emit: Emit) -> Callable[[str, int, int], None]:
    """Ollama's words while it makes the model; each new one is a phase."""
    said: set[str] = set()

    def report(text: str, _done: int, _total: int) -> None:
        if text not in said:
            said.add(text)
            emit("phase", name="creating", text=f"Ollama: {text}.")

    return report
