"""The summary of a run as a page, in the order in which a person decides: what, cost, place, and the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ollama_tune.core.text import human_bytes, visible
from ollama_tune.tui import review_words
from ollama_tune.tui.state import Facts
from ollama_tune.tui.widgets.page import BLANK, Line, heading, row, sign

if TYPE_CHECKING:
    from ollama_tune.core.plan.values import Plan


def rows(said: Iterable[review_words.Said]) -> list[Line]:
    """Labels and texts as lines."""
    return [row(label, text) for label, text in said]


def what_lines(plan: Plan, facts: Facts) -> list[Line]:
    """Model, data, training and result in words."""
    return [heading("What"), *rows(review_words.what(plan, facts.spec, facts.lengths))]


def cost_lines(plan: Plan, facts: Facts) -> list[Line]:
    """Ways to make it fit where it does not, time, disk, and what should be known before."""
    doubts = review_words.doubts(plan, facts.logout)
    return [
        *offer_lines(plan),
        *rows(review_words.cost(plan, facts.machine)),
        *(sign("!", words) for words in doubts),
    ]


def offer_lines(plan: Plan) -> list[Line]:
    """The nearest plans that fit, each with its key."""
    if not plan.offers:
        return []
    lines = [row("Would fit", "press its number (f takes the first)")]
    for number, offer in enumerate(plan.offers, 1):
        needed = human_bytes(offer.memory.needed)
        lines.append(sign(str(number), f"{visible(offer.text)} ({needed})", "$text-accent"))
    return [*lines, BLANK]


def place_lines(plan: Plan, facts: Facts) -> list[Line]:
    """Where the run, its file and the model go."""
    return [heading("Place"), *rows(review_words.place(plan, facts.machine))]


def more_lines(plan: Plan) -> list[Line]:
    """What only experts ask."""
    lines = rows(review_words.more(plan))
    return [heading("More"), *(Line(line.content.stylize("dim"), line.indent) for line in lines)]
