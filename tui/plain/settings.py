"""Step 4 in plain lines: recommended values, each with its reason, all of them to be changed by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import UsageError
from ollama_tune.core.text import human_bytes, one_line, visible
from ollama_tune.tui.fields import FIRST, MORE, YES_NO, FormField, allowed, check, text_of, value_of
from ollama_tune.tui.plain.rates import try_rates
from ollama_tune.tui.plain.talk import Back
from ollama_tune.tui.review_words import time_parts

if TYPE_CHECKING:
    from ollama_tune.core.plan.values import MemoryEstimate, Plan
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "settings")
DEVICES = {"cuda": "GPU memory", "cpu": "memory"}


def ask_settings(wizard: Wizard) -> None:
    """Read the values out; a number changes one, `r` and a number takes the recommended one again."""
    talk, rooms = wizard.talk, wizard.rooms
    fields: tuple[FormField, ...] = FIRST
    if any(field.path in rooms.answers.changed for field in MORE):
        fields = FIRST + MORE
    talk.say(*_lines(wizard, fields), *estimate_lines(rooms.plan()))
    while True:
        wizard.foresee()
        more = "" if len(fields) > len(FIRST) else ", more reads out the fields that few need"
        talk.hint(
            f"Enter goes on, a number changes that field, r and a number restores what is recommended{more}; "
            "rates tries three learning rates on short runs."
        )
        answer = talk.ask("Settings", "go on", TOPIC)
        if not answer:
            return
        if answer.lower() in ("more", "m"):
            talk.say(*_lines(wizard, MORE, len(FIRST)))
            fields = FIRST + MORE
        elif answer.lower() in ("rates", "l"):
            try_rates(wizard)
        elif not _change(wizard, answer):
            talk.say(f"✗ Press Enter, or type a number from 1 to {len(fields)}, such as 1, or r 1.")


def _change(wizard: Wizard, answer: str) -> bool:
    """Change or restore a field: `3`, `3 0.0005`, `r 3`; False where that is none of these."""
    restore = answer[:1].lower() == "r"
    number, _, rest = (answer[1:] if restore else answer).strip().partition(" ")
    every = FIRST + MORE
    if not number.isdecimal() or not 1 <= int(number) <= len(every):
        return False
    field = every[int(number) - 1]
    if restore:
        wizard.rooms.restore(field.path)
    elif not _ask_value(wizard, field, rest.strip(" =")):
        return True
    wizard.keep()
    wizard.talk.say(_line(wizard, int(number), field), *estimate_lines(wizard.rooms.plan()))
    return True


def _ask_value(wizard: Wizard, field: FormField, typed: str) -> bool:
    """Take another value; what is wrong with one is said and asked again. False where nothing changed."""
    plan, topic = wizard.rooms.plan(), _topic(field)
    now = plan.settings.get(field.path)
    while True:
        try:
            typed = typed or _typed(wizard, field, now, topic)
            if not typed:
                return False
            wizard.rooms.change(field.path, check(plan, field, _value(field, typed)))
        except UsageError as error:
            wizard.talk.say(f"✗ {visible(error.what)}")
            typed = ""
        except Back:
            return False
        else:
            return True


def _typed(wizard: Wizard, field: FormField, now: Any, topic: tuple[str, str]) -> str:
    if field.words and field.words != YES_NO:
        wizard.talk.offer("\n".join(f"{number}. {words}" for number, (_, words) in enumerate(field.words, 1)))
    elif not field.wordy and not field.words:
        wizard.talk.offer(allowed(field, now))
    return wizard.talk.ask(f"New value of {field.label}", text_of(field, now) or "none", topic)


def _value(field: FormField, typed: str) -> Any:
    """What was typed: the number of a word, the word itself, or a value as it stands in a run.yaml."""
    words = dict(enumerate((value for value, _ in field.words), 1))
    if field.words == YES_NO:
        return {"y": True, "yes": True, "n": False, "no": False}.get(typed.lower(), typed)
    if typed.isdecimal() and int(typed) in words:
        return words[int(typed)]
    spelled = {text.lower(): value for value, text in field.words}
    return spelled.get(typed.lower(), value_of(field, "" if typed == "none" else typed))


def _topic(field: FormField) -> tuple[str, str]:
    section, _, name = field.path.partition(".")
    return section, name


def _lines(wizard: Wizard, fields: Sequence[FormField], after: int = 0) -> list[str]:
    return [_line(wizard, number, field) for number, field in enumerate(fields, after + 1)]


def _line(wizard: Wizard, number: int, field: FormField) -> str:
    """A field with its value and why, or what would be recommended in place of the person's value."""
    plan = wizard.rooms.plan()
    value, choice = plan.settings.get(field.path), plan.choices.get(field.path)
    unit = f", {field.unit}" if field.unit else ""
    head = f"{number}. {field.label}{unit}: {one_line(text_of(field, value), 80) or 'none'}"
    if choice is not None:
        return f"{head}. Why: {_sentence(choice.reason)}"
    other = wizard.rooms.recommended().get(field.path)
    if other is None or other.value == value:
        return f"{head}. Your choice{', as recommended' if other else ''}."
    words = one_line(text_of(field, other.value), 80) or "none"
    return f"{head}. Changed. Recommended: {words}. Why: {_sentence(other.reason)}"


def _sentence(text: str) -> str:
    return f"{visible(text).rstrip('.')}."


def estimate_lines(plan: Plan) -> list[str]:
    """Memory and time of the plan."""
    return [memory_line(plan.memory), f"Time: about {''.join(time_parts(plan.work))}."]


def memory_line(memory: MemoryEstimate) -> str:
    """Whether it fits, and how much of it."""
    kind = DEVICES.get(memory.device, "memory")
    each = f" on each of {memory.processes} GPUs" * (memory.processes > 1 and memory.device == "cuda")
    words = f"about {human_bytes(memory.needed)} of {human_bytes(memory.free)} free {kind}{each}"
    return f"✓ It fits: {words}." if memory.fits else f"! It does not fit: {words}."
