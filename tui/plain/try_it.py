"""Step 7 in plain lines: talk to the base and the tuned model, and read both answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.asking import LIMITS, load_asking, save_asking, usual_asking
from ollama_tune.core.evaluate.conversation import MODELS, NAMES, Conversation, Result, Turn
from ollama_tune.core.evaluate.held_out import read_held_out, usual_system, with_system
from ollama_tune.core.evaluate.several import Several
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.plain.talk import Back

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.client import ChatProcess
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "try it")
LISTEN = 0.05
LONGEST = 4000
WORDS = {
    "temperature": "Temperature; 0 is always the likeliest word, the same answer every time",
    "top_p": "Top-p; 1 is all words; of use only above temperature 0",
    "top_k": "Top-k; 0 is all words; of use only above temperature 0",
    "seed": "Seed; one seed gives one answer, and both models get the same",
    "max_new_tokens": "Longest answer, in tokens",
}


def ask_try_it(wizard: Wizard) -> None:
    """Questions and answers until an empty line; the models are loaded at the first question."""
    tried = Trying(wizard)
    try:
        tried.run()
    finally:
        tried.close()


class Trying:
    """A conversation with two models, each of which sees its own answers."""

    def __init__(self, wizard: Wizard) -> None:
        self._wizard, self._out, self._folder = wizard, wizard.talk, wizard.run_folder()
        self._chat: ChatProcess | None = None
        settings = self._folder.settings()
        self._asking = load_asking(self._folder, usual_asking(settings))
        self._several = Several()
        self._several.questions = read_held_out(self._folder)
        self._system = usual_system(settings, self._several.questions)
        self._talk = Conversation()
        self._next = 0

    def run(self) -> None:
        """One question after another."""
        others = {"n": self._begin, "o": self._ask_options}
        if self._several.questions:
            others |= {"h": self._held_out, "e": self._ask_several}
        self._out.say(self._how())
        while True:
            held_out = "h asks a held-out one, e eight of them, " if "h" in others else ""
            self._out.hint(
                f"Type a question. Enter goes on to Export, {held_out}n begins a new conversation, "
                "o says how to ask."
            )
            typed = self._out.ask("Question", "go on", TOPIC)
            if not typed:
                return
            other = others.get(typed.lower())
            if other is not None:
                other()
            else:
                self._go_on(typed)

    def close(self) -> None:
        """The process does not outlive this step."""
        if self._chat is not None:
            self._chat.close()

    def _how(self) -> str:
        """How the next question is asked."""
        system = self._asking.system if self._asking.system is not None else self._system
        prompt = f"System prompt: {one_line(system, 200)}" if system else "No system prompt"
        return f"Both models are asked the same. {prompt}. Words: {self._asking.sampling.words()}."

    # What can be typed

    def _begin(self) -> None:
        self._talk = Conversation()
        self._out.say("A new conversation: the models know nothing of what was said.")

    def _go_on(self, question: str) -> None:
        """A question of one's own goes on with the conversation."""
        self._talk.ask(question)
        first = len(self._talk.turns) == 1
        system = self._system if self._asking.system is None and first else self._asking.system
        self._talk.opening = with_system(self._talk.opening, system)
        self._answer()

    def _held_out(self) -> None:
        """A held-out question begins a conversation of its own."""
        questions = self._several.questions
        question = questions[self._next % len(questions)]
        self._next += 1
        self._talk = Conversation.of(question)
        self._talk.opening = with_system(self._talk.opening, self._asking.system)
        for message in self._talk.opening:
            self._out.say(f"Before it, {message['role']}: {one_line(str(message['content']), LONGEST)}")
        self._out.say(f"Question: {one_line(question.shown, LONGEST)}")
        self._answer()

    def _ask_options(self) -> None:
        """System prompt and the choice of words; kept with the run. `b` leaves them as they were."""
        asking = self._asking
        try:
            now = asking.system if asking.system is not None else self._system
            typed = self._out.ask("System prompt; - for none", one_line(now, 200) or "none", TOPIC)
            if typed:
                asking = asking.with_value("system", "" if typed == "-" else typed)
            for name, limits in LIMITS.items():
                asking = asking.with_value(name, self._ask_figure(name, limits, asking.get(name)))
        except Back:
            return
        self._asking = asking
        self._several.clear()
        try:
            save_asking(self._folder, asking)
        except OSError as error:
            self._out.say(f"! It could not be kept for later: {error.strerror}.")
        self._out.say(self._how())

    def _ask_figure(self, name: str, limits: Any, now: Any) -> Any:
        while True:
            typed = self._out.ask(WORDS[name], f"{now:g}", TOPIC)
            try:
                return limits.read(typed) if typed else now
            except UsageError as error:
                self._out.say(f"✗ {error.what}")

    # Answers

    def _opened(self) -> ChatProcess | None:
        """The process that answers, its models loaded; None where that failed, after saying why."""
        from ollama_tune.core.evaluate.client import ChatProcess

        if self._chat is not None and self._chat.alive:
            return self._chat
        self._out.say("Loading the base model and the tuned model ...")
        self._chat = ChatProcess(self._folder)
        for message in self._messages(self._chat):
            if message.get("ready"):
                return self._chat
            if "error" in message:
                self._tell_error(message)
                break
        return None

    @staticmethod
    def _messages(chat: ChatProcess) -> Iterator[dict[str, Any]]:
        """Everything that the process tells, as it comes; ends with the process."""
        while True:
            alive, messages = chat.alive, chat.poll()
            yield from messages
            if not alive and not messages:
                return
            time.sleep(LISTEN)

    def _answer(self) -> None:
        """Ask both, and say each answer when it is whole; Ctrl+C ends the answers."""
        chat, turn = self._opened(), self._talk.turns[-1]
        if chat is None:
            self._talk.turns.pop()
            return
        asked = {model: self._talk.messages(model) for model in MODELS}
        number = chat.ask(asked, self._asking, tools=self._talk.tools)
        self._out.say("Both models answer ... Ctrl+C ends that.")
        try:
            for message in self._messages(chat):
                if message.get("id") == number and self._took(turn, message):
                    return
        except KeyboardInterrupt:
            chat.cancel()
            self._out.say("", "Stopped.")

    def _took(self, turn: Turn, message: Mapping[str, Any]) -> bool:
        """Take in a message; True after the last."""
        if "error" in message:
            self._tell_error(message)
            self._talk.turns.pop()
            return True
        model = str(message["model"])
        turn.answers[model].take(message)
        if "end" not in message:
            return False
        self._tell_answer(turn, model)
        return model == MODELS[-1]

    def _tell_answer(self, turn: Turn, model: str) -> None:
        answer, judged = turn.answers[model], turn.judged(model)
        text = visible(answer.text[:LONGEST], keep_newlines=True).strip() or "(nothing)"
        verdict = ""
        if judged is not None:
            alike = f"not as wanted, similarity {judged.similarity:.2f}"
            verdict = f"{'exactly as wanted' if judged.exact else alike}; "
        self._out.say(f"{NAMES[model]}: {text}", f"  {verdict}{answer.words()}.")
        if model == MODELS[-1] and turn.reference:
            self._out.say(f"Wanted: {one_line(turn.reference, LONGEST)}")
        if answer.dropped:
            self._out.say("! The conversation is longer than the model reads: its oldest part is left out.")

    def _tell_error(self, message: Mapping[str, Any]) -> None:
        error = message["error"]
        self._out.error(TuneError(visible(str(error["what"])), visible(str(error["fix"]))))

    # Several held-out questions

    def _ask_several(self) -> None:
        """The next eight: each with both answers, then the totals of all so far."""
        several, chat = self._several, self._opened()
        if chat is None:
            return
        if not several.left:
            several.clear()
        first = len(several.results)
        several.ask(chat, self._asking)
        self._out.say(f"Asking {len(several.results) - first} questions ... Ctrl+C ends that.")
        try:
            for message in self._messages(chat):
                several.take(message)
                if not several.busy:
                    break
        except KeyboardInterrupt:
            chat.cancel()
            several.end()
        self._tell_several(several.results[first:])

    def _tell_several(self, results: Sequence[Result]) -> None:
        several = self._several
        if several.problem:
            self._out.say(f"✗ {visible(several.problem)}")
        for result in results:
            self._out.say(f"Question: {one_line(result.question.shown, LONGEST)}")
            self._out.say(f"  Wanted: {one_line(result.question.reference, LONGEST)}")
            for model, answer in result.answers.items():
                judged = result.judged(model)
                verdict = ", right" if judged is not None and judged.exact else ", not right"
                self._out.say(f"  {NAMES[model]}{verdict}: {one_line(answer.text, LONGEST) or '(nothing)'}")
        for model, total in several.totals().items():
            exact = f"{total.exact:,} of {total.rows:,} exactly right, similarity {total.similarity:.2f}"
            self._out.say(f"{NAMES[model]} so far: {exact}.")
