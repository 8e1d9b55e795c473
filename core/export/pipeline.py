"""The export from a run's adapter to a proved GGUF and, where Ollama answers, a model in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export import modelfile
from ollama_tune.core.export.architectures import read_config
from ollama_tune.core.export.gguf import Exported, export_gguf
from ollama_tune.core.export.reference import ReferenceAnswer, read_reference
from ollama_tune.core.export.values import Check, ExportStopped, Verification, worst
from ollama_tune.core.files import write_atomic
from ollama_tune.core.plan.names import check_ollama_name
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder

if TYPE_CHECKING:
    from ollama_tune.core.export.ollama import OllamaClient

Emit = Callable[..., Any]
Stopped = Callable[[], bool]

UNVERIFIED, FAILED = ".unverified.gguf", ".failed.gguf"
REPORT = "verification.json"
NF4_SLACK = 0.05
"""Nats allowed between a model trained on 4-bit weights and the same adapter on 16-bit ones."""
USUAL_CONTEXT = 4096
"""Ollama's own context length on small machines; the model gets this or more, unless it knows only less."""
INTERVAL = 0.5
OWN_TEMPLATE = "{{ .Prompt }}"
"""What Ollama shows as the template where it uses the one inside the GGUF."""


@dataclass(frozen=True)
class _Order:
    """What is to be exported, checked before any work."""

    folder: RunFolder
    settings: Settings
    name: str
    stem: str
    type: str
    push: bool
    base: Path
    chat: ChatFormat


def run_export(folder: RunFolder, emit: Emit, stopped: Stopped) -> Verification:
    """Write, prove and publish the model of a run; raises `TuneError` when it cannot or the proof fails.

    Whatever happens to Ollama, a proved GGUF stays in the run's export folder with a Modelfile.
    """
    emit("phase", name="preparing", text="Checking the name, the model and the adapter.")
    order = _prepare(folder)
    emit("phase", name="writing", text=f"Merging the adapter and writing {order.stem}.gguf.")
    exported = _write(order, emit, stopped)
    emit("phase", name="verifying", text="Comparing the file with the tuned model in llama.cpp.")
    conversations = _held_out(order)
    try:
        reference = _reference(order, conversations, stopped)
        verification = _verify(order, exported, conversations, reference, emit, stopped)
    except BaseException:
        exported.path.unlink(missing_ok=True)
        raise
    verification = _store(order, _name_file(order, exported, verification))
    try:
        if verification.verdict == "fail":
            raise _failed(verification)
        verification = _store(order, _publish(order, verification, conversations, reference, emit, stopped))
    finally:
        emit("verification", **verification.to_dict())
    return verification


def _store(order: _Order, verification: Verification) -> Verification:
    write_atomic(order.folder.export / REPORT, json.dumps(verification.to_dict(), indent=2))
    return verification


def _prepare(folder: RunFolder) -> _Order:
    from ollama_tune.core.models.locate import resolve

    settings, wanted = folder.settings(), folder.export_settings()
    if wanted.name is None:
        raise UsageError("The export has no name.", "Set export.name to the model's name in Ollama.")
    name = check_ollama_name(wanted.name)
    if not (folder.adapter / "adapter_model.safetensors").is_file():
        raise TuneError(
            f"The run {folder.name} has no finished adapter.",
            f"Finish its training with `ollama-tune resume {folder.name}`.",
        )
    base = resolve(settings.model.source, settings.model.revision)
    folder.export.mkdir(mode=0o700, exist_ok=True)
    for leftover in folder.export.glob(f"*{UNVERIFIED}"):
        leftover.unlink()
    model, _, tag = name.rpartition("/")[2].partition(":")
    stem = f"{model}-{wanted.type}" if tag == "latest" else f"{model}-{tag}-{wanted.type}"
    chat = ChatFormat.from_folder(base)
    return _Order(folder, settings, name, stem, wanted.type, wanted.push, base, chat)


def _write(order: _Order, emit: Emit, stopped: Stopped) -> Exported:
    return export_gguf(
        order.base,
        order.folder.adapter,
        order.folder.export / f"{order.stem}{UNVERIFIED}",
        order.type,
        _progress(emit, "writing", "B"),
        stopped,
        name=order.stem,
    )


