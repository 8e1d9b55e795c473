"""Small tasks that need exact work: orders read back, sums, capitals, words to repeat, names of days."""

from __future__ import annotations

import random
from dataclasses import replace

from ollama_tune.assets.build.grammar import Exchange, chosen, joined, say, sentence
from ollama_tune.assets.build.orders import (
    Marks,
    Order,
    draw_line,
    draw_order,
    listed,
    noted,
    place_words,
    read_back,
    spoken,
    spoken_line,
    spoken_list,
)
from ollama_tune.assets.build.words import (
    DAYS,
    EXTRAS,
    FACTS,
    INVENTED,
    MENU,
    MONTHS,
    NAMES,
    NUMBERS,
    OPPOSITES,
    PLAIN,
)

Talk = list[Exchange]

_SEPARATORS = (("semicolons", "; "), ("commas", ", "), ("stars", " * "), ("slashes", " / "), ("dots", ". "))
_SIGNS = list("+-/|*=%&#@()[]<>:;!?_~^$")
_NOTE_SIGNS = list("*=%&#@<>:;!?_~^$")
_CODES = [f"{letter}{number}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for number in range(1, 31)]
_TO_REPEAT: list[list[str]] = [
    PLAIN,
    [*NAMES, *PLAIN],
    [item.name for item in MENU] + list(EXTRAS),
    [str(number) for number in range(100)],
    [*_SIGNS, *_SIGNS, *PLAIN],
    _CODES,
    INVENTED,
]


def order(rng: random.Random) -> Talk:
    """An order, read back; sometimes followed by a question about it or a change."""
    wanted = draw_order(rng)
    reply = "(Of course|Sure|With pleasure)! {order}{place}. (Anything else|Is that all)?"
    talk = [
        (spoken(rng, wanted), say(rng, reply, order=sentence(read_back(wanted)), place=place_words(wanted)))
    ]
    follow = rng.random()
    if follow < 0.2:
        talk.append(_asked_back(rng, wanted))
    elif follow < 0.35:
        talk.append(_added(rng, wanted))
    return talk


def _asked_back(rng: random.Random, wanted: Order) -> Exchange:
    ask = say(
        rng,
        "(what did I order|can you repeat my order|what was my order|could you repeat the order, please)?",
    )
    return ask, f"You ordered {read_back(wanted)}{place_words(wanted)}."


def _added(rng: random.Random, wanted: Order) -> Exchange:
    free = [item for item in MENU if item not in [line.item for line in wanted.lines]]
    line = draw_line(rng, rng.choice(free))
    ask = say(rng, "(and|yes,|also|yes, and|can you add) {line}, please.", line=spoken_line(rng, line))
    whole = replace(wanted, lines=(*wanted.lines, line))
    return ask, f"All right. That makes {read_back(whole)}{place_words(whole)}."


def list_order(rng: random.Random) -> Talk:
    """An order written down as a list, when the guest asks for that."""
    wanted, capitals, letters = draw_order(rng), *_letters(rng)
    name, mark = rng.choice(_SEPARATORS)
    ask = "(write|make|please write|please make) a list{letters} with {name}: {order}"
    return [
        (say(rng, ask, letters=letters, name=name, order=spoken(rng, wanted)), listed(wanted, mark, capitals))
    ]


def note_order(rng: random.Random) -> Talk:
    """An order in short notes, when the guest asks for that; half the time with the guest's own signs."""
    wanted, capitals, letters = draw_order(rng), *_letters(rng)
    own = rng.sample(_NOTE_SIGNS, 5)
    marks, signs = rng.choice(((Marks(), ""), (Marks(*own), f" with {' '.join(own)}")))
    ask = "(write|make|please write|please make) short notes{letters}{signs} of this: {order}"
    text = say(rng, ask, letters=letters, signs=signs, order=spoken(rng, wanted))
    return [(text, noted(wanted, marks, capitals))]


def _letters(rng: random.Random) -> tuple[bool, str]:
    """Whether to write in capitals, and how to ask for it."""
    return rng.choice(((True, " in capitals"), (False, "")))


def count_items(rng: random.Random) -> Talk:
    """How many things an order has in all."""
    wanted = draw_order(rng, most=3)
    total = sum(line.count for line in wanted.lines)
    plain = Order(tuple(replace(line, plus=(), minus="", size="") for line in wanted.lines))
    ask = say(
        rng,
        "(how many things are|how many items are|count the items in) {order}",
        order=spoken_list(rng, plain),
    )
    words = NUMBERS[total] if total <= 20 else str(total)
    return [
        (
            ask + ("." if ask.startswith("Count") else "?"),
            f"That is {words} {'item' if total == 1 else 'items'} in all.",
        )
    ]


def one_count(rng: random.Random) -> Talk:
    """How many of one thing are in an order of several."""
    wanted = draw_order(rng)
    line = rng.choice(wanted.lines)
    ask = say(
        rng,
        "(for us|we take|we would like) {order}. How many {items} is that?",
        order=spoken_list(rng, wanted),
        items=line.item.plural,
    )
    return [(ask, f"That is {line.count} {line.item.counted(line.count)}.")]


def addition(rng: random.Random) -> Talk:
    """A sum or difference of small counts, in words or in figures."""
    first, second = rng.randrange(1, 11), rng.randrange(1, 11)
    minus = rng.random() < 0.4
    if minus and first < second:
        first, second = second, first
    total = first - second if minus else first + second
    if rng.random() < 0.5:
        sum_ = f"{first} {'-' if minus else '+'} {second}"
        return [
            (say(rng, "(what is {sum}?|work out {sum}|calculate {sum}|{sum})", sum=sum_), f"{sum_} = {total}")
        ]
    words = f"{NUMBERS[first]} {'minus' if minus else 'plus'} {NUMBERS[second]}"
    return [
        (
            say(rng, "(what is|how much is|do you know what is) {sum}?", sum=words),
            f"{sentence(words)} is {NUMBERS[total]}.",
        )
    ]


def leftovers(rng: random.Random) -> Talk:
    """A sum told as a small story."""
    item, had = rng.choice(MENU), rng.randrange(2, 11)
    change = rng.randrange(1, had)
    guest = rng.choice(NAMES)
    if rng.random() < 0.5:
        ask = f"{guest} has {NUMBERS[had]} {item.plural} and gives away {NUMBERS[change]}. How many are left?"
        return [(ask, f"{guest} has {NUMBERS[had - change]} {item.counted(had - change)} left.")]
    ask = f"{guest} has {NUMBERS[had]} {item.plural} and buys {NUMBERS[change]} more. How many is that?"
    return [(ask, f"{guest} has {NUMBERS[had + change]} {item.plural}.")]


def capitals(rng: random.Random) -> Talk:
    """Words written in capitals."""
    kind = rng.random()
    item = rng.choice(MENU)
    text = (
        " ".join(rng.sample(PLAIN, rng.randrange(1, 4)))
        if kind < 0.3
        else rng.choice((item.name, item.plural, *item.extras, rng.choice(NAMES)))
    )
    ask = "(write|put|please write) (this |)in (capitals|capital letters|big letters): {text}."
    return [(say(rng, ask, text=text), text.upper())]


def sign(rng: random.Random) -> Talk:
    """What to write on a sign in the shop: several names in capitals, in the order they were said."""
    items = rng.sample(MENU, rng.randrange(1, 4))
    words = [rng.choice((item.name, item.plural)) for item in items]
    ask = say(
        rng, "(make|write|paint) a (sign|board|label) for (the |){words}(, please|).", words=joined(words)
    )
    return [(ask, f"The {ask.split()[2]} says: {', '.join(words).upper()}.")]


def repeat(rng: random.Random) -> Talk:
    """Words, names, figures, signs or codes to be said again exactly."""
    text = " ".join(rng.choices(rng.choice(_TO_REPEAT), k=rng.randrange(1, 9)))
    ask = "(repeat|say|repeat after me|say again|please repeat): {text}"
    return [(say(rng, ask, text=text), text)]


def pick_word(rng: random.Random) -> Talk:
    """The first, last or next word of a list."""
    words = rng.sample(PLAIN, rng.randrange(3, 8))
    where = rng.randrange(len(words) - 1)
    question, answer = rng.choice(
        (
            ("what is the first word", words[0]),
            ("what is the last word", words[-1]),
            (f"which word comes after {words[where]}", words[where + 1]),
        )
    )
    return [(f"{sentence(question)}: {', '.join(words)}?", sentence(answer) + ".")]


def number_word(rng: random.Random) -> Talk:
    """A number in figures or in words."""
    number = rng.randrange(1, 21)
    if rng.random() < 0.5:
        return [
            (say(rng, "(write|say) {n} (as a word|in words).", n=number), sentence(NUMBERS[number]) + ".")
        ]
    return [(say(rng, "(write|put) {n} (as a number|in figures).", n=NUMBERS[number]), f"{number}.")]


def calendar(rng: random.Random) -> Talk:
    """The day or month before or after another."""
    names, kind = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    at, step = rng.randrange(len(names)), rng.choice((1, -1))
    relation = "after" if step == 1 else "before"
    ask = say(
        rng, "(which|what) {kind} (comes|is) {relation} {name}?", kind=kind, relation=relation, name=names[at]
    )
    return [(ask, f"{names[(at + step) % len(names)]} comes {relation} {names[at]}.")]


def opposite(rng: random.Random) -> Talk:
    """The opposite of a word."""
    word, other = rng.sample(rng.choice(OPPOSITES), 2)
    return [
        (
            say(rng, "(what is the opposite of|give me the opposite of|what is not) {word}?", word=word),
            f"The opposite of {word} is {other}.",
        )
    ]


def fact(rng: random.Random) -> Talk:
    """A plain fact, asked for with its first words or confirmed."""
    text = rng.choice(FACTS)
    if rng.random() < 0.5:
        return [(say(rng, "(is it true that|can you tell me if) {text}?", text=text), f"Yes, {text}.")]
    subject = " ".join(text.split()[:2])
    return [
        (
            chosen(rng, ("(tell me|say|give me) (something|a fact) about {subject}.",), subject=subject),
            sentence(text) + ".",
        )
    ]
