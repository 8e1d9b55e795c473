"""The export from a run's adapter to a proved GGUF and, where Ollama answers, a model in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import modelfile
from ollama_tune.core.export.about import describe, digest_of
from ollama_tune.core.export.extras import write_extras
from ollama_tune.core.export.gguf import Exported, export_gguf
from ollama_tune.core.export.handover import hand_over
from ollama_tune.core.export.order import Emit, Order, progress
from ollama_tune.core.export.prepare import FAILED, UNVERIFIED, Prepared, prepare
from ollama_tune.core.export.reference import ReferenceAnswer, read_reference
from ollama_tune.core.export.values import Check, ExportStopped, Stopped, Verification, worst
from ollama_tune.core.files import write_atomic
from ollama_tune.core.models.architectures import read_config
from ollama_tune.core.runs.folder import RunFolder

if TYPE_CHECKING:
    from ollama_tune.core.export.tokenprobe import Probed

REPORT = "verification.json"
MOST_NEW_TOKENS = 64
"""Longest answer in tokens that is computed where the training left none."""


def run_export(folder: RunFolder, emit: Emit, stopped: Stopped) -> Verification:
    """Write, prove and publish the model of a run; raises `TuneError` when it cannot or the proof fails.

    Whatever happens to Ollama, a proved GGUF stays in the run's export folder with a Modelfile.
    """
    prepared = prepare(folder, emit, stopped)
    order = prepared.order
    probed = _probe(prepared, emit, stopped)
    exported = _write(prepared, probed, emit, stopped)
    try:
        known = _reference(prepared, emit, stopped)
        verification = _verify(prepared, probed, exported, known, emit, stopped)
        verification = _store(order, _name_file(order, exported, verification))
    except BaseException:
        exported.path.unlink(missing_ok=True)
        raise
    try:
        if verification.verdict == "fail":
            raise _failed(verification)
        verification = _store(order, write_extras(order, verification, emit, stopped))
        answers = known.answers
        verification = hand_over(order, verification, prepared.conversations, answers, emit, stopped)
        verification = _store(order, verification)
    finally:
        emit("verification", **verification.to_dict())
    if verification.verdict == "fail":
        raise _failed_there(order, verification)
    return verification


def _store(order: Order, verification: Verification) -> Verification:
    write_atomic(order.folder.export / REPORT, json.dumps(verification.to_dict(), indent=2))
    return verification


def _probe(prepared: Prepared, emit: Emit, stopped: Stopped) -> Probed:
    from ollama_tune.core.export.tokenprobe import probe_tokenizer

    emit("phase", name="probing", text="Comparing llama.cpp's reading of the tokenizer with the training's.")
    order = prepared.order
    return probe_tokenizer(order.chat, prepared.vocabulary, order.stem, prepared.conversations, stopped)


def _write(prepared: Prepared, probed: Probed, emit: Emit, stopped: Stopped) -> Exported:
    order = prepared.order
    how = "Merging the adapter and writing" if order.adapter else "Writing"
    emit("phase", name="writing", text=f"{how} {order.stem}.gguf.")
    return export_gguf(
        order.base,
        order.adapter,
        order.folder.export / f"{order.stem}{UNVERIFIED}",
        order.wanted.type,
        progress(emit, "writing", "B"),
        stopped,
        chat=order.chat,
        tokenizer=probed.fields,
        importance=prepared.importance,
        name=probed.name,
    )


@dataclass(frozen=True)
class _Known:
    """The tuned model's answers and where they are from; `limit` in tokens, `slack` in nats."""

    answers: tuple[ReferenceAnswer, ...]
    source: str
    limit: int
    digest: str
    slack: float = 0.0
    checks: tuple[Check, ...] = ()


def _reference(prepared: Prepared, emit: Emit, stopped: Stopped) -> _Known:
    """The answers that the training stored for this adapter, else answers computed now."""
    order = prepared.order
    digest = digest_of(order.adapter or order.base, stopped)
    limit = order.settings.evaluation.max_new_tokens
    stored = read_reference(order.folder.path / "reference.json", limit, digest)
    if not stored:
        return _computed(prepared, min(limit, MOST_NEW_TOKENS), digest, emit, stopped)
    known = _Known(stored, "stored by the training", limit, digest)
    if order.settings.training.quantization == "nf4":
        return _on_sixteen_bits(order, known, emit, stopped)
    return known


def _computed(prepared: Prepared, limit: int, digest: str, emit: Emit, stopped: Stopped) -> _Known:
    from ollama_tune.core.export.probes import CONVERSATIONS
    from ollama_tune.core.export.verify import compute_reference

    order = prepared.order
    emit("phase", name="asking_tuned", text="Computing what the tuned model answers, to compare with.")
    asked = prepared.conversations or CONVERSATIONS
    longest = order.settings.training.sequence_length
    try:
        answers = compute_reference(
            order.base, order.adapter, order.chat, asked, limit, stopped, longest=longest
        )
    except ExportStopped:
        raise
    except TuneError as error:
        check = Check("tuned model", "warn", "not asked", str(error))
        return _Known((), "none", limit, digest, checks=(check,))
    return _Known(answers, "computed by the export", limit, digest)


