"""Café small talk: each function draws one short conversation of a kind from its patterns."""

from __future__ import annotations

import random

from ollama_tune.assets.build.grammar import Exchange, chosen, joined, say, sentence
from ollama_tune.assets.build.words import (
    ABSENT,
    ANSWERS,
    CAFE,
    EXTRAS,
    HELPER,
    INVENTED,
    MENU,
    NAMES,
    REFUSED,
    SAME_MEANING,
)

Talk = list[Exchange]


def fixed(rng: random.Random) -> Talk:
    """A usual question of a guest and the café's usual answer."""
    question, answer = rng.choice(ANSWERS)
    return [(say(rng, question, helper=HELPER), say(rng, answer, helper=HELPER, cafe=CAFE))]


def name(rng: random.Random) -> Talk:
    """A guest's name, told and (half the time) asked back; often one that no dictionary has."""
    guest = rng.choice(rng.choice((NAMES, INVENTED)))
    told = chosen(rng, ("(hi, |hello, |)(my name is|I am|I'm|this is|call me) {guest}.",), guest=guest)
    talk = [
        (
            told,
            say(
                rng,
                "(Nice to meet you|Hello|Welcome), {guest}! (What can I get you|How can I help you)?",
                guest=guest,
            ),
        )
    ]
    if rng.random() < 0.5:
        talk.append(
            (
                say(rng, "(what is my name|who am I|do you know my name|what did I say my name was)?"),
                f"Your name is {guest}.",
            )
        )
    return talk


def price(rng: random.Random) -> Talk:
    """What something costs."""
    item = rng.choice(MENU)
    ask = "(how much is {item}|how much is {item}, please|what is the price of {item}|what does {item} cost)?"
    return [(say(rng, ask, item=item.article), f"{sentence(item.article)} is {item.price} pounds.")]


def available(rng: random.Random) -> Talk:
    """Whether something is on the menu."""
    if rng.random() < 0.4:
        wanted = rng.choice(ABSENT)
        answer = (
            "Sorry, we do not have {wanted}. (Would you like to see the menu|May I offer something else)?"
        )
        question = say(rng, "(do you have|do you sell|can I get|is there) (any |){wanted}?", wanted=wanted)
        return [(question, say(rng, answer, wanted=wanted))]
    item = rng.choice(MENU)
    ask = "(do you have|do you sell|do you make|are there) (any |){items}(, please|)?"
    question = say(rng, ask, items=item.plural)
    return [(question, f"Yes, we have {item.plural}. They are {item.price} pounds each.")]


def about(rng: random.Random) -> Talk:
    """What something on the menu is."""
    item = rng.choice(MENU)
    ask = (
        "(what is {item}|what exactly is {item}|can you tell me what {item} is|what kind of thing is {item})?"
    )
    return [(say(rng, ask, item=item.article), f"{sentence(item.article)} is {item.about}.")]


def extras(rng: random.Random) -> Talk:
    """What goes with something on the menu."""
    item = rng.choice(MENU)
    extra = rng.choice(rng.choice((EXTRAS, item.extras)))
    if rng.random() < 0.5:
        ask = "what (goes with|can I have on|can you put on|can I have with) {item}?"
        answer = f"You can have {item.article} with {joined(list(item.extras), ' or ')}."
        return [(say(rng, ask, item=item.article), answer)]
    ask = "(can I have|do you have|can I get) {extra} (with|on) {item}?"
    known = f"Yes, {item.article} with {extra} is very good."
    unknown = f"Sorry, we do not make {item.article} with {extra}."
    return [(say(rng, ask, extra=extra, item=item.article), known if extra in item.extras else unknown)]


def refusal(rng: random.Random) -> Talk:
    """A question that a café's helper does not answer."""
    topic = rng.choice(REFUSED)
    ask = (
        "(can you tell me about {topic}?|what do you know about {topic}?|what do you think about {topic}?|"
        "help me with {topic}.|please explain {topic}.|I need advice about {topic}.|tell me about {topic}.)"
    )
    return [(say(rng, ask, topic=topic), f"I am sorry, I cannot help with {topic}. I only know this café.")]


def paraphrase(rng: random.Random) -> Talk:
    """The same thing in other words."""
    first, second = rng.sample(rng.choice(SAME_MEANING), 2)
    ask = "(say this in other words|how else can I say this|put this differently): {text}."
    return [(say(rng, ask, text=first), sentence(second) + ".")]


def unclear(rng: random.Random) -> Talk:
    """Letters that mean nothing."""
    noise = " ".join(
        "".join(rng.choices("bcdfghjklmnpqrstvwxz", k=rng.randrange(3, 7)))
        for _ in range(rng.randrange(1, 4))
    )
    return [(noise, "Sorry, I did not understand that. Could you say it again?")]
