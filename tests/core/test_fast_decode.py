"""Answers of the fast path against those that transformers generates with PEFT's adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.evaluate.asking import Sampling
from ollama_tune.core.evaluate.choose import chooser
from ollama_tune.core.evaluate.general_engine import GeneralEngine
from ollama_tune.core.models.blueprint import read_blueprint
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.fast.adapter import new_adapter
from ollama_tune.core.train.fast.decode import FastEngine
from ollama_tune.core.train.fast.model import FastModel
from ollama_tune.core.train.fast.path import make_fast
from ollama_tune.core.train.fast.weights import load_weights
from tests.core.export_parts import FAMILIES, LLAMA3_ROPE, build_family, load

OPENING = tuple(range(40, 62))
PROMPTS = [(*OPENING, *range(100, 100 + 13 * n, 3)) for n in (1, 5, 2)] + [(7, 9, 300), tuple(range(3, 60))]
NEW = 24
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.9],
    "long_factor": [1.0, 1.4, 2.0, 3.0, 5.0, 8.0],
    "partial_rotary_factor": 0.75,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES if name not in ("Qwen3Moe", "Mixtral")},
    "Llama, wide heads, biases": (
        "Llama",
        {"rope_parameters": LLAMA3_ROPE, "head_dim": 32, "attention_bias": True, "mlp_bias": True},
    ),
    "Mistral, short window": ("Mistral", {"sliding_window": 16}),
    "Phi3, longrope that changes on the way": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 68},
    ),
}


def engines(folder: Path, **training: Any) -> tuple[FastEngine, GeneralEngine]:
    """Both ways to answer, in float32, with the same random adapter."""
    blueprint = read_blueprint(read_json(folder / "config.json"))
    adapter = new_adapter(blueprint, TrainingSettings(rank=4, alpha=8, **training))
    for pair in adapter.pairs():
        torch.nn.init.normal_(pair.b, std=0.15)
    (folder / "adapter").mkdir()
    adapter.write(folder / "adapter", str(folder))
    weights = load_weights(folder, blueprint, device="cpu", dtype=torch.float32)
    return FastEngine(FastModel(blueprint, weights, adapter)), GeneralEngine(load(folder, folder / "adapter"))


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family, changes = CASES[request.param]
    return engines(build_family(tmp_path_factory.mktemp("family"), family, **changes))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[FastEngine, GeneralEngine]:
    return engines(build_family(tmp_path_factory.mktemp("llama"), "Llama"), targets=["q_proj", "down_proj"])


def test_greedy_answers_are_those_of_transformers(both: tuple[FastEngine, GeneralEngine]) -> None:
    fast, general = both
    for tuned in (True, False):
        wanted = general.decode(PROMPTS, NEW, tuned=tuned, stop_ids=[])
        assert fast.decode(PROMPTS, NEW, tuned=tuned, stop_ids=[]) == wanted
        assert len({tuple(answer) for answer in wanted}) > 1


def test_logits_are_those_of_transformers(both: tuple[FastEngine, GeneralEngine]) -> None:
    fast, general = both
    ids, places = PROMPTS[-1], [50, 2, len(PROMPTS[-1]) - 1]
    for tuned in (True, False):
        wanted = general.logits(ids, places, tuned=tuned)
        found = fast.logits(ids, places, tuned=tuned)
        assert found.dtype == torch.float32
        assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_long_answer_outgrows_the_first_room_of_the_cache(llama: tuple[FastEngine, GeneralEngine]) -> None:
    fast, general = llama
    wanted = general.decode(PROMPTS[2:4], 150, tuned=True, stop_ids=[])
    assert fast.decode(PROMPTS[2:4], 150, tuned=True, stop_ids=[]) == wanted
    assert all(len(answer) == 150 for answer in wanted)


def test_rows_end_at_their_own_stop_token_which_is_included(llama: tuple[FastEngine, GeneralEngine]) -> None:
    fast, general = llama
    whole = fast.decode(PROMPTS, 12, tuned=True, stop_ids=[])
    stop = [answer[1 + 2 * number] for number, answer in enumerate(whole[:4])]
    told: list[list[int]] = [[] for _ in PROMPTS]
    steps: list[list[int]] = []
    found = fast.decode(PROMPTS, 12, tuned=True, stop_ids=stop, on_tokens=lambda new: steps.append(list(new)))
    assert found == general.decode(PROMPTS, 12, tuned=True, stop_ids=stop)
    for answer, cut in zip(whole, found, strict=True):
        assert cut == answer[: len(cut)] and (cut[-1] in stop or len(cut) == 12)
        assert not set(cut[:-1]) & set(stop)
    assert len({len(answer) for answer in found}) > 2
    for new in steps:
        live = [row for row in told if not row or (row[-1] not in stop and len(row) < 12)]
        for row, token in zip(live, new, strict=True):
            row.append(token)
    assert told == found


def test_both_engines_tell_the_same_new_tokens_and_end_when_asked(
    llama: tuple[FastEngine, GeneralEngine],
) -> None:
    for engine in llama:
        steps: list[list[int]] = []
        found = engine.decode(
            PROMPTS[:2],
            50,
            tuned=False,
            stop_ids=[],
            stopped=lambda: len(steps) == 3,  # noqa: B023
            on_tokens=lambda new: steps.append(list(new)),  # noqa: B023
        )
        assert [list(row) for row in zip(*steps, strict=True)] == found
        assert [len(answer) for answer in found] == [3, 3]


def test_drawn_answers_follow_the_distribution(llama: tuple[FastEngine, GeneralEngine]) -> None:
    fast, _ = llama
    prompt, draws = PROMPTS[3], 512
    shares = (fast.logits(prompt, [len(prompt) - 1], tuned=True)[0] / 0.5).softmax(-1)
    choose = chooser(Sampling(0.5, seed=0))
    drawn = fast.decode([prompt] * draws, 1, tuned=True, stop_ids=[], choose=choose)
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=len(shares)) / draws
    top = shares.topk(5).indices
    assert torch.allclose(counts[top], shares[top], atol=4 * (0.25 / draws) ** 0.5)


def test_nothing_is_asked_or_wanted(llama: tuple[FastEngine, GeneralEngine]) -> None:
    assert llama[0].decode([], 5, tuned=True, stop_ids=[]) == []
    assert llama[0].decode(PROMPTS[:2], 0, tuned=True, stop_ids=[]) == [[], []]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_answers_in_bfloat16_are_those_of_the_logits(tmp_path: Path, quantization: str) -> None:
    """Step by step with a cache as in one pass over the whole; ties of rounded logits aside."""
    folder = build_family(tmp_path, "Qwen3")
    settings = TrainingSettings(compute_dtype="bfloat16", quantization=quantization)
    engine = make_fast(folder, settings, "base").engine
    for prompt, answer in zip(PROMPTS, engine.decode(PROMPTS, 8, tuned=True, stop_ids=[]), strict=True):
        places = range(len(prompt) - 1, len(prompt) + 7)
        logits = engine.logits([*prompt, *answer], list(places), tuned=True)
        behind = logits.max(-1).values - logits[torch.arange(8), torch.tensor(answer)]
        assert float(behind.max()) < 0.05 * float(logits.std())