def _on_sixteen_bits(order: Order, known: _Known, emit: Emit, stopped: Stopped) -> _Known:
    """Part what 4-bit training cost from what the file costs, where that can be computed in a minute or so.

    The file holds the adapter on the 16-bit base, so its judge is that model too, with gates as narrow as
    ever. Where it is too large for this box the gates are widened by an allowance instead.
    """
    from ollama_tune.core.export.answercheck import NF4_ALLOWANCE, check_bases
    from ollama_tune.core.export.verify import is_cheap, recompute

    reason = "The 16-bit base is too large to be asked here"
    if is_cheap(order.base):
        emit("phase", name="asking_tuned", text="Computing the tuned model's answers on the 16-bit base.")
        try:
            answers = recompute(order.base, order.adapter, order.chat, known.answers, stopped)
            return replace(known, answers=answers, checks=(check_bases(known.answers, answers),))
        except ExportStopped:
            raise
        except TuneError as error:
            reason = error.what.rstrip(".")
    text = f"{reason}; the probabilities may differ by {NF4_ALLOWANCE} nats more for the 4-bit training."
    check = Check("4-bit base", "skipped", f"{NF4_ALLOWANCE} allowed", text)
    return replace(known, slack=NF4_ALLOWANCE, checks=(check,))


def _verify(
    prepared: Prepared, probed: Probed, exported: Exported, known: _Known, emit: Emit, stopped: Stopped
) -> Verification:
    from ollama_tune.core.export.structure import check_structure
    from ollama_tune.core.export.verify import verify

    emit("phase", name="verifying", text="Comparing the file with the tuned model in llama.cpp.")
    order = prepared.order
    structure = check_structure(order.base, order.adapter, order.chat, stopped)
    found = verify(
        exported,
        order.base,
        order.adapter,
        known.answers,
        chat=order.chat,
        tokenizer=probed.fields,
        name=probed.name,
        importance=prepared.importance,
        conversations=prepared.conversations,
        slack=known.slack,
        max_new_tokens=known.limit,
        progress=progress(emit, "verifying", "questions"),
        stopped=stopped,
    )
    checks = (probed.check, structure, *found.checks, *known.checks, *_window(order))
    about = describe(order, known.digest, exported.importance, known.source)
    return replace(found, checks=checks, verdict=worst(checks), about=about)


def _window(order: Order) -> list[Check]:
    """A remark where rows of the training may be longer than an attention window llama.cpp does not know."""
    window, trained = read_config(order.base).window, order.settings.training.sequence_length
    if not 0 < window < trained:
        return []
    text = (
        f"llama.cpp computes this family without its attention window of {window} tokens, so that answers to "
    )
    text += "longer texts differ from the training's. Keep texts shorter than that."
    data = {"window": window, "sequence_length": trained}
    return [Check("window", "warn", f"{window} tokens", text, data)]


def _name_file(order: Order, exported: Exported, verification: Verification) -> Verification:
    """Give the file the name it earned, and leave a Modelfile and the commands beside a proved one."""
    folder = order.folder.export
    failed = folder / f"{order.stem}{FAILED}"
    if verification.verdict == "fail":
        exported.path.replace(failed)
        return replace(verification, file=failed.name, files=_places(folder, gguf=failed))
    final = folder / f"{order.stem}.gguf"
    exported.path.replace(final)
    failed.unlink(missing_ok=True)
    path = modelfile.write_modelfile(
        folder, final.name, order.chat.stop_texts, num_ctx=order.context, system=order.wanted.system
    )
    return replace(
        verification,
        file=final.name,
        files=_places(folder, gguf=final, modelfile=path),
        commands=tuple(modelfile.commands(order.name.removesuffix(":latest"), folder)),
    )


def _places(folder: Path, **paths: Path) -> dict[str, str]:
    paths["verification"] = folder / REPORT
    return {word: f"{folder.name}/{path.name}" for word, path in paths.items()}


def _failed(verification: Verification) -> TuneError:
    return TuneError(
        f"The exported file failed its proof ({_names(verification)}); it is kept as {verification.file} and "
        "was not sent to Ollama.",
        "Do not use it: export with another type, and report the problem if that fails too.",
        details=_lines(verification),
    )


def _failed_there(order: Order, verification: Verification) -> TuneError:
    return TuneError(
        f"The file is proved and kept, but the model in Ollama failed its proof ({_names(verification)}).",
        f"Look at the checks in {order.folder.export / REPORT}, update Ollama, and export again.",
        details=_lines(verification),
    )


def _names(verification: Verification) -> str:
    return ", ".join(check.name for check in verification.checks if check.verdict == "fail")


def _lines(verification: Verification) -> str:
    return "\n".join(f"{c.name}: {c.verdict} {c.figure} {c.text}" for c in verification.checks)
