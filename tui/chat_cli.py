"""`ollama-tune ask` and `ollama-tune chat`: the tuned model of a run on the command line."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.shell import INTERRUPTED, Terminated, end_json, on_terminal

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.asking import Asking
    from ollama_tune.core.evaluate.client import ChatProcess
    from ollama_tune.core.evaluate.conversation import Conversation
    from ollama_tune.core.runs.folder import RunFolder

LISTEN = 0.03
COMMANDS = "/new begins a new conversation, /bye or Ctrl+D ends, Ctrl+C stops an answer."
Command = Callable[..., None]

EPILOG = """\b
Examples:
  ollama-tune ask RUN "Two teas and a bun, please."
  cat order.txt | ollama-tune ask RUN - --base --json

\b
With --json one object is printed:
  run, question, system
  answers   for tuned (and base): text, end (stop or length), tokens, seconds,
            prompt (tokens of the question with its system prompt)
An error is {"outcome": "error", "code": ..., "what": ..., "fix": ...}.
"""


def asking_options(command: Command) -> Command:
    """The options that say how a question is asked; the rules are those of the screen."""
    for option in reversed(
        (
            click.option("--base", is_flag=True, help="Ask the base model too, and first."),
            click.option("--system", help="System prompt; '' for none. [default: the one of the training]"),
            click.option("--temperature", help="0 takes the likeliest token always. [default: 0]"),
            click.option("--top-p", help="Draw from the likeliest tokens with this share. [default: 1]"),
            click.option("--top-k", help="Draw from so many of the likeliest tokens. [default: all]"),
            click.option("--seed", help="Where the random numbers begin. [default: 7]"),
            click.option("--max-tokens", "max_new_tokens", help="The longest answer. [default: the run's]"),
        )
    ):
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@click.argument("run")
@click.argument("question")
@asking_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of the text.")
def ask(run: str, question: str, as_json: bool, **options: Any) -> None:
    """Ask the tuned model of a run one question; `-` reads the question from standard input.

    Answers are the likeliest ones, so they are the same every time, unless a temperature is given.
    """
    text = (sys.stdin.read() if question == "-" else question).strip()
    if not text:
        raise UsageError("There is no question.", 'Write it behind the run, as in `ask RUN "Hello?"`.')
    with _opened(run, options) as talk:
        answers = talk.turn(text, None if as_json else _printer(options["base"]))
    stopped = any(answer["end"] == "cancelled" for answer in answers.values())
    status = INTERRUPTED if stopped else 0
    if as_json:
        end_json(status, run=talk.folder.name, question=text, system=talk.system, answers=answers)
    sys.exit(status)


@click.command()
@click.argument("run", required=False, metavar="[RUN]")
@asking_options
@click.option("--json", "as_json", is_flag=True, help="Answer each line of standard input by a line of JSON.")
def chat(run: str | None, as_json: bool, **options: Any) -> None:
    """Talk to the tuned model of a run (the newest when none is named); each model sees its own answers.

    A line that is typed is a question. /new begins a new conversation; /bye or Ctrl+D ends; Ctrl+C stops an
    answer. Without a terminal use `ollama-tune ask`, or --json: every line of standard input is a question
    then, and every line of standard output {"question", "answers"} with the answers of `ask --json`.

    \b
    Examples:
      ollama-tune chat RUN --base --temperature 0.7
      ollama-tune chat RUN --json < questions.txt
    """
    if as_json:
        _chat_lines(run, options)
        return
    if not on_terminal():
        raise UsageError("A chat needs a terminal.", 'Without one use `ollama-tune ask RUN "…"`, or --json.')
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing and history for input()
    with _opened(run, options) as talk:
        click.echo(f"{talk.folder.name}. {COMMANDS}")
        while (line := _typed()) not in (None, "/bye"):
            if line == "/new":
                talk.begin()
                click.echo("A new conversation.")
            elif line:
                _answered(talk, line, options["base"])


def _chat_lines(run: str | None, options: Mapping[str, Any]) -> None:
    """A conversation for programs: a question a line in, its answers a line out, at once."""
    with _opened(run, options) as talk:
        for line in map(str.strip, sys.stdin):
            if line == "/new":
                talk.begin()
            elif line:
                answers = talk.turn(line, None)
                click.echo(json.dumps({"question": line, "answers": answers}, ensure_ascii=False))


def _typed() -> str | None:
    try:
        return input("› ").strip()
    except EOFError:
        click.echo()
        return None
    except Terminated:
        raise
    except KeyboardInterrupt:
        click.echo(f"\n{COMMANDS}")
        return ""


def _answered(talk: Talk, line: str, base: bool) -> None:
    """One turn; an error is told, and the chat goes on while its process lives."""
    try:
        talk.turn(line, _printer(base))
    except TuneError as error:
        click.echo(f"✗ {error}", err=True)
        if not talk.alive:
            sys.exit(error.exit_code)


def _printer(named: bool) -> Callable[[Mapping[str, Any]], None]:
    """Prints pieces of answers as they come; on a terminal with control characters made visible."""
    from ollama_tune.core.evaluate.conversation import ENDS, NAMES
    from ollama_tune.core.text import visible

    shown = sys.stdout.isatty()
    begun: set[str] = set()

    def put(message: Mapping[str, Any]) -> None:
        model = str(message["model"])
        if named and model not in begun:
            begun.add(model)
            click.echo(f"{NAMES[model]}:")
        text = str(message.get("text", ""))
        click.echo(visible(text, keep_newlines=True) if shown else text, nl=False)
        if "end" in message:
            click.echo()
            if message["end"] in ENDS:
                click.echo(f"! The answer was {ENDS[message['end']]}.", err=True)
        if message.get("dropped"):
            click.echo(f"! The oldest turns ({message['dropped']}) are left out: too long.", err=True)

    return put


class Talk:
    """A conversation with the models of a run, one turn after the other."""

    def __init__(self, folder: RunFolder, chat: ChatProcess, asking: Asking, system: str, base: bool) -> None:
        self.folder, self.system = folder, system
        self._chat, self._asking, self._base = chat, asking, base
        self.begin()

    @property
    def alive(self) -> bool:
        """Whether more can be asked."""
        return self._chat.alive

    def begin(self) -> None:
        """A new conversation."""
        from ollama_tune.core.evaluate.conversation import Conversation

        head = ({"role": "system", "content": self.system},) if self.system else ()
        self._talk: Conversation = Conversation(head)

    def turn(self, question: str, put: Callable[[Mapping[str, Any]], None] | None) -> dict[str, Any]:
        """Ask, hand on what comes, and give the whole answers; Ctrl+C ends them early."""
        self._talk.ask(question)
        answers = self._talk.turns[-1].answers
        models = [model for model in answers if self._base or model == "tuned"]
        asked = {model: self._talk.messages(model) for model in models}
        number = self._chat.ask(asked, self._asking)
        try:
            with self._stoppable():
                for message in self._listen(number, models[-1]):
                    answers[message["model"]].take(message)
                    if put is not None:
                        put(message)
        except TuneError:
            self._talk.turns.pop()
            raise
        names = ("text", "end", "tokens", "seconds", "prompt")
        return {model: {name: getattr(answers[model], name) for name in names} for model in models}

    def _listen(self, number: int, last: str) -> Iterator[dict[str, Any]]:
        """Every message of a request, until the last model has ended."""
        while True:
            for message in self._chat.poll():
                if "error" in message:
                    raise TuneError(message["error"]["what"], message["error"]["fix"])
                if message.get("id") == number:
                    yield message
                    if "end" in message and message["model"] == last:
                        return
            time.sleep(LISTEN)

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """The first Ctrl+C ends the answers, another one everything."""
        before = signal.getsignal(signal.SIGINT)

        def stop(*_: object) -> None:
            self._chat.cancel()
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _opened(run: str | None, options: Mapping[str, Any]) -> Iterator[Talk]:
    """The models of a run as long as the block lasts."""
    from ollama_tune.core.evaluate.client import ChatProcess
    from ollama_tune.core.evaluate.held_out import read_held_out, usual_system
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(run)
    settings, system = folder.settings(), options["system"]
    asking = _asking(settings, options)
    process = ChatProcess(folder)
    with contextlib.closing(process):
        if system is None:
            questions = () if settings.export.system else read_held_out(folder)
            system = usual_system(settings, questions)
        yield Talk(folder, process, asking, system, options["base"])


def _asking(settings: Any, options: Mapping[str, Any]) -> Asking:
    """The values that were given, each judged as on the screen."""
    from ollama_tune.core.evaluate.asking import LIMITS, usual_asking

    asking = usual_asking(settings)
    for name, limits in LIMITS.items():
        if options[name] is None:
            continue
        try:
            asking = asking.with_value(name, limits.read(options[name]))
        except UsageError as error:
            flag = "--max-tokens" if name == "max_new_tokens" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: {error.what}", error.fix) from error
    return asking
