"""Three learning rates tried on short runs, in plain lines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.runs.rates import RATE, Outcome, RateSearch, Tried, begin, look, outcome
from ollama_tune.tui.plain.talk import Back
from ollama_tune.tui.rates import ABOUT, cost_line, outcome_line, search_of, seconds_of, waiting_line

if TYPE_CHECKING:
    from ollama_tune.tui.plain.talk import Talk
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "learning rates")
POLL = 0.5


def try_rates(wizard: Wizard) -> None:
    """Say what they cost, start them once that is agreed to, follow them, and offer the best."""
    talk, rooms = wizard.talk, wizard.rooms
    try:
        search = search_of(rooms.plan(), rooms.recommended())
        if not _agreed(wizard, search):
            return
        found = _followed(talk, search)
    except TuneError as error:
        talk.error(error)
        return
    except Back:
        return
    if found is not None:
        _offer(wizard, search, found)


def _agreed(wizard: Wizard, search: RateSearch) -> bool:
    """Whether they are to be tried; nothing is asked where they are going or over."""
    talk, rooms = wizard.talk, wizard.rooms
    if search.going or outcome(search, look(search)) is not None:
        return True
    cost = seconds_of(search, rooms.spec(), rooms.counted().lengths, rooms.machine())
    talk.say(ABOUT, cost_line(search, *cost))
    return talk.agrees("Try them", True, TOPIC)


def _followed(talk: Talk, search: RateSearch) -> Outcome | None:
    """Follow them to their end; after Ctrl+C they go on by themselves."""
    told, waited = 0, ""
    try:
        if outcome(search, look(search)) is None:
            begin(search)
            talk.say("They are tried in the background. Ctrl+C goes back to the settings, and they go on.")
        while True:
            going, tried, waits_for = search.going, look(search), search.waits_for
            if waits_for and waits_for != waited:
                talk.say(waiting_line(waits_for))
            waited = waits_for
            for number, point in enumerate(tried[told:], told + 1):
                if not point.over:
                    break
                talk.say(f"{number} of {search.points}: {_words(search, point)}")
                told = number
            if not going:
                break
            time.sleep(POLL)
    except KeyboardInterrupt:
        talk.say("", "They go on in the background; rates shows them again.")
        return None
    found = outcome(search, tried)
    talk.say(outcome_line(found) if found is not None else "✗ None of them came to its end.")
    return found


def _words(search: RateSearch, point: Tried) -> str:
    mark = ", the recommended one" if point.rate == search.middle else ""
    loss = "failed" if point.loss is None else f"held-out loss {point.loss:.4f} after {point.step} steps"
    return f"learning rate {point.rate:g}{mark}: {loss}."


def _offer(wizard: Wizard, search: RateSearch, found: Outcome) -> None:
    """Set the best rate as if it were typed, where that is agreed to."""
    talk, rooms = wizard.talk, wizard.rooms
    if rooms.plan().settings.training.learning_rate == found.rate:
        talk.say("The learning rate is that already.")
        return
    try:
        if not talk.agrees(f"Take {found.rate:g}", True, TOPIC):
            return
    except Back:
        return
    if found.rate == search.middle:
        rooms.restore(RATE)
    else:
        rooms.change(RATE, found.rate)
    wizard.keep()
    talk.say(f"The learning rate is {found.rate:g} now.")
