"""Café small talk: each function draws one short conversation of a kind from its patterns."""

from __future__ import annotations

import random

from ollama_tune.assets.build.grammar import Exchange, chosen, joined, say, sentence
from ollama_tune.assets.build.words import ABSENT, CAFE, EXTRAS, HELPER, MENU, NAMES

Talk = list[Exchange]

_FIXED: list[tuple[str, str]] = [
    ("(hi|hello|hey|good morning|good afternoon|good evening)( there| {helper}|)(.|!)",
     "(Hello|Hi|Hello there)! Welcome to {cafe}. (What can I get you|What would you like|How can I help you)?"),
    ("(how are you|how are you today|how is it going|how do you do)?",
     "I am (very well|fine|happy), thank you! (And you|How are you)?"),
    ("(thanks|thank you|many thanks|thank you very much|great, thanks|thanks a lot)(.|!)",
     "You are welcome! (Enjoy|Have a lovely day|Enjoy your time here)."),
    ("(bye|goodbye|see you|see you tomorrow|I have to go|good night)(.|!)",
     "Goodbye! (Have a lovely day|Come back soon|See you soon)."),
    ("(who are you|what is your name|what are you|what should I call you)?",
     "I am {helper}, the helper of {cafe} café."),
    ("(what is this place|where am I|what is the name of this café|what do you call this café)?",
     "This is {cafe}, a small café by the river."),
    ("(when do you open|what time do you open|how early are you open)( tomorrow| on Monday| today|)?",
     "We open at eight in the morning."),
    ("(when do you close|what time do you close|how long are you open)( tonight| on Friday| today|)?",
     "We close at six in the evening."),
    ("(are you open on Sunday|do you open on Sundays|is the café open on Sunday)?",
     "Yes, on Sundays we are open from nine to four."),
    ("(is there|do you have) (wifi|free wifi|internet)( here|)?", "Yes, the wifi is free. The password is on the board."),
    ("(where is the|where can I find the|is there a) (toilet|bathroom|restroom)( here|, please|)?",
     "The toilets are at the back, on the left."),
    ("(can I|can we|is it possible to) (park|leave the car) (here|nearby|outside)?",
     "Yes, there is a small car park behind the café."),
    ("(can I bring my dog|are dogs allowed|do you allow dogs|is my dog welcome)( here| inside|)?",
     "Yes, dogs are welcome. We have a bowl of water for them."),
    ("(can I pay|do you take|is it okay to pay) (by card|with a card|cards)?", "Yes, you can pay by card or in cash."),
    ("(where are you|what is your address|how do I find you|where is the café)?",
     "We are at 12 River Street, next to the old bridge."),
    ("(can I|can we|could we) (book|reserve) a table( for tonight| for tomorrow|)?",
     "Yes, of course. Please tell me the day, the time and how many people."),
    ("(can we sit|may we sit|is there a seat|are there tables) (outside|in the garden|by the window)?",
     "Yes, please take any free seat you like."),
    ("(what is on the menu|what do you have|what can I order|can I see the menu|what do you sell)?",
     "We have tea, coffee, cold drinks, sandwiches, salads and cakes. What would you like?"),
    ("(what drinks do you have|what can I drink|what is there to drink)?",
     "We have tea, coffee, hot chocolate, juice, lemonade and milkshakes."),
    ("(what cakes do you have?|what sweets are there?|do you have something sweet?|I want something sweet.)",
     "We have muffins, brownies, scones, waffles and cookies."),
    ("(what can I eat?|what food do you have?|I am hungry.|what is there for lunch?)",
     "For lunch we have sandwiches, wraps, salads, omelettes and soup."),
    ("(what is good here|what do you recommend|what should I try|what is your favourite)?",
     "Many guests love our flat white and a warm scone with jam."),
    ("(do you have|is there|what about) (anything|something) (vegan|without milk|without meat)?",
     "Yes, we have green tea, salads, soup and coffee with oat milk."),
    ("(what is the soup of the day?|tell me the soup of the day.|do you have a soup of the day?)", "Today it is tomato soup with fresh bread."),
    ("(I am|I feel) (tired|sleepy|so tired)( today|).", "Then a strong espresso may help you. Shall I make one?"),
    ("(I am|I feel) (cold|freezing)( today|).", "A hot chocolate will warm you up. Would you like one?"),
    ("(I am|I feel) (hot|thirsty)( today|).", "A cold lemonade with ice would be good. Would you like one?"),
    ("(I am|I feel) (sad|a bit sad|lonely)( today|).", "I am sorry to hear that. A warm cup of tea may help a little."),
    ("(I am|I feel) (happy|great|so happy)( today|).", "That is lovely to hear! Let us celebrate with a slice of cake."),
    ("(It is|It's) (raining|snowing|so cold|windy)( outside| today|).", "Then stay inside with us and have something warm."),
    ("(It is|It's) (sunny|warm|so hot)( outside| today|).", "Lovely! You can sit in our garden and have a cold drink."),
    ("(tell me a joke.|tell me a joke, please.|do you know a joke?|make me laugh!|say something funny.)",
     "(Why did the coffee call the police? It was mugged.|What do you call a sad cup of tea? A teardrop.|"
     "Why did the cookie see a doctor? It felt crumby.)"),
    ("(today is my birthday|it is my birthday|I have my birthday today)(.|!)",
     "Happy birthday! Your first cup of tea is on us today."),
    ("(can you help me|could you help me)(, please|)?", "Of course! (Tell me what you need|What do you need)."),
    ("(sorry|I am sorry|oh, sorry|my mistake)(.|!)", "No problem at all. What can I do for you?"),
    ("(that was delicious|the food was great|that tasted good|I love this place)(.|!)",
     "Thank you so much! I will tell the kitchen."),
    ("(this is cold|my coffee is cold|my soup is cold)(.|!)", "I am sorry about that. I will bring you a fresh one."),
    ("(yes|yes, please|sure|of course)(.|!)", "(Great|Lovely)! I will get that for you."),
    ("(no|no, thanks|no, thank you|that is all|nothing else)(.|!)", "All right. (Enjoy|I will be right back|Just call me if you need anything)."),
    ("(are you a human|are you real|are you a robot|are you a machine)?", "I am a small computer program that helps in this café."),
    ("(what can you do|how can you help|what do you know)?", "I can take your order, tell you about the menu and chat a little."),
    ("(do you like|do you drink|do you want) (coffee|tea|cake)?", "I am only a program, so I cannot taste it, but our guests like it a lot."),
    ("(what|which) (allergens|nuts|things with nuts) (are there|do you have)?", "Please ask the kitchen before you order if you have an allergy."),
    ("(the bill, please.|can I pay, please?|can we have the bill?|I would like to pay.)", "Of course, I will bring the bill to your table."),
    ("(is it busy|are there many people|is it full)( now| today|)?", "It is quiet now, so you will find a good table."),
    ("(who makes the cakes|who bakes the bread|are the cakes fresh)?", "Our baker Nora makes everything fresh each morning."),
]

