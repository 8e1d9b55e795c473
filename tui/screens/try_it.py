"""Step 7: ask the base and the tuned model the same thing and see both answers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.compare import Sample
from ollama_tune.core.evaluate.metrics import exact_match
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_seconds, one_line, visible
from ollama_tune.tui.screens.run_screen import RunScreen
from ollama_tune.tui.widgets.answer import AnswerPane
from ollama_tune.tui.widgets.form import TextField

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Row
    from ollama_tune.core.evaluate.client import ChatProcess

LISTEN = 0.1
LONGEST = 2000
MOST = 1000


@dataclass(frozen=True)
class Prompt:
    """A held-out question: the messages up to the answer, the last one as it is shown, and the answer."""

    messages: tuple[dict[str, str], ...]
    shown: str
    reference: str


@dataclass
class HeldOutRead(Message):
    """The rows that the run kept out of training; empty where the data cannot be read any more."""

    prompts: tuple[Prompt, ...]


class TryItScreen(RunScreen):
    """A question, two answers side by side. Each question stands for itself: there is no memory.

    The models live in a process of their own, which ends when the screen is left.
    """

    STEP = 7
    CSS_PATH = "try_it.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "ask", "Ask", priority=True),
        Binding("enter", "next", "Next", priority=True),
        Binding("escape", "cancel", "Stop the answer"),
        Binding("escape", "back", "Back"),
        Binding("f5,ctrl+n", "held_out", "A held-out question"),
        Binding("tab", "app.focus_next", "Answers", show=False),
    ]

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self._chat: ChatProcess | None = None
        self._opened = 0.0
        self._ready = False
        self._problem: Content | None = None
        self._asked: int | None = None
        self._reference = ""
        self._prompts: tuple[Prompt, ...] = ()
        self._next_prompt = 0

    def body(self) -> ComposeResult:
        """State, question, reference, answers, and where to type."""
        yield Static(id="chat-state", markup=False)
        yield Static(id="question", markup=False)
        yield Static(id="reference", markup=False)
        with Container(id="answers"):
            yield AnswerPane("Base model", id="base")
            yield AnswerPane("Tuned model", id="tuned")
        yield TextField(placeholder="Type a question, or press F5 for a held-out one", id="prompt")

    def on_mount(self) -> None:
        """The field is ready at once; models and held-out rows load meanwhile."""
        super().on_mount()
        self.query_one("#prompt").focus()
        self._read_held_out()
        self.set_interval(LISTEN, self._listen)

    def on_screen_resume(self) -> None:
        """Start the models, also when one comes back from a later step."""
        if self._chat is None:
            self.call_after_refresh(self._open)

    def on_unmount(self) -> None:
        """The process does not outlive the screen."""
        self._close()

    def leaving(self) -> None:
        """Free the models' memory for what comes next."""
        self._close()

    def _open(self) -> None:
        from ollama_tune.core.evaluate.client import ChatProcess

        if self._chat is None:
            self._ready, self._problem, self._opened = False, None, time.monotonic()
            self._chat = ChatProcess(self.folder)
            self._tell_state()

    def _close(self) -> None:
        chat, self._chat, self._asked = self._chat, None, None
        if chat is not None:
            chat.close()

    # What the keys do now

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enter asks where there is a question and goes on where there is none; Esc first stops an answer."""
        busy = self._asked is not None
        typed = self.is_mounted and bool(self.query_one("#prompt", Input).value.strip())
        shown = {
            "ask": typed and not busy,
            "next": not (typed or busy),
            "cancel": busy,
            "back": not busy,
            "held_out": not busy and bool(self._prompts),
        }
        return shown[action] if action in shown else super().check_action(action, parameters)

    def action_ask(self) -> None:
        """Send what stands in the field to both models."""
        field = self.query_one("#prompt", TextField)
        text = field.value.strip()
        if self._chat is None or not self._chat.alive:
            self.say("The models are not there: see the line at the top.")
            return
        prompt = self._prompt_for(text)
        self._problem = None
        self.say("")
        field.value = ""
        self._show_question(prompt)
        limit = self.folder.settings().evaluation.max_new_tokens
        self._asked = self._chat.ask(list(prompt.messages), max_new_tokens=limit)
        self._tell_state()
        self.refresh_bindings()

    def _show_question(self, prompt: Prompt) -> None:
        """The question and what is wanted, over empty answers."""
        self._reference = prompt.reference
        question = Content.assemble(("Question   ", "dim"), one_line(prompt.shown, LONGEST))
        wanted = Content.assemble(("Wanted     ", "dim"), one_line(self._reference, LONGEST))
        self.tell("#question", question, layout=True)
        self.tell("#reference", wanted if self._reference else Content(""), layout=True)
        for pane in self.query(AnswerPane):
            pane.clear()

    def _prompt_for(self, text: str) -> Prompt:
        """The held-out question with its whole conversation, or a question of one's own."""
        for prompt in self._prompts:
            if prompt.shown == text:
                return prompt
        system = common_system(self._prompts)
        return Prompt((*system, {"role": "user", "content": text}), text, "")

    def action_cancel(self) -> None:
        """End the answer; what is written stays."""
        if self._chat is not None:
            self._chat.cancel()
        self._finish()

    def action_held_out(self) -> None:
        """Put the next held-out question into the field."""
        prompt = self._prompts[self._next_prompt % len(self._prompts)]
        self._next_prompt += 1
        field = self.query_one("#prompt", TextField)
        field.value = prompt.shown
        field.cursor_position = len(field.value)
        field.focus()

    @on(Input.Changed, "#prompt")
    def _typed(self) -> None:
        self.refresh_bindings()

    # What comes in

    def show_run(self) -> None:
        """Where the data is gone, the samples of the log are the held-out questions."""
        if not self._prompts:
            self._prompts = tuple(_from_sample(sample) for sample in self.view.samples.values())

    @work(thread=True, exclusive=True, exit_on_error=False, group="held-out")
    def _read_held_out(self) -> None:
        self.post_message(HeldOutRead(read_held_out(self.folder)))

    @on(HeldOutRead)
    def _held_out_read(self, message: HeldOutRead) -> None:
        self._prompts = message.prompts or self._prompts
        self.refresh_bindings()

    def _listen(self) -> None:
        if self._chat is None:
            return
        messages = self._chat.poll()
        for message in messages:
            self._take(message)
        for name in ("base", "tuned"):
            text = "".join(
                m["text"] for m in messages if m.get("model") == name and "text" in m and self._mine(m)
            )
            if text:
                self.query_one(f"#{name}", AnswerPane).add(text)
        self._tell_state()

    def _mine(self, message: dict[str, Any]) -> bool:
        return self._asked is not None and message.get("id") == self._asked

    def _take(self, message: dict[str, Any]) -> None:
        """Everything but the pieces of text."""
        if message.get("ready"):
            self._ready = True
        elif "error" in message and (self._mine(message) or "id" not in message):
            error = message["error"]
            words = f"{visible(str(error['what']))} {visible(str(error['fix']))}"
            self._problem = Content.assemble(("✗ ", "bold $text-error"), words)
            self._finish()
        elif "end" in message and self._mine(message):
            self.call_after_refresh(self._ended, message)

    def _ended(self, message: dict[str, Any]) -> None:
        pane = self.query_one(f"#{message['model']}", AnswerPane)
        ends = {"length": "cut off", "cancelled": "stopped"}
        words = f"{message['tokens']} tokens, {message['seconds']:.1f} s"
        words += f", {ends[message['end']]}" if message["end"] in ends else ""
        pane.close(Content.assemble(self._verdict(pane.text), words))
        if message["model"] == "tuned":
            self._finish()

    def _verdict(self, answer: str) -> Content:
        if not self._reference:
            return Content("")
        if exact_match(answer, self._reference):
            return Content.assemble(("✓ as wanted", "bold $text-success"), " · ")
        return Content.assemble(("✗ not as wanted", "bold $text-error"), " · ")

    def _finish(self) -> None:
        self._asked = None
        self.refresh_bindings()
        self._tell_state()

    def _tell_state(self) -> None:
        self.tell("#chat-state", self._state(), layout=True)

    def _state(self) -> Content:
        if self._problem is not None:
            return self._problem
        if not self._ready:
            waited = human_seconds(time.monotonic() - self._opened) if self._opened else "0 s"
            return Content(f"Loading the base and the tuned model … {waited}")
        if self._asked is not None:
            return Content("Both models answer: first the base model, then the tuned one …")
        return Content("Ask both models the same; Enter in the empty field goes on to Export.")


