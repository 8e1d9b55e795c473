"""What is written besides the GGUF where the settings ask for it: merged folder, adapter, adapter GGUF."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.order import Emit, Order, progress
from ollama_tune.core.export.values import Check, ExportStopped, Progress, Stopped, Verification, worst
from ollama_tune.core.files import FREED
from ollama_tune.core.plan.settings import ExportForm

WORDS: dict[ExportForm, str] = {
    "merged": "the merged model as safetensors",
    "adapter": "a copy of the adapter",
    "adapter_gguf": "the adapter as GGUF",
}
SIXTEEN = "BF16"
"""The number format of the folder where the run itself keeps the whole model, in 32 bit."""


def write_extras(order: Order, verification: Verification, emit: Emit, stopped: Stopped) -> Verification:
    """Write each form of `export.also`; one that cannot be written costs a warning, never the file."""
    for form in dict.fromkeys(order.wanted.also):
        emit("phase", name="outputs", text=f"Writing {WORDS[form]}.")
        try:
            path = _write(order, form, progress(emit, "outputs", "B"), stopped)
        except ExportStopped:
            raise
        except (TuneError, OSError) as error:
            verification = _missed(verification, form, error, emit)
            continue
        verification = replace(
            verification, files=verification.files | {form: f"{order.folder.export.name}/{path.name}"}
        )
    return verification


def _write(order: Order, form: ExportForm, report: Progress, stopped: Stopped) -> Path:
    from ollama_tune.core.export.adapter_gguf import write_adapter_gguf
    from ollama_tune.core.export.outputs import copy_adapter, write_merged_folder

    base, adapter, folder = order.base, order.adapter, order.folder.export
    name = order.stem.removesuffix(f"-{order.wanted.type}")
    if form == "merged":
        target, dtype = folder / f"{name}-merged", None if adapter else SIXTEEN
        return write_merged_folder(base, adapter, order.chat, target, report, stopped, dtype=dtype)
    if adapter is None:
        raise TuneError("This run trained the model itself, not an adapter.", "Take it out of export.also.")
    if form == "adapter":
        return copy_adapter(adapter, folder / f"{name}-adapter", base, report, stopped, chat=order.chat)
    return write_adapter_gguf(base, adapter, folder / f"{name}-adapter.gguf", report, stopped)


def _missed(verification: Verification, form: ExportForm, error: Exception, emit: Emit) -> Verification:
    if isinstance(error, TuneError):
        what, fix = error.what, error.fix
    else:
        what, fix = f"Writing {WORDS[form]} failed: {error}.", f"Make room and export again: {FREED}."
    emit("warning", what=what, fix=fix)
    checks = (*verification.checks, Check(form, "warn", "not written", f"{what} {fix}"))
    return replace(verification, checks=checks, verdict=worst(checks))