def _progress(emit: Emit, name: str, unit: str) -> Callable[[int, int], None]:
    """A callback that writes at most two events a second, and the last one always."""
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= INTERVAL:
            last = now
            emit("progress", name=name, done=done, total=total, unit=unit)

    return report


def _held_out(order: _Order) -> list[tuple[Message, ...]]:
    """Prompts of rows kept out of the training; none where the data is gone or nothing was kept out."""
    from ollama_tune.core.data.load import load_dataset
    from ollama_tune.core.data.split import split_rows

    data = order.settings.data
    try:
        rows = split_rows(load_dataset(data.path).rows, data.validation_split, data.seed)[1]
    except TuneError:
        return []
    return [row.prompt for row in rows if row.prompt and row.messages[-1].role == "assistant"]


def _reference(
    order: _Order, conversations: Sequence[Sequence[Message]], stopped: Stopped
) -> tuple[ReferenceAnswer, ...]:
    from ollama_tune.core.export.probes import CONVERSATIONS
    from ollama_tune.core.export.verify import compute_reference

    limit = order.settings.evaluation.max_new_tokens
    return read_reference(order.folder.path / "reference.json", limit) or compute_reference(
        order.base, order.folder.adapter, order.chat, conversations or CONVERSATIONS, limit, stopped
    )


def _verify(
    order: _Order,
    exported: Exported,
    conversations: Sequence[Sequence[Message]],
    reference: Sequence[ReferenceAnswer],
    emit: Emit,
    stopped: Stopped,
) -> Verification:
    from ollama_tune.core.export.verify import verify

    return verify(
        exported,
        order.base,
        order.folder.adapter,
        reference,
        conversations=conversations,
        slack=NF4_SLACK if order.settings.training.quantization == "nf4" else 0.0,
        max_new_tokens=order.settings.evaluation.max_new_tokens,
        progress=_progress(emit, "verifying", "questions"),
        stopped=stopped,
    )


def _name_file(order: _Order, exported: Exported, verification: Verification) -> Verification:
    """Give the file the name it earned, and leave a Modelfile and the commands beside a proved one."""
    folder = order.folder.export
    failed = folder / f"{order.stem}{FAILED}"
    if verification.verdict == "fail":
        exported.path.replace(failed)
        files = {"gguf": f"{folder.name}/{failed.name}", "verification": f"{folder.name}/{REPORT}"}
        return replace(verification, file=failed.name, files=files)
    final = folder / f"{order.stem}.gguf"
    exported.path.replace(final)
    failed.unlink(missing_ok=True)
    path = modelfile.write_modelfile(folder, final.name, order.chat.stop_texts, num_ctx=_context(order))
    paths = {"gguf": final, "modelfile": path, "verification": folder / REPORT}
    return replace(
        verification,
        file=final.name,
        files={word: f"{folder.name}/{path.name}" for word, path in paths.items()},
        commands=tuple(modelfile.commands(order.name.removesuffix(":latest"), folder)),
    )


def _context(order: _Order) -> int:
    """The context length Ollama is told: never below the trained length, never above the model's own."""
    wanted = max(order.settings.training.sequence_length, USUAL_CONTEXT)
    return min(wanted, read_config(order.base).context)


def _publish(
    order: _Order,
    verification: Verification,
    conversations: Sequence[Sequence[Message]],
    reference: Sequence[ReferenceAnswer],
    emit: Emit,
    stopped: Stopped,
) -> Verification:
    """Send the proved file to Ollama and ask it a question; a server that fails costs a warning only."""
    from ollama_tune.core.export.ollama import OllamaClient
    from ollama_tune.core.machine.ollama import read_ollama

    if not order.push:
        return _left(verification, "not asked for", "The settings say not to send the file to Ollama.")
    status = read_ollama()
    if not status.reachable:
        left = f"The GGUF, a Modelfile and the commands are in {order.folder.export}."
        return _left(verification, "no answer", f"{status.reason} {left}")
    question = _question(order, conversations, reference)
    try:
        with OllamaClient(status.url) as client:
            check = _send(order, client, verification, question, emit, stopped)
    except ExportStopped:
        raise
    except TuneError as error:
        emit("warning", what=error.what, fix=error.fix)
        return _with(verification, Check("ollama", "warn", "not made", f"{error.what} {error.fix}"))
    commands = verification.commands[-1:]
    return replace(_with(verification, check), ollama_name=order.name, commands=commands)


