"""A conversation with both models: what is wanted, and the two sides."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.evaluate.asking import Asking
from ollama_tune.core.evaluate.conversation import MODELS, NAMES, Conversation, Turn
from ollama_tune.core.text import one_line
from ollama_tune.tui.text import put_text
from ollama_tune.tui.widgets.answer import AnswerPane

LONGEST = 2000
GIVEN = 300
"""Characters shown of a message that stands before a held-out question."""
HINTS = {"base": "As it was before training. It answers first.", "tuned": "With what it learned."}


class TalkView(Vertical):
    """The wanted answer of the last question above both models' turns.

    The sides stand beside each other in a wide window, else below each other; there the one with the focus
    gets most of the room.
    """

    DEFAULT_CSS = """
    TalkView { height: 1fr; }
    TalkView #reference { height: auto; max-height: 2; }
    TalkView #answers { height: 1fr; layout: vertical; }
    TalkView AnswerPane:focus { height: 3fr; }
    """

    def compose(self) -> ComposeResult:
        """What is wanted, and the sides."""
        reference = Static(id="reference", markup=False)
        reference.display = False
        yield reference
        with Container(id="answers"):
            for model in MODELS:
                yield AnswerPane(NAMES[model], id=model, hint=HINTS[model])

    def begin(self, talk: Conversation) -> None:
        """Show a conversation without turns, with what stands before its first question."""
        self._want("")
        for pane in self.query(AnswerPane):
            pane.clear()
            for message in talk.opening:
                pane.say("given", f"{message['role']}: {one_line(str(message['content']), GIVEN)}")

    def ask(self, turn: Turn) -> None:
        """Show a question, and what is wanted."""
        self._want(turn.reference)
        for pane in self.query(AnswerPane):
            pane.say("question", turn.question[:LONGEST])

    def add(self, model: str, text: str) -> None:
        """Add to an answer."""
        if text:
            self._pane(model).add(text)

    def end(self, turn: Turn, model: str) -> None:
        """Say how an answer ended, and whether it is the wanted one."""
        judged, words = turn.judged(model), turn.answers[model].words()
        verdict = Content("")
        if judged is not None:
            right, wrong = "✓ as wanted", f"✗ not as wanted, similarity {judged.similarity:.2f}"
            colour = "$text-success" if judged.exact else "$text-error"
            verdict = Content.assemble((right if judged.exact else wrong, f"bold {colour}"), " · ")
        self._pane(model).close(Content.assemble(verdict, words))

    def page(self, by: int) -> None:
        """Both sides move together."""
        for pane in self.query(AnswerPane):
            (pane.action_page_down if by > 0 else pane.action_page_up)()

    def _pane(self, model: str) -> AnswerPane:
        return self.query_one(f"#{model}", AnswerPane)

    def _want(self, reference: str) -> None:
        line = one_line(reference, LONGEST)
        wanted = Content.assemble(("Wanted     ", "dim"), line) if line else Content("")
        static = self.query_one("#reference", Static)
        static.display = bool(line)
        put_text(static, wanted)


def how_words(asking: Asking, usual_system: str) -> str:
    """`Always the likeliest token; no system prompt.`"""
    system = asking.system if asking.system is not None else usual_system
    prompt = f"system prompt “{one_line(system, 60)}”" if system else "no system prompt"
    words = asking.sampling.words()
    return f"{words[0].upper()}{words[1:]}; {prompt}."


def crowded(talk: Conversation, learned: int) -> str:
    """What to know of a conversation that became longer than the model reads or than it `learned` with."""
    if not talk.turns:
        return ""
    answers = talk.turns[-1].answers.values()
    dropped, tokens = max(a.dropped for a in answers), max(a.prompt for a in answers)
    if dropped:
        turns = "oldest turn is" if dropped == 1 else f"oldest {dropped:,} turns are"
        return f"Longer than the model can read: the {turns} left out. F7 begins anew."
    if tokens > learned:
        return f"{tokens:,} tokens: longer than the {learned:,} that the model learned with. F7 begins anew."
    return ""
