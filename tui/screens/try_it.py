"""Step 7: talk to the base and the tuned model, and see both answers side by side."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Input, Static

from ollama_tune.core.evaluate.asking import Asking, load_asking, save_asking, usual_asking
from ollama_tune.core.evaluate.conversation import MODELS, Conversation, HeldOut, json_lines
from ollama_tune.core.evaluate.held_out import from_sample, read_held_out, usual_system, with_system
from ollama_tune.core.evaluate.several import Several
from ollama_tune.core.files import write_atomic
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_seconds, visible
from ollama_tune.tui.screens.run_screen import RunScreen
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.form import TextField
from ollama_tune.tui.widgets.talk import TalkView, crowded, how_words

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.client import ChatProcess

LISTEN = 0.1


@dataclass
class HeldOutRead(Message):
    """The questions that the run held out; empty where the data cannot be read any more."""

    questions: tuple[HeldOut, ...]


@dataclass
class Written(Message):
    """A file was written, or not: what is said of it, and by whom."""

    sentence: str
    say: Callable[[str], None]


class TryItScreen(RunScreen):
    """A conversation with two models, each of which sees its own answers.

    The models live in a process of their own, which ends when the screen is left.
    """

    STEP = 7
    CSS_PATH = "try_it.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "ask", "Ask", priority=True),
        Binding("enter", "next", "Next", priority=True),
        Binding("escape", "cancel", "Stop the answer"),
        Binding("escape", "back", "Back"),
        Binding("f5,ctrl+n", "held_out", "Held-out"),
        Binding("f6,ctrl+t", "several", "Ask eight"),
        Binding("f2,ctrl+o", "options", "Options"),
        Binding("f7,ctrl+r", "begin", "New"),
        Binding("f8,ctrl+s", "write", "Write"),
        Binding("tab", "app.focus_next", "Answers", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
    ]

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self._chat: ChatProcess | None = None
        self._opened = 0.0
        self._ready = False
        self._problem: Content | None = None
        self._asked: int | None = None
        self._talk = Conversation()
        self._file: Path | None = None
        self._settings = folder.settings()
        self._asking = load_asking(folder, usual_asking(self._settings))
        self._system = usual_system(self._settings, ())
        self._several = Several()
        self._next_question = 0
        self._typed = False
        self._listener: Timer

    def body(self) -> ComposeResult:
        """State, what is wanted, answers, and where to type."""
        yield Static(id="chat-state", markup=False)
        yield TalkView(id="talk")
        yield TextField(placeholder="Type a question, or press F5 for a held-out one", id="prompt")

    def on_mount(self) -> None:
        """The field is ready at once; models and held-out rows load meanwhile."""
        super().on_mount()
        self.query_one("#prompt").focus()
        self._read_held_out()
        self._listener = self.set_interval(LISTEN, self._listen)

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
            self._listener.resume()
            self._tell_state()

    def _close(self) -> None:
        chat, self._chat, self._asked = self._chat, None, None
        self._several.end()
        if chat is not None:
            chat.close()

    def screen_topic(self) -> tuple[str, str]:
        """The help of asking."""
        return "try_it", "Try it"

    # What the keys do now

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enter asks where there is a question and goes on where there is none; Esc first stops an answer."""
        busy, some = self._asked is not None, bool(self._talk.turns)
        typed = self._typed
        questions = bool(self._several.questions)
        shown = {
            "ask": typed and not busy,
            "next": not (typed or busy),
            "cancel": busy,
            "back": not busy,
            "held_out": not busy and questions,
            "several": not busy and questions,
            "options": not busy,
            "begin": not busy and some,
            "write": not busy and some,
        }
        return shown[action] if action in shown else super().check_action(action, parameters)

    def _there(self) -> ChatProcess | None:
        """The process, where it can be asked; says so where it cannot."""
        if self._chat is not None and self._chat.alive:
            return self._chat
        self.say("The models are not there: see the line at the top.")
        return None

    def action_ask(self) -> None:
        """Send what stands in the field to both models."""
        field = self.query_one("#prompt", TextField)
        chat = self._there()
        if chat is None:
            return
        self._problem = None
        self.say("")
        self._begin_turn(field.value.strip())
        field.value = ""
        self._asked = chat.ask(**self._talk.request(), asking=self._asking)
        self._listener.resume()
        self._tell_state()
        self.refresh_bindings()

    def _begin_turn(self, text: str) -> None:
        """A held-out question begins a conversation of its own, any other text goes on with this one."""
        held_out = next((q for q in self._several.questions if q.shown == text), None)
        if held_out is not None:
            self._begin(Conversation.of(held_out))
        else:
            self._talk.ask(text)
        system = self._asking.system
        if held_out is None and system is None and len(self._talk.turns) == 1:
            system = self._system
        self._talk.opening = with_system(self._talk.opening, system)
        self.query_one(TalkView).ask(self._talk.turns[-1])

    def _begin(self, talk: Conversation) -> None:
        """Another conversation, with what stands before its first question."""
        self._talk, self._file = talk, None
        self.query_one(TalkView).begin(talk)

    def action_cancel(self) -> None:
        """End the answer; what is written stays."""
        if self._chat is not None:
            self._chat.cancel()
        turn = self._talk.turns[-1]
        for model, answer in turn.answers.items():
            answer.end = answer.end or "cancelled"
            self.query_one(TalkView).end(turn, model)
        self._finish()

    def action_begin(self) -> None:
        """Forget the conversation."""
        self._begin(Conversation())
        self._problem = None
        self._finish()

    def action_held_out(self) -> None:
        """Put the next held-out question into the field."""
        questions = self._several.questions
        question = questions[self._next_question % len(questions)]
        self._next_question += 1
        field = self.query_one("#prompt", TextField)
        field.value = question.shown
        field.cursor_position = len(field.value)
        field.focus()

    def action_page(self, by: int) -> None:
        """Both sides move together."""
        self.query_one(TalkView).page(by)

    def action_options(self) -> None:
        """How to ask, in a box."""
        from ollama_tune.tui.screens.try_it_options import AskingScreen

        box = AskingScreen(self._asking, usual_asking(self._settings), self._system)
        self.app.push_screen(box, self._take_asking)

    def _take_asking(self, asking: Asking | None) -> None:
        if asking is None or asking == self._asking:
            return
        self._asking = asking
        self._several.clear()
        self._write(lambda: save_asking(self.folder, asking), "", self.say)
        self._tell_state()

    # Several questions at once

    def action_several(self) -> None:
        """The table of held-out questions."""
        from ollama_tune.tui.screens.try_it_table import Does, HeldOutScreen

        does = Does(self._ask_several, self._stop_several, self._write_several)
        self.app.push_screen(HeldOutScreen(self._several, does, self.about()))

    def _ask_several(self) -> None:
        if self._chat is None or not self._chat.alive:
            self._several.end("The models are not there: go back to Try it.")
        else:
            self._several.ask(self._chat, self._asking)
            self._listener.resume()

    def _stop_several(self) -> None:
        if self._chat is not None:
            self._chat.cancel()
        self._several.end()

    # Files

    def action_write(self) -> None:
        """Write the conversation into the run's folder, and offer the last answer to the clipboard."""
        self._file = self._file or self._path("conversation", "md")
        path, text = self._file, self._markdown()
        self.app.copy_to_clipboard(self._talk.turns[-1].answers["tuned"].text)
        words = f"Written to {tilde(path)}; the tuned model's answer was sent to your terminal's clipboard."
        self._write(lambda: write_atomic(path, text), words, self.say)

    def _markdown(self) -> str:
        return self._talk.markdown(
            f"Conversation with {self.folder.name}", how_words(self._asking, self._system)
        )

    def _write_several(self, say: Callable[[str], None]) -> None:
        path, text = self._path("held-out", "jsonl"), json_lines(self._several.results)
        self._write(lambda: write_atomic(path, text), f"Written to {tilde(path)}.", say)

    def _path(self, name: str, ending: str) -> Path:
        return self.folder.path / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}.{ending}"

    @work(thread=True, exit_on_error=False, group="write")
    def _write(self, write: Callable[[], None], words: str, say: Callable[[str], None]) -> None:
        try:
            write()
        except OSError as error:
            words = f"The file could not be written: {error.strerror}."
        self.post_message(Written(words, say))

    @on(Written)
    def _written(self, message: Written) -> None:
        message.say(message.sentence)

    # What comes in

    @on(Input.Changed, "#prompt")
    def _changed(self, event: Input.Changed) -> None:
        """Other keys work where there is a question, so only its first letter and its last matter."""
        typed = bool(event.value.strip())
        if typed != self._typed:
            self._typed = typed
            self.refresh_bindings()

    def show_run(self) -> None:
        """Where the data is gone, the samples of the log are the held-out questions."""
        if not self._several.questions:
            self._several.questions = tuple(from_sample(sample) for sample in self.view.samples.values())

    @work(thread=True, exclusive=True, exit_on_error=False, group="held-out")
    def _read_held_out(self) -> None:
        self.post_message(HeldOutRead(read_held_out(self.folder)))

    @on(HeldOutRead)
    def _held_out_read(self, message: HeldOutRead) -> None:
        self._several.questions = message.questions or self._several.questions
        self._system = usual_system(self._settings, self._several.questions)
        self.refresh_bindings()

    def tick(self) -> None:
        """While nothing is awaited, once a second is enough to notice that the process has ended."""
        self._listen()

    def _listen(self) -> None:
        if self._chat is None:
            return
        messages = [message for message in self._chat.poll() if not self._several.take(message)]
        told = [message for message in messages if self._mine(message) and "model" in message]
        for message in messages:
            if message not in told:
                self._take(message)
        if told:
            self._take_answers(told)
        if messages or not self._ready:
            self._tell_state()
        if self._problem is not None or (self._ready and self._asked is None and not self._several.busy):
            self._listener.pause()

    def _mine(self, message: dict[str, Any]) -> bool:
        return self._asked is not None and message.get("id") == self._asked

    def _take_answers(self, messages: list[dict[str, Any]]) -> None:
        """What both models wrote since the last look; all pieces of one are shown at once."""
        turn, view = self._talk.turns[-1], self.query_one(TalkView)
        for model in MODELS:
            mine = [message for message in messages if message["model"] == model]
            for message in mine:
                turn.answers[model].take(message)
            view.add(model, "".join(str(message.get("text", "")) for message in mine))
            if any("end" in message for message in mine):
                view.end(turn, model)
        if turn.answers[MODELS[-1]].end:
            self._finish()

    def _take(self, message: dict[str, Any]) -> None:
        """Everything but answers."""
        if message.get("ready"):
            self._ready = True
        elif "error" in message and (self._mine(message) or "id" not in message):
            error = message["error"]
            words = f"{visible(str(error['what']))} {visible(str(error['fix']))}"
            self._problem = Content.assemble(("✗ ", "bold $text-error"), words)
            self._drop_turn()
            self._several.end(words)
            self._finish()

    def _drop_turn(self) -> None:
        """A question that could not be asked is no part of the conversation."""
        if self._asked is not None and not any(a.text for a in self._talk.turns[-1].answers.values()):
            self._talk.turns.pop()

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
        warning = crowded(self._talk, self._settings.training.sequence_length)
        if warning:
            return Content.assemble(("! ", "bold $text-warning"), warning)
        if self._asked is not None:
            return Content("Both models answer: first the base model, then the tuned one …")
        begun = "The conversation goes on; F7 begins a new one."
        ask = begun if self._talk.turns else "Ask both models the same."
        return Content.assemble(ask, (f" {how_words(self._asking, self._system)}", "dim"))