def _left(verification: Verification, figure: str, text: str) -> Verification:
    return _with(verification, Check("ollama", "skipped", figure, text))


def _with(verification: Verification, check: Check) -> Verification:
    checks = (*verification.checks, check)
    return replace(verification, checks=checks, verdict=worst(checks))


@dataclass(frozen=True)
class _Question:
    """A held-out prompt, and the tuned model's greedy answer where it is known and ended by itself."""

    messages: Sequence[Message]
    answer: str | None


def _question(
    order: _Order, conversations: Sequence[Sequence[Message]], reference: Sequence[ReferenceAnswer]
) -> _Question:
    from ollama_tune.core.export.probes import CONVERSATIONS

    known = {answer.prompt_ids: answer.text for answer in reference if answer.ended}
    for messages in conversations:
        answer = known.get(order.chat.prompt_ids(messages))
        if answer is not None:
            return _Question(messages, answer)
    return _Question(CONVERSATIONS[0], None)


def _send(
    order: _Order,
    client: OllamaClient,
    verification: Verification,
    question: _Question,
    emit: Emit,
    stopped: Stopped,
) -> Check:
    from ollama_tune.core.export.publish import publish

    emit("phase", name="uploading", text=f"Sending the file to Ollama at {client.url}.")
    found: list[Check] = []

    def ask(temporary: str) -> None:
        emit("phase", name="asking", text="Asking the new model in Ollama a question.")
        found.append(_ask(order, client, temporary, question, stopped))

    publish(
        client,
        order.name,
        order.folder.export / verification.file,
        f"sha256:{verification.sha256}",
        parameters={"stop": list(order.chat.stop_texts), "num_ctx": _context(order)},
        progress=_progress(emit, "uploading", "B"),
        on_status=_statuses(emit),
        stopped=stopped,
        check=ask,
    )
    return found[0]


def _statuses(emit: Emit) -> Callable[[str, int, int], None]:
    """Ollama's words while it makes the model; each new one is a phase."""
    said: set[str] = set()

    def report(text: str, _done: int, _total: int) -> None:
        if text not in said:
            said.add(text)
            emit("phase", name="creating", text=f"Ollama: {text}.")

    return report


def _ask(order: _Order, client: OllamaClient, model: str, question: _Question, stopped: Stopped) -> Check:
    """One answer at temperature 0. An answer that never ends raises, so that the model gets no name."""
    limit = order.settings.evaluation.max_new_tokens
    turns = [{"role": m.role, "content": m.content} for m in order.chat.adapt(question.messages)]
    found = client.chat(model, turns, max_new_tokens=limit, stopped=stopped)
    if client.show(model).get("template", OWN_TEMPLATE) not in ("", OWN_TEMPLATE):
        return Check(
            "ollama", "warn", "other template", "Ollama put a chat template of its own over the model's."
        )
    if question.answer is None:
        return Check("ollama", "pass", "answers", "The model in Ollama loads and answers.")
    if found.done_reason != "stop":
        raise TuneError(
            f"The model in Ollama does not end its answer (done_reason {found.done_reason or 'missing'}).",
            "Update Ollama and export again; the GGUF file is kept.",
        )
    if found.text.strip() != question.answer.strip():
        text = "To a held-out prompt Ollama's answer differs from the tuned model's."
        return Check("ollama", "warn", "answer differs", text)
    text = "To a held-out prompt Ollama gives the tuned model's answer and stops."
    return Check("ollama", "pass", "answer equal", text)


def _failed(verification: Verification) -> TuneError:
    names = ", ".join(check.name for check in verification.checks if check.verdict == "fail")
    return TuneError(
        f"The exported file failed its proof ({names}); it is kept as {verification.file} and was not sent "
        "to Ollama.",
        "Do not use it: export with another type, and report the problem if that fails too.",
        details="\n".join(f"{c.name}: {c.verdict} {c.figure} {c.text}" for c in verification.checks),
    )