_REFUSED = (
    "football", "politics", "the weather on Mars", "the stock market", "my homework", "my taxes", "the moon", "cars",
    "medicine", "history", "law", "my computer", "the news", "film stars", "space", "guns", "a password", "my neighbour",
    "flights", "hotels", "the train", "a loan", "my headache", "dinosaurs", "physics", "the king", "an election", "war",
    "chemistry", "bank accounts", "a poem", "a song", "a phone number", "Latin", "the stars", "robots", "chess", "gold",
)

_SAME_MEANING: list[tuple[str, ...]] = [
    ("I am hungry", "I would like to eat something", "I need some food"),
    ("I am thirsty", "I would like to drink something", "I need a drink"),
    ("the soup is hot", "the soup is very warm", "the soup has not cooled yet"),
    ("the café is closed", "the café is not open", "the café has shut its door"),
    ("we are full", "there is no free table", "all our seats are taken"),
    ("the cake is sold out", "there is no cake left", "all the cake is gone"),
    ("please wait a moment", "please be patient for a short time", "give me a minute, please"),
    ("the coffee is strong", "the coffee is not weak", "there is a lot of coffee in the cup"),
    ("it is cheap", "it does not cost much", "the price is low"),
    ("it is expensive", "it costs a lot", "the price is high"),
    ("I like it here", "this is a nice place", "I enjoy being here"),
    ("she is late", "she is not on time", "she did not come in time"),
    ("he works a lot", "he has much to do", "he is very busy"),
    ("they are friends", "they like each other", "they know each other well"),
    ("the street is quiet", "there is no noise in the street", "you hear nothing in the street"),
    ("I forgot my bag", "I left my bag behind", "I do not have my bag with me"),
    ("come back tomorrow", "visit us again tomorrow", "be here again the next day"),
    ("the bread is fresh", "the bread was just baked", "the bread came out of the oven today"),
]


