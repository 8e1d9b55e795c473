"""The last stretch: a proved file goes to Ollama, and the model there is asked a held-out question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.ollama import OllamaClient
from ollama_tune.core.export.order import Emit, Order, Stopped, progress
from ollama_tune.core.export.reference import ReferenceAnswer
from ollama_tune.core.export.values import Check, ExportStopped, Verification, worst

OWN_TEMPLATE = "{{ .Prompt }}"
"""What Ollama shows as the template where it uses the one inside the GGUF."""


def hand_over(
    order: Order,
    verification: Verification,
    conversations: Sequence[Sequence[Message]],
    reference: Sequence[ReferenceAnswer],
    emit: Emit,
    stopped: Stopped,
) -> Verification:
    """Send the proved file to Ollama and ask it a question; a server that fails costs a warning only."""
    from ollama_tune.core.export.ollama import OllamaClient
    from ollama_tune.core.machine.ollama import read_ollama

    if not order.wanted.push:
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
    order: Order, conversations: Sequence[Sequence[Message]], reference: Sequence[ReferenceAnswer]
) -> _Question:
    from ollama_tune.core.export.probes import CONVERSATIONS

    known = {answer.prompt_ids: answer.text for answer in reference if answer.ended}
    for messages in conversations:
        answer = known.get(order.chat.prompt_ids(messages))
        if answer is not None:
            return _Question(messages, answer)
    return _Question(CONVERSATIONS[0], None)


def _send(
    order: Order,
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
        parameters={"stop": list(order.chat.stop_texts), "num_ctx": order.context},
        progress=progress(emit, "uploading", "B"),
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


def _ask(order: Order, client: OllamaClient, model: str, question: _Question, stopped: Stopped) -> Check:
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
