from __future__ import annotations

import random

import numpy as np
import pytest

from ollama_tune.core.data.rows import duplicates
from ollama_tune.core.data.rows.duplicates import Signatures, shingles

DRAW = random.Random(5)
WORDS = ["".join(DRAW.choices("abcdefghijklmnop", k=DRAW.randint(2, 8))) for _ in range(3000)]


def text(words: int) -> list[str]:
    return DRAW.choices(WORDS, k=words)


def changed(words: list[str], count: int) -> str:
    """The words with `count` of them, far apart, replaced by others."""
    new = list(words)
    for at in range(0, 10 * count, 10):
        new[at] = "other" + str(at)
    return " ".join(new)


def near_duplicates(texts: list[str]) -> list[int]:
    """For each text the place of the first text of its cluster."""
    signatures = Signatures()
    for each in texts:
        signatures.add(each)
    return [int(first) for first in signatures.clusters(lambda places: [texts[at] for at in places])]


def jaccard(one: str, other: str) -> float:
    words = one.split(), other.split()
    sets = [{tuple(side[at : at + 3]) for at in range(len(side) - 2)} for side in words]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_texts_that_differ_in_a_few_words_are_one_cluster_named_by_its_first() -> None:
    base, other = text(120), text(120)
    texts = [" ".join(other), " ".join(base), changed(base, 2), changed(other, 1), " ".join(text(120))]
    assert near_duplicates(texts) == [0, 1, 1, 0, 4]


def test_case_and_punctuation_do_not_tell_texts_apart() -> None:
    assert near_duplicates(["The cat sat, on the mat!", "the CAT sat on the mat", "A dog ran"]) == [0, 0, 2]


def test_nearly_all_pairs_above_the_threshold_are_found_and_none_below() -> None:
    """Against the exact index of pairs whose index runs from 0.3 to 1."""
    bases = [text(60) for _ in range(400)]
    pairs = [(" ".join(base), changed(base, at % 6)) for at, base in enumerate(bases)]
    clusters = near_duplicates([side for pair in pairs for side in pair])
    found = [clusters[2 * at] == clusters[2 * at + 1] for at in range(len(pairs))]
    alike = [jaccard(*pair) >= 0.7 for pair in pairs]
    missed = sum(one and not other for one, other in zip(alike, found, strict=True))
    wrong = sum(other and not one for one, other in zip(alike, found, strict=True))
    assert (sum(alike) > 150, missed / sum(alike) < 0.05, wrong) == (True, True, 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "今天天气很好我们去公园散步吧然后一起吃晚饭看电影",
            "今天天气很好，我们去公园散步吧，然后一起吃晚饭看电影！",
            True,
        ),
        (
            "今天天气很好我们去公园散步吧然后一起吃晚饭看电影",
            "明天下雨所以大家都留在家里读书写字听音乐做饭睡觉",
            False,
        ),
        ("メールを確認してください", "メールを確認してください。", True),
        ("😀 😀 😀", "😀 😀 😀", False),
        ("yes", "Yes!", True),
        ("yes", "no", False),
        ("", "", False),
    ],
)
def test_texts_without_blanks_short_texts_and_texts_without_words(one: str, other: str, same: bool) -> None:
    assert near_duplicates([one, other]) == ([0, 0] if same else [0, 1])


def test_shingles_do_not_depend_on_the_texts_beside() -> None:
    texts = ["one two three four", "", "five", "天气很好吗", "one two three four " * 3]
    hashes, bounds = shingles(texts)
    for at, alone in enumerate(texts):
        assert np.array_equal(hashes[bounds[at] : bounds[at + 1]], shingles([alone])[0])
    assert [int(count) for count in np.diff(bounds)] == [2, 0, 1, 3, 10]


def test_chinese_is_compared_by_four_characters() -> None:
    """Five characters have two shingles of four, and one of three at the end."""
    first, second = shingles(["天气很好吗"])[0], shingles(["天气很好了"])[0]
    assert len(set(first.tolist()) & set(second.tolist())) == 1


def test_many_rows_of_one_mould_are_judged_by_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "EXACT", 0)
    base = text(120)
    assert near_duplicates([" ".join(base), changed(base, 1), " ".join(text(120))]) == [0, 0, 2]


def test_rows_beyond_the_most_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST", 2)
    signatures = Signatures()
    for one in ("a b c d", "a b c d", "a b c d"):
        signatures.add(one)
    assert signatures.clusters(lambda places: ["a b c d" for _ in places]).tolist() == [0, 0]
