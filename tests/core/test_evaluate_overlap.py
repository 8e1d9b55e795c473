"""Words, token F1 and ROUGE-L in several scripts, against values worked out by hand."""

from __future__ import annotations

import random

import pytest

from ollama_tune.core.evaluate.overlap import common_subsequence, rouge_l, token_f1, without_thoughts, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The sky, it's BLUE!", ["the", "sky", "it", "s", "blue"]),
        ("Небо сегодня — голубое.", ["небо", "сегодня", "голубое"]),
        ("今天天气好。", ["今", "天", "天", "气", "好"]),
        ("東京タワーは高い", ["東", "京", "タ", "ワ", "ー", "は", "高", "い"]),
        ("GPT5を使う", ["gpt5", "を", "使", "う"]),
        ("하늘이 파랗다", ["하늘이", "파랗다"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ＡＢＣ　１２", ["abc", "12"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        (" … !", []),
    ],
)
def test_words_are_those_of_the_script(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "rouge"),
    [
        ("the cat sat on the mat", "the cat is on the mat", 10 / 12, 10 / 12),  # 5 of 6 words, in order
        ("mat the on", "the cat is on the mat", 6 / 9, 4 / 9),  # 3 common words; in order only "the on"
        ("кошка сидит на окне", "на окне сидит кошка", 1.0, 4 / 8),  # the same words; in order "на окне"
        ("我今天去学校", "我昨天去了学校", 10 / 13, 10 / 13),  # 我 天 去 学 校 of 6 and 7 characters
        ("東京は大きい", "大きい東京", 10 / 11, 6 / 11),  # 5 characters; in order 大 き い
        ("", "blue", 0.0, 0.0),
        ("!", "?", 1.0, 1.0),
    ],
)
def test_scores_equal_those_worked_out_by_hand(answer: str, reference: str, f1: float, rouge: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert rouge_l(answer, reference) == pytest.approx(rouge)
    assert rouge_l(reference, answer) == pytest.approx(rouge)


def plain(one: list[str], other: list[str]) -> int:
    """The longest common subsequence by the table of the textbook."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, theirs in enumerate(other, 1):
            before, row[at] = row[at], before + 1 if word == theirs else max(row[at], row[at - 1])
    return row[-1]


def test_the_fast_subsequence_equals_the_plain_one() -> None:
    chance = random.Random(3)
    for _ in range(60):
        one, other = ([chance.choice("abcd") for _ in range(chance.randrange(0, 90))] for _ in range(2))
        assert common_subsequence(one, other) == plain(one, other)


@pytest.mark.parametrize(
    ("answer", "reference", "said"),
    [
        ("It is blue.", "It is blue.", "It is blue."),
        ("<think>\nhm </think> no</think>\n\nblue", "blue", "blue"),
        ("the prompt opened it</think>blue", "blue", "blue"),
        ("<think>I was cut o", "blue", ""),
        ("<think>a</think>b", "<think>a</think>b", "<think>a</think>b"),
        ("</think>b", "b", "b"),
    ],
)
def test_thoughts_are_not_compared_unless_they_were_wanted(answer: str, reference: str, said: str) -> None:
    assert without_thoughts(answer, reference) == said
