"""The rules for learning preferences: when, and what is recommended otherwise than for learning answers."""

from __future__ import annotations

from dataclasses import replace

from ollama_tune.core.data.tokens.sides import NO_PAIRS
from ollama_tune.core.data.values import Lengths
from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.plan.values import Choice

PAPER = "arXiv 2305.18290"
ENOUGH = 0.5
"""Share of the rows that are pairs from which on the pairs are what the data is for."""
SLOWER = 10
"""How many times smaller steps are than those that learn answers."""


def objective(lengths: Lengths) -> Choice:
    """Preferences where at least half of the rows are pairs, else answers."""
    pairs = lengths.pairs.rows if lengths.pairs else 0
    told = f"{pairs:,} of {lengths.rows:,} rows hold a better and a worse answer"
    return Choice("dpo" if pairs and pairs >= ENOUGH * lengths.rows else "sft", told, rules.DATA)


def learned(lengths: Lengths, training: TrainingSettings) -> Lengths:
    """The lengths of what is learned from; `UsageError` where there are no pairs to prefer in."""
    if training.objective == "dpo" and not (lengths.pairs or lengths.sides):
        raise UsageError(*NO_PAIRS)
    return lengths.learned(training.objective)


def beta(training: TrainingSettings) -> Choice:
    """The usual 0.1."""
    if training.objective == "dpo":
        return Choice(0.1, "usual; 0.3 or more keeps answers nearer to the base model's", PAPER)
    return Choice(0.1, "of no effect on learning answers", rules.PRACTICE)


def learning_rate(training: TrainingSettings, usual: Choice) -> Choice:
    """A tenth of what answers are learned with."""
    if training.objective != "dpo":
        return usual
    text = f"a tenth of {usual.value:g} for answers: larger steps soon make any text unlikely"
    return Choice(rules.rounded(usual.value / SLOWER), text, rules.PRACTICE)


def epochs(training: TrainingSettings, usual: Choice) -> Choice:
    """One round."""
    if training.objective != "dpo":
        return usual
    return Choice(1.0, "one round; more drives the two answers apart without end", rules.PRACTICE)


def usual_epochs(training: TrainingSettings, rows: int) -> float:
    """The rounds by which the rows of a step are chosen."""
    return 1.0 if training.objective == "dpo" else rules.usual_epochs(rows)


def packing(training: TrainingSettings, usual: Choice) -> Choice:
    """Never with pairs."""
    if training.objective != "dpo":
        return usual
    return replace(usual, value=False, reason="both answers of a pair are computed together")
