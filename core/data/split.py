"""Divides rows into training and validation so that nothing learned is measured on."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.data.rows.keys import conversation_key, number, question_key
from ollama_tune.core.data.rows.store import HELD_OUT, StoredRows
from ollama_tune.core.data.values import Row

__all__ = ["conversation_key", "question_key", "split_rows"]

LARGEST_GROUP = 0.5
"""A group of more than this share of the rows says nothing; rows are told apart more finely then."""


@dataclass(frozen=True)
class _Facts:
    """Of each row, in order: numbers of its question and conversation, its cluster (0: none), its label (0:
    none), and whether it belongs to a validation split."""

    questions: Sequence[int]
    conversations: Sequence[int]
    clusters: Sequence[int]
    labels: Sequence[int]
    held_out: Sequence[bool]


def split_rows(
    rows: Sequence[Row], validation_split: float, seed: int
) -> tuple[Sequence[Row], Sequence[Row]]:
    """(training, validation), both in file order; stored rows stay on disk."""
    chosen = held_out_numbers(rows, validation_split, seed)
    return _part(rows, chosen, False), _part(rows, chosen, True)


def held_out_numbers(rows: Sequence[Row], validation_split: float, seed: int) -> set[int]:
    """Which rows, by their number from 0, are the validation: about that share of them.

    Rows of a validation split are the validation, where there are any, but for those that say nearly the
    same as a row that is learned. Else a share is chosen: rows of one question and near-duplicates stay on
    one side, unless that would leave more than half of the rows in one lump (chats that all begin with the
    same greeting), and labels keep their shares. The side depends on seed and question alone, so that added
    rows move few others. Only stored rows know their near-duplicates and labels.
    """
    facts = _facts(rows)
    if any(facts.held_out) and not all(facts.held_out):
        return _held_out(facts)
    if validation_split <= 0 or len(rows) < 2:
        return set()
    return _choose(_groups(facts), facts.labels, validation_split, seed)


def _held_out(facts: _Facts) -> set[int]:
    """The rows of the validation split, without those whose cluster is learned; all of them where those are
    the most, because data of one mould has nothing else to measure on."""
    held = {at for at, held in enumerate(facts.held_out) if held}
    learned = {cluster for at, cluster in enumerate(facts.clusters) if cluster and at not in held}
    apart = {at for at in held if facts.clusters[at] not in learned}
    return apart if len(apart) > LARGEST_GROUP * len(held) else held


def _facts(rows: Sequence[Row]) -> _Facts:
    if not isinstance(rows, StoredRows):
        questions = [number(question_key(row)) for row in rows]
        conversations = [number(conversation_key(row)) for row in rows]
        none = [0] * len(rows)
        return _Facts(questions, conversations, none, none, [row.held_out for row in rows])
    column = rows.store.column
    of = {
        name: [column(name)[at] for at in rows.places]
        for name in ("question", "conversation", "group", "label", "bits")
    }
    held_out = [bool(bits & HELD_OUT) for bits in of["bits"]]
    return _Facts(of["question"], of["conversation"], of["group"], of["label"], held_out)


def _part(rows: Sequence[Row], chosen: set[int], inside: bool) -> Sequence[Row]:
    places = [at for at in range(len(rows)) if (at in chosen) == inside]
    if isinstance(rows, StoredRows):
        return rows.chosen(places)
    return [rows[at] for at in places]


def _groups(facts: _Facts) -> dict[int, list[int]]:
    """Rows that stay together, by the number of their first question or conversation."""
    finest = facts.conversations
    for keys, clusters in (
        (facts.questions, facts.clusters),
        (facts.questions, ()),
        (finest, facts.clusters),
    ):
        groups = _joined(keys, clusters)
        if max(map(len, groups.values())) <= LARGEST_GROUP * len(keys):
            return groups
    return _joined(finest, ())


def _joined(keys: Sequence[int], clusters: Sequence[int]) -> dict[int, list[int]]:
    """Rows by key; keys that share a cluster are one, under the smallest of them."""
    parents: dict[int, int] = {}

    def root(key: int) -> int:
        while key in parents:
            key = parents[key]
        return key

    first: dict[int, int] = {}
    for key, cluster in zip(keys, clusters, strict=False):
        if cluster:
            one, other = root(key), root(first.setdefault(cluster, key))
            if one != other:
                parents[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        groups[root(key) if parents else key].append(at)
    return groups


def _choose(groups: dict[int, list[int]], labels: Sequence[int], share: float, seed: int) -> set[int]:
    """Of each label groups in the order of a hash while they fit; if none fits, the smallest, never all."""
    wanted = _quotas(Counter(labels), share)
    chosen: set[int] = set()
    for _, members in sorted(groups.items(), key=lambda entry: _rank(entry[0], seed)):
        label = labels[members[0]]
        if len(members) <= wanted[label]:
            wanted[label] -= len(members)
            chosen.update(members)
    if not chosen and len(groups) > 1:
        smallest = min(groups.values(), key=len)
        chosen.update(smallest)
    return chosen


def _rank(key: int, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=16).digest()


def _quotas(counts: Counter[int], share: float) -> dict[int, int]:
    """How many rows of each label are held out: its share, the rest to those with the largest remainder."""
    total = max(round(sum(counts.values()) * share), 1)
    quotas = {label: int(count * share) for label, count in counts.items()}
    remainders = sorted(counts, key=lambda label: (quotas[label] - counts[label] * share, label))
    for label in remainders[: max(total - sum(quotas.values()), 0)]:
        quotas[label] += 1
    return quotas
