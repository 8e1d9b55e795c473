"""The export from a run's adapter to a proved GGUF and, where Ollama answers, a model in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.export import modelfile
from ollama_tune.core.export.gguf import Exported, export_gguf
from ollama_tune.core.export.handover import hand_over
from ollama_tune.core.export.order import Emit, Order, Stopped, progress
from ollama_tune.core.export.reference import ReferenceAnswer, read_reference
from ollama_tune.core.export.values import Verification
from ollama_tune.core.files import write_atomic
from ollama_tune.core.plan.names import check_ollama_name
from ollama_tune.core.runs.chat import run_chat
from ollama_tune.core.runs.folder import RunFolder

UNVERIFIED, FAILED = ".unverified.gguf", ".failed.gguf"
REPORT = "verification.json"
NF4_SLACK = 0.05
"""Nats allowed between a model trained on 4-bit weights and the same adapter on 16-bit ones."""


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
        verification = _store(order, hand_over(order, verification, conversations, reference, emit, stopped))
    finally:
        emit("verification", **verification.to_dict())
    return verification


def _store(order: Order, verification: Verification) -> Verification:
    write_atomic(order.folder.export / REPORT, json.dumps(verification.to_dict(), indent=2))
    return verification


def _prepare(folder: RunFolder) -> Order:
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
    return Order(folder, settings, wanted, name, stem, base, run_chat(folder, base))


def _write(order: Order, emit: Emit, stopped: Stopped) -> Exported:
    return export_gguf(
        order.base,
        order.folder.adapter,
        order.folder.export / f"{order.stem}{UNVERIFIED}",
        order.wanted.type,
        progress(emit, "writing", "B"),
        stopped,
        chat=order.chat,
        name=order.stem,
    )


def _held_out(order: Order) -> list[tuple[Message, ...]]:
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
    order: Order, conversations: Sequence[Sequence[Message]], stopped: Stopped
) -> tuple[ReferenceAnswer, ...]:
    from ollama_tune.core.export.probes import CONVERSATIONS
    from ollama_tune.core.export.verify import compute_reference

    limit = order.settings.evaluation.max_new_tokens
    return read_reference(order.folder.path / "reference.json", limit) or compute_reference(
        order.base, order.folder.adapter, order.chat, conversations or CONVERSATIONS, limit, stopped
    )


def _verify(
    order: Order,
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
        chat=order.chat,
        conversations=conversations,
        slack=NF4_SLACK if order.settings.training.quantization == "nf4" else 0.0,
        max_new_tokens=order.settings.evaluation.max_new_tokens,
        progress=progress(emit, "verifying", "questions"),
        stopped=stopped,
    )


def _name_file(order: Order, exported: Exported, verification: Verification) -> Verification:
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
    path = modelfile.write_modelfile(folder, final.name, order.chat.stop_texts, num_ctx=order.context)
    paths = {"gguf": final, "modelfile": path, "verification": folder / REPORT}
    return replace(
        verification,
        file=final.name,
        files={word: f"{folder.name}/{path.name}" for word, path in paths.items()},
        commands=tuple(modelfile.commands(order.name.removesuffix(":latest"), folder)),
    )


def _failed(verification: Verification) -> TuneError:
    names = ", ".join(check.name for check in verification.checks if check.verdict == "fail")
    return TuneError(
        f"The exported file failed its proof ({names}); it is kept as {verification.file} and was not sent "
        "to Ollama.",
        "Do not use it: export with another type, and report the problem if that fails too.",
        details="\n".join(f"{c.name}: {c.verdict} {c.figure} {c.text}" for c in verification.checks),
    )
