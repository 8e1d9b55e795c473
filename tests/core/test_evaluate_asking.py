"""How questions are asked: what figures are allowed, and what sampling draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ollama_tune.core.errors import UsageError
from ollama_tune.core.evaluate.asking import LIMITS, Asking, Sampling, load_asking, save_asking
from ollama_tune.core.evaluate.choose import chooser
from ollama_tune.core.evaluate.conversation import Conversation, HeldOut, Result, Totals
from ollama_tune.core.evaluate.held_out import common_system, with_system
from ollama_tune.core.runs.folder import RunFolder

SHARES = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]])
SYSTEM = {"role": "system", "content": "Answer in tickets."}
USER = {"role": "user", "content": "q"}


def drawn(sampling: Sampling, draws: int = 2000) -> torch.Tensor:
    """How often each token is drawn."""
    choose = chooser(sampling)
    assert choose is not None
    tokens = choose(SHARES.log().expand(draws, -1))
    return torch.bincount(tokens, minlength=5) / draws


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(1.0, top_k=2), [0.4 / 0.7, 0.3 / 0.7, 0, 0, 0]),
        (Sampling(1.0, top_k=1), [1, 0, 0, 0, 0]),
        (Sampling(1.0, top_k=99), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(1.0, top_p=0.75), [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        (Sampling(1.0, top_p=1e-9), [1, 0, 0, 0, 0]),
        (Sampling(1.0, top_p=0.6, top_k=3), [0.4 / 0.7, 0.3 / 0.7, 0, 0, 0]),
        (Sampling(0.5), (SHARES[0] ** 2 / (SHARES**2).sum()).tolist()),
    ],
)
def test_tokens_are_drawn_with_the_shares_that_are_left(sampling: Sampling, expected: list[float]) -> None:
    assert drawn(sampling) == pytest.approx(expected, abs=0.045)
    assert torch.equal(drawn(sampling) > 0, torch.tensor(expected) > 0)


def test_one_seed_draws_the_same_and_no_other_random_number_is_touched() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(drawn(Sampling(1.0, seed=3)), drawn(Sampling(1.0, seed=3)))
    assert not torch.equal(drawn(Sampling(1.0, seed=3)), drawn(Sampling(1.0, seed=4)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_temperature_0_leaves_nothing_to_chance() -> None:
    assert chooser(Sampling(0.0, top_p=0.5, top_k=3)) is None


@pytest.mark.parametrize(
    ("name", "good", "wrong"),
    [
        ("temperature", ("0", " 0,8 ", "5"), ("-1", "5.1", "nan", "warm", "")),
        ("top_p", ("1", "0.01"), ("0", "1.1", "inf")),
        ("top_k", ("0", "40", "1,000"), ("-1", "2.5", "1e3")),
        ("seed", ("0", "2147483647"), ("2147483648", "x")),
        ("max_new_tokens", ("1", "32768"), ("0", "99999999999999999999")),
    ],
)
def test_a_figure_is_taken_or_told_what_is_allowed(
    name: str, good: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    limits = LIMITS[name]
    assert all(limits.low <= limits.read(text) <= limits.high for text in good)
    for text in wrong:
        with pytest.raises(UsageError, match=r"^This must be .* for example "):
            limits.read(text)
    assert limits.read(limits.example) == float(limits.example)


def test_what_was_chosen_is_kept_with_the_run_and_nonsense_in_the_file_is_left_out(tmp_path: Path) -> None:
    folder, usual = RunFolder(tmp_path), Asking(max_new_tokens=48)
    assert load_asking(folder, usual) == usual
    chosen = Asking(Sampling(0.7, 0.9, 40, 11), 64, "Be brief.\nPlease.")
    save_asking(folder, chosen)
    assert load_asking(folder, usual) == chosen
    (tmp_path / "try-it.json").write_text('{"temperature": "hot", "seed": -1, "top_k": 5, "system": 3}')
    assert load_asking(folder, usual) == usual.with_value("top_k", 5)
    (tmp_path / "try-it.json").write_text("{")
    assert load_asking(folder, usual) == usual


def test_a_question_of_ones_own_gets_the_system_prompt_that_the_model_learned_with() -> None:
    def asked(*messages: dict[str, str]) -> HeldOut:
        return HeldOut(messages, "q", "a")

    assert common_system([asked(SYSTEM, USER), asked(SYSTEM, USER)]) == SYSTEM["content"]
    assert common_system([asked(SYSTEM, USER), asked(USER)]) == ""
    assert common_system([]) == ""
    assert with_system((SYSTEM, USER), None) == (SYSTEM, USER)
    assert with_system((SYSTEM, USER), "") == (USER,)
    assert with_system((USER,), "Other.") == ({"role": "system", "content": "Other."}, USER)


def test_a_turn_in_which_a_model_wrote_nothing_is_not_told_to_it() -> None:
    talk = Conversation((SYSTEM,))
    for number in range(2):
        talk.ask(f"q{number}")
    talk.turns[0].answers["base"].text = "b0"
    assert [turn["content"] for turn in talk.messages("base")] == [SYSTEM["content"], "q0", "b0", "q1"]
    assert [turn["content"] for turn in talk.messages("tuned")] == [SYSTEM["content"], "q1"]


def test_totals_count_only_whole_answers() -> None:
    results = [Result(HeldOut((USER,), "q", "2 TEA")) for _ in range(4)]
    for result, (text, end) in zip(
        results, [("2 TEA", "stop"), ("2 TE", "length"), ("2", "cancelled"), ("", "long")], strict=True
    ):
        result.take({"model": "tuned", "text": text, "end": end})
    totals = Totals.of(results, "tuned")
    assert (totals.rows, totals.exact) == (2, 1) and 0.5 < totals.similarity < 1.0
    assert Totals.of(results, "base") == Totals(0, 0, 0.0)
    assert results[0].record()["tuned"] == {"text": "2 TEA", "end": "stop", "exact": True, "similarity": 1.0}
