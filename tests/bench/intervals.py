"""How often the 95 % intervals of `evaluate` hold the true figure, and how often equal models look different.

    python -m tests.bench.intervals --rounds 2000 --output tests/bench/results/intervals.md

Each population is large, so its figure is known; rows are drawn from it again and again, and the share of
intervals that hold the figure is counted, for the intervals of `evaluate` and for others. Figures of texts
come from made-up sentences by sacrebleu's own counts; its formulas are computed here for many draws at once.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import string
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ollama_tune.core.evaluate.figures import PLAIN, Labels
from ollama_tune.core.evaluate.metrics import wilson_interval
from ollama_tune.core.evaluate.resample import interval, mcnemar, paired

Array = Any
Ends = tuple[float, float]
SIZES = (20, 30, 60, 200)
PEOPLE = 20_000
"""Rows of a population; a few thousand of those with sentences."""
SENTENCES = 4000
DRAWS = 1000
CHANCE = np.random.default_rng(3)
NORMAL = statistics.NormalDist()
SHARE: Ends = (0.0, 1.0)
ABOVE: Ends = (0.0, math.inf)


class Population(NamedTuple):
    """Rows x statistics of one model or of two, the figure of sums of them, and its bounds."""

    tables: tuple[Array, ...]
    value: Callable[[Array], Array]
    bounds: Ends
    shares: bool = False

    def truth(self) -> float:
        """The figure of all rows, or the second model's less the first's."""
        found = [float(self.value(table.sum(0)[None])[0]) for table in self.tables]
        return found[-1] - (found[0] if len(found) == 2 else 0.0)


def bleu(sums: Array) -> Array:
    """sacrebleu's BLEU of draws x statistics, from 0 to 1."""
    said, wanted, right, total = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    smooth = np.cumprod(np.where((right == 0) & (total > 0), 2.0, 1.0), axis=1)
    with np.errstate(all="ignore"):
        precision = np.where(right > 0, right / total, 1 / (smooth * total))
        short = np.where(said < wanted, np.exp(1 - wanted / said), 1.0)
        found = short * np.exp(np.log(precision).mean(1))
    return np.where(np.isfinite(found), found, 0.0)


def chrf(sums: Array) -> Array:
    """sacrebleu's chrF of draws x statistics, from 0 to 1."""
    said, wanted, right = np.moveaxis(sums.reshape(len(sums), 6, 3), 2, 0)
    precision = (right / np.maximum(said, 1)).mean(1)
    recall = (right / np.maximum(wanted, 1)).mean(1)
    return 5 * precision * recall / np.maximum(4 * precision + recall, 1e-16)


def of_rows(values: Array, weights: Array | None = None) -> Array:
    """Rows x statistics of a mean."""
    weights = np.ones(len(values)) if weights is None else weights
    return np.stack([values * weights, weights], 1)


def shares(*chances: float) -> Population:
    """Right or wrong: of one model by its chance, of two by those of (none, second, first, both)."""
    mean = PLAIN["exact_match"].value
    if len(chances) == 1:
        return Population((of_rows(1.0 * (CHANCE.random(PEOPLE) < chances[0])),), mean, SHARE, True)
    kind = CHANCE.choice(4, PEOPLE, p=chances)
    tables = of_rows(1.0 * (kind >= 2)), of_rows(1.0 * (kind % 2))
    return Population(either(*tables) if chances[1] == chances[2] else tables, mean, SHARE, True)


def sentences(
    *qualities: tuple[float, float],
) -> Iterator[tuple[Callable[[Array], Array], tuple[Array, ...]]]:
    """BLEU and chrF of answers in which each word is right by a chance that differs from row to row."""
    chance = random.Random(5)
    words = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 8))) for _ in range(400)]
    wanted = [chance.choices(words, k=chance.randint(4, 29)) for _ in range(SENTENCES)]
    said = [[_changed(row, words, chance.betavariate(*each), chance) for row in wanted] for each in qualities]
    texts = [" ".join(row) for row in wanted]
    for scorer, value in ((BLEU(), bleu), (CHRF(), chrf)):
        tables = tuple(np.array(scorer._extract_corpus_statistics(one, [texts]), float) for one in said)
        theirs = [scorer.corpus_score(one, [texts]).score for one in said]
        assert np.allclose([100 * value(table.sum(0)[None])[0] for table in tables], theirs)
        yield value, tables


def _changed(row: list[str], words: list[str], right: float, chance: random.Random) -> str:
    kept = row[: max(int(len(row) * chance.uniform(0.7, 1.0)), 1)]
    return " ".join(word if chance.random() < right else chance.choice(words) for word in kept)


