"""The words of the café: its menu, its guests, and plain words to copy."""

from __future__ import annotations

from dataclasses import dataclass

CAFE = "the Copper Spoon"
HELPER = "Pip"

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()


@dataclass(frozen=True)
class Item:
    """Something on the menu: its name, price in pounds, what may be asked on it, and what it is."""

    name: str
    plural: str
    price: str
    extras: tuple[str, ...]
    about: str
    drink: bool

    @property
    def article(self) -> str:
        """The name with `a` or `an`."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    def counted(self, count: int) -> str:
        """The name as it follows a number."""
        return self.name if count == 1 else self.plural


_TEA = ("milk", "sugar", "honey", "lemon")
_COFFEE = ("milk", "sugar", "oat milk", "soy milk", "cream", "cinnamon", "vanilla")
_COLD = ("ice", "mint", "lemon")
_BREAD = ("butter", "jam", "cheese", "honey")
_SWEET = ("cream", "honey", "chocolate", "nuts")
_LUNCH = ("cheese", "ham", "egg", "onion", "tomato", "pepper", "mayo")

# name, plural, price, extras, description
_DRINKS: list[tuple[str, str, str, tuple[str, ...], str]] = [
    ("tea", "teas", "1.80", _TEA, "a pot of hot black tea"),
    ("green tea", "green teas", "2.00", _TEA, "a light tea that is not bitter"),
    ("coffee", "coffees", "2.20", _COFFEE, "a cup of fresh filter coffee"),
    ("espresso", "espressos", "1.90", _COFFEE, "a small and strong coffee"),
    ("latte", "lattes", "3.10", _COFFEE, "an espresso with a lot of warm milk"),
    ("cappuccino", "cappuccinos", "3.00", _COFFEE, "an espresso with milk and much foam"),
    ("flat white", "flat whites", "3.20", _COFFEE, "a strong coffee with a thin layer of milk"),
    ("mocha", "mochas", "3.40", _COFFEE, "a coffee with chocolate and milk"),
    ("hot chocolate", "hot chocolates", "3.30", _SWEET, "warm milk with dark chocolate"),
    ("iced tea", "iced teas", "2.60", _COLD, "cold tea with a slice of lemon"),
    ("lemonade", "lemonades", "2.40", _COLD, "a cold drink of lemons and sugar"),
    ("orange juice", "orange juices", "2.70", _COLD, "the juice of three fresh oranges"),
    ("smoothie", "smoothies", "3.90", _COLD, "a thick drink of berries and banana"),
    ("milkshake", "milkshakes", "3.80", _SWEET, "a cold drink of milk and ice cream"),
]
_FOOD: list[tuple[str, str, str, tuple[str, ...], str]] = [
    ("bagel", "bagels", "2.50", _BREAD, "a round bread with a hole"),
    ("scone", "scones", "2.10", _BREAD, "a small soft cake from the oven"),
    ("croissant", "croissants", "2.30", _BREAD, "a light roll with many thin layers"),
    ("toast", "toasts", "1.70", _BREAD, "two slices of brown bread"),
    ("muffin", "muffins", "2.20", _SWEET, "a small cake with berries"),
    ("brownie", "brownies", "2.40", _SWEET, "a dark chocolate cake"),
    ("waffle", "waffles", "3.60", _SWEET, "a crisp cake with a pattern"),
    ("pancake", "pancakes", "3.50", _SWEET, "a flat cake from the pan"),
    ("cookie", "cookies", "1.50", _SWEET, "a thin and crisp sweet"),
    ("sandwich", "sandwiches", "4.20", _LUNCH, "two slices of bread with a filling"),
    ("wrap", "wraps", "4.50", _LUNCH, "a thin bread rolled around salad"),
    ("salad", "salads", "4.80", _LUNCH, "green leaves with a light dressing"),
    ("omelette", "omelettes", "5.20", _LUNCH, "three eggs from the pan"),
    ("soup", "soups", "4.00", _LUNCH, "the warm dish of the day"),
]

MENU = tuple(Item(*row, drink=True) for row in _DRINKS) + tuple(Item(*row, drink=False) for row in _FOOD)

EXTRAS = tuple(dict.fromkeys(extra for item in MENU for extra in item.extras))

ABSENT = (
    "pizza beer wine sushi steak pasta rice curry fish chips burgers tacos noodles oysters lobster popcorn "
    "whisky ramen kebabs dumplings"
).split()

NAMES = (
    "Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Kate Leo Maria Nora Oscar Paula Rosa Sam Tara Victor "
    "Wendy Alice Bruno Clara Daniel Eva Frank Gita Henry Ivan Julia Karim Lena Mark Nina Omar Peter Ruth Simon "
    "Tom Uma Vera Will Yara Zoe Amir Bella Chen Dora Elif"
).split()

PLAIN = (
    "apple table window river green stone paper garden small yellow kitchen summer train little bottle music "
    "winter flower bridge happy market silver village pencil orange quiet button morning forest letter gentle "
    "island basket copper street simple animal castle dinner family finger golden harbour jacket kettle ladder "
    "mirror number office pocket rabbit school ticket valley wagon yard zebra cloud dream early fresh giant house "
    "inner jolly kind lemon metal north ocean plate quick round sharp tower under visit water young brave chair "
    "dance eagle field glass heavy ivory judge knife light mouse night olive piano queen radio sugar tiger uncle "
    "voice whale bread candle doctor engine farmer guitar hammer insect jungle king lamp moon nest oven park ring "
    "sand tree umbrella violin wheel box cup day egg fox gate hat ink jar key leaf map net owl pen rope sun top van"
).split()