def read_held_out(folder: RunFolder) -> tuple[Prompt, ...]:
    """The rows that the run kept out of training, split as the worker splits them."""
    from ollama_tune.core.data.load import load_dataset
    from ollama_tune.core.data.split import split_rows

    try:
        data = folder.settings().data
        _, held = split_rows(load_dataset(data.path, data.reading()).rows, data.validation_split, data.seed)
    except TuneError:
        return ()
    return tuple(_from_row(row) for row in held[:MOST] if row.prompt)


def _from_row(row: Row) -> Prompt:
    messages = tuple({"role": m.role, "content": m.content} for m in row.prompt)
    return Prompt(messages, one_line(row.prompt[-1].content, LONGEST), row.answer)


def _from_sample(sample: Sample) -> Prompt:
    message = {"role": "user", "content": sample.prompt}
    return Prompt((message,), one_line(sample.prompt, LONGEST), sample.reference)


def common_system(prompts: Iterable[Prompt]) -> tuple[dict[str, str], ...]:
    """The system message, if all held-out questions begin with the same: the model learned with it."""
    heads = {p.messages[0]["content"] if p.messages[0]["role"] == "system" else None for p in prompts}
    head = heads.pop() if len(heads) == 1 else None
    return ({"role": "system", "content": head},) if head is not None else ()