def labels(priors: tuple[float, ...], *chances: float) -> Population:
    """Macro F1 of labels with these shares, by models that are right by these chances."""
    many = len(priors)
    right = CHANCE.choice(many, PEOPLE, p=priors)
    macro = PLAIN["macro_f1"]
    tables = []
    for chance in chances:
        wrong = (right + CHANCE.integers(1, many, PEOPLE)) % many
        said = np.where(CHANCE.random(PEOPLE) < chance, right, wrong)
        tables.append(macro.statistics(Labels(said.tolist(), right.tolist(), many)))
    return Population(tuple(tables), macro.value, SHARE)


def either(first: Array, second: Array) -> tuple[Array, Array]:
    """Two models that are equal: each row of both orders."""
    return np.concatenate([first, second]), np.concatenate([second, first])


def ones() -> dict[str, Population]:
    """Figures of one model."""
    tokens = np.maximum(CHANCE.lognormal(3.2, 0.8, PEOPLE).round(), 1.0)
    text = of_rows(CHANCE.lognormal(0, 0.6, PEOPLE), tokens)
    rare = of_rows(CHANCE.lognormal(-3, 2, PEOPLE), CHANCE.integers(1, 4, PEOPLE))
    loss, mean = (PLAIN[name].value for name in ("loss", "token_f1"))
    spread = CHANCE.beta(2, 2, PEOPLE)
    made = {f"share, {100 * chance:g} % right": shares(chance) for chance in (0, 0.02, 0.1, 0.5, 0.98, 1)}
    made |= {
        "loss of texts": Population((text,), loss, ABOVE),
        "loss of labels, few rows make it": Population((rare,), loss, ABOVE),
        "token F1, spread": Population((of_rows(spread),), mean, SHARE),
    }
    for chance, full in ((0.6, 1), (0.97, 1), (0.95, 0)):
        values = np.where(CHANCE.random(PEOPLE) < chance, full, spread)
        made[f"token F1, {chance:.0%} are {full}"] = Population((of_rows(values),), mean, SHARE)
    for name, quality in (("middling", (4, 3)), ("good", (30, 1)), ("good and bad", (0.5, 0.3))):
        for value, tables in sentences(quality):
            made[f"{ {bleu: 'BLEU', chrf: 'chrF'}[value] }, {name}"] = Population(tables, value, SHARE)
    return made | {
        "macro F1, 2 labels, 90 % right": labels((0.5, 0.5), 0.9),
        "macro F1, 2 labels, 98 % right": labels((0.5, 0.5), 0.98),
        "macro F1, 2 labels, all right": labels((0.5, 0.5), 1.0),
        "macro F1, 5 labels, 70 % right": labels((0.2,) * 5, 0.7),
        "macro F1, labels of 90 and 10 %": labels((0.9, 0.1), 0.9),
    }


def twos() -> dict[str, Population]:
    """Differences of two models on the same rows."""
    tokens = np.maximum(CHANCE.lognormal(3.2, 0.8, PEOPLE).round(), 1.0)
    base = CHANCE.lognormal(0, 0.5, PEOPLE) * 2
    like, better = base + CHANCE.normal(0, 0.1, PEOPLE), base * CHANCE.beta(3, 3, PEOPLE) * 0.8
    loss, mean = (PLAIN[name].value for name in ("loss", "token_f1"))
    same = either(of_rows(base, tokens), of_rows(like, tokens))
    gained = of_rows(base, tokens), of_rows(better, tokens)
    spread, other = CHANCE.beta(2, 2, PEOPLE), CHANCE.beta(2, 2, PEOPLE)
    near = np.clip(spread + CHANCE.normal(0, 0.1, PEOPLE), 0, 1)
    few = np.where(CHANCE.random(PEOPLE) < 0.95, spread, other)
    high = np.where(CHANCE.random(PEOPLE) < 0.6, 1, other)
    made = {
        "share, equal, 98 % the same": shares(0.49, 0.01, 0.01, 0.49),
        "share, equal, 90 % the same": shares(0.45, 0.05, 0.05, 0.45),
        "share, equal, 60 % the same": shares(0.3, 0.2, 0.2, 0.3),
        "share, 0 and 10 %": shares(0.9, 0.1, 0, 0),
        "share, 30 and 75 %": shares(0.2, 0.5, 0.05, 0.25),
        "share, 0 and 98 %": shares(0.02, 0.98, 0, 0),
        "loss, equal": Population(same, loss, ABOVE),
        "loss, better": Population(gained, loss, ABOVE),
        "token F1, equal": Population(either(of_rows(spread), of_rows(near)), mean, SHARE),
        "token F1, equal, 95 % the same": Population(either(of_rows(spread), of_rows(few)), mean, SHARE),
        "token F1, better": Population((of_rows(CHANCE.beta(1, 6, PEOPLE)), of_rows(high)), mean, SHARE),
    }
    for value, tables in sentences((4, 3), (6, 2)):
        name = {bleu: "BLEU", chrf: "chrF"}[value]
        made[f"{name}, equal"] = Population(either(*tables), value, SHARE)
        made[f"{name}, better"] = Population(tables, value, SHARE)
    for name, priors, chances in (
        ("2 labels, equal", (0.5, 0.5), (0.9, 0.9)),
        ("5 labels, equal", (0.2,) * 5, (0.7, 0.7)),
        ("5 labels, better", (0.2,) * 5, (0.4, 0.8)),
        ("labels of 90 and 10 %, equal", (0.9, 0.1), (0.9, 0.9)),
    ):
        found = labels(priors, *chances)
        equal = name.endswith("equal")
        made[f"macro F1, {name}"] = found._replace(tables=either(*found.tables)) if equal else found
    return made