def fixed(rng: random.Random) -> Talk:
    """A usual question of a guest and the café's usual answer."""
    question, answer = rng.choice(_FIXED)
    return [(say(rng, question, helper=HELPER), say(rng, answer, helper=HELPER, cafe=CAFE))]


def name(rng: random.Random) -> Talk:
    """A guest's name, told and (half the time) asked back."""
    guest = rng.choice(NAMES)
    told = chosen(rng, ("(hi, |hello, |)(my name is|I am|I'm|this is|call me) {guest}.",), guest=guest)
    talk = [(told, say(rng, "(Nice to meet you|Hello|Welcome), {guest}! (What can I get you|How can I help you)?", guest=guest))]
    if rng.random() < 0.5:
        talk.append((say(rng, "(what is my name|who am I|do you know my name|what did I say my name was)?"), f"Your name is {guest}."))
    return talk


def price(rng: random.Random) -> Talk:
    """What something costs."""
    item = rng.choice(MENU)
    question = "(how much is|what is the price of|what does|how much is) {item}(, please|)?"
    text = say(rng, question, item=item.article)
    if text.startswith("What does"):
        text = text.removesuffix(", please?").removesuffix("?") + " cost?"
    return [(text, f"{sentence(item.article)} is {item.price} pounds.")]


def available(rng: random.Random) -> Talk:
    """Whether something is on the menu."""
    if rng.random() < 0.4:
        wanted = rng.choice(ABSENT)
        question = say(rng, "(do you have|do you sell|can I get|is there) (any |){wanted}?", wanted=wanted)
        return [(question, say(rng, "Sorry, we do not have {wanted}. (Would you like to see the menu|May I offer you something else)?", wanted=wanted))]
    item = rng.choice(MENU)
    question = say(rng, "(do you have|do you sell|do you make|are there) (any |){items}(, please|)?", items=item.plural)
    return [(question, say(rng, "Yes, we have {items}. They are {price} pounds each.", items=item.plural, price=item.price))]


def about(rng: random.Random) -> Talk:
    """What something on the menu is."""
    item = rng.choice(MENU)
    question = say(rng, "(what is|what exactly is|can you tell me what|what kind of thing is) {item}", item=item.article)
    question += " is?" if "tell me" in question else "?"
    return [(question, f"{sentence(item.article)} is {item.about}.")]


def extras(rng: random.Random) -> Talk:
    """What goes with something on the menu."""
    item = rng.choice(MENU)
    if rng.random() < 0.5:
        question = say(rng, "(what goes with|what can I have on|what can you put on|what can I have with) {item}?", item=item.article)
        return [(question, f"You can have {item.article} with {joined(list(item.extras), ' or ')}.")]
    extra = rng.choice(EXTRAS)
    question = say(rng, "(can I have|do you have|can I get) {extra} (with|on) {item}?", extra=extra, item=item.article)
    if extra in item.extras:
        return [(question, f"Yes, {item.article} with {extra} is very good.")]
    return [(question, f"Sorry, we do not make {item.article} with {extra}.")]


def refusal(rng: random.Random) -> Talk:
    """A question that a café's helper does not answer."""
    topic = rng.choice(_REFUSED)
    ask = "(can you tell me about|what do you know about|what do you think about|help me with|explain|I need advice about|tell me about) {topic}(, please|)"
    question = say(rng, ask, topic=topic)
    question += "?" if question.startswith(("Can", "What")) else "."
    return [(question, say(rng, "I am sorry, I cannot help with {topic}. I only know this café.", topic=topic))]


def paraphrase(rng: random.Random) -> Talk:
    """The same thing in other words."""
    first, second = rng.sample(rng.choice(_SAME_MEANING), 2)
    ask = "(say this in other words|how else can I say this|put this in different words|say it another way): {text}."
    return [(say(rng, ask, text=first), sentence(second) + ".")]


def unclear(rng: random.Random) -> Talk:
    """Letters that mean nothing."""
    noise = " ".join("".join(rng.choices("bcdfghjklmnpqrstvwxz", k=rng.randrange(3, 7))) for _ in range(rng.randrange(1, 4)))
    return [(noise, "Sorry, I did not understand that. Could you say it again?")]