def bootstrapped(tables: list[Array], value: Callable[[Array], Array], weights: Array) -> dict[str, Ends]:
    """The percentile interval (Efron 1979) and BCa (Efron 1987), as scipy.stats.bootstrap has them."""
    drawn, without, found = (
        parts[-1] - (parts[0] if len(parts) == 2 else 0.0)
        for parts in zip(
            *((value(weights @ t), value(t.sum(0) - t), value(t.sum(0)[None])[0]) for t in tables),
            strict=True,
        )
    )
    gone = without.mean() - without
    bent = (gone**3).sum() / (6 * (gone**2).sum() ** 1.5) if gone.any() else 0.0
    less = ((drawn < found).mean() + (drawn <= found).mean()) / 2
    middle = NORMAL.inv_cdf(min(max(less, 1e-4), 1 - 1e-4))
    tails = [middle + NORMAL.inv_cdf(tail) for tail in (0.025, 0.975)]
    places = [100 * NORMAL.cdf(middle + tail / (1 - bent * tail)) for tail in tails]
    percentile, corrected = np.percentile(drawn, [2.5, 97.5]), np.percentile(drawn, places)
    return {"percentile": (percentile[0], percentile[1]), "BCa": (corrected[0], corrected[1])}


def one_round(made: Population, rows: int, weights: Array) -> tuple[dict[str, Ends], bool, bool]:
    """The intervals of drawn rows; whether the test says that two models differ, and whether that is told."""
    chosen = CHANCE.integers(0, len(made.tables[0]), rows)
    tables = [table[chosen] for table in made.tables]
    found = bootstrapped(tables, made.value, weights)
    if len(tables) == 1:
        own = interval(tables[0], made.value, made.bounds)
        if made.shares:
            found["Wilson"] = wilson_interval(int(tables[0][:, 0].sum()), rows)
        return found | {"jackknife": (own.low, own.high)}, False, False
    told = paired(tables[0], tables[1], made.value, made.bounds)
    p = mcnemar(tables[0][:, 0], tables[1][:, 0]) if made.shares else told.p
    apart = told.low > 0 or told.high < 0
    return found | {"jackknife": (told.low, told.high)}, p < 0.05, p < 0.05 and apart


WAYS = ("percentile", "BCa", "Wilson", "jackknife")


def measured(name: str, made: Population, rounds: int) -> Iterator[str]:
    """A line of the table for each number of rows."""
    truth = made.truth()
    for rows in SIZES:
        weights = np.random.default_rng(7).multinomial(rows, np.full(rows, 1 / rows), DRAWS).astype(float)
        held: dict[str, int] = defaultdict(int)
        tested = told = 0
        for _ in range(rounds):
            found, by_test, by_both = one_round(made, rows, weights)
            tested, told = tested + by_test, told + by_both
            for way, (low, high) in found.items():
                held[way] += low - 1e-9 <= truth <= high + 1e-9
        cells = [f"{100 * held[way] / rounds:.1f}" if way in held else "" for way in WAYS]
        if len(made.tables) == 2:
            kind = "false alarms" if abs(truth) < 1e-9 else "found"
            cells[2:3] = []
            cells.append(f"{100 * tested / rounds:.1f} / {100 * told / rounds:.1f} % {kind}")
        yield f"| {name} | {rows} | {' | '.join(cells)} |"


def main() -> None:
    """Measure all, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--only", choices=["one", "two"])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    lines: list[str] = []

    def say(*more: str) -> None:
        lines.extend(more)
        print(*more, sep="\n", flush=True)

    if given.only != "two":
        say("", "| figure of one model | rows | percentile | BCa | Wilson | jackknife |", "|-|-|-|-|-|-|")
        for name, made in ones().items():
            say(*measured(name, made, given.rounds))
    if given.only != "one":
        say("", "| difference | rows | percentile | BCa | jackknife | test / told |", "|-|-|-|-|-|-|")
        for name, made in twos().items():
            say(*measured(name, made, given.rounds))
    if given.output:
        given.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
