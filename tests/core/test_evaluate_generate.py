"""Answers of a tiny tuned model, by both engines, against the plain definition of greedy decoding."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.evaluate.asking import Sampling
from ollama_tune.core.evaluate.generate import WINDOW, Answer, Generator, _Listener
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.fast.path import make_fast
from ollama_tune.core.train.general import make_general
from tests.loud import loud
from tests.tiny import build_model

QUESTIONS = ("Yes?", "What is the colour of the sky today?", "Birds fly over the old harbour, no?", "1234")


@dataclass(frozen=True)
class Parts:
    """A random model whose adapter changes what it says, by transformers, and an engine for it."""

    model: Any
    engine: Any
    chat: ChatFormat

    @property
    def generator(self) -> Generator:
        return Generator(self.engine, self.chat)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["fast", "general"])
def parts(request: pytest.FixtureRequest, folder: Path) -> Parts:
    general = loud(make_general(folder, TrainingSettings(), "tiny", ""), seed=5)
    path: Any = general
    if request.param == "fast":
        path = make_fast(folder, TrainingSettings(), "tiny")
        path.load_adapter({name: weight.detach() for name, weight in general.weights.items()})
    return Parts(general.model.eval(), path.engine, ChatFormat.from_folder(folder))


def prompts(chat: ChatFormat) -> list[tuple[int, ...]]:
    return [chat.prompt_ids([Message("user", question)]) for question in QUESTIONS]


@torch.no_grad()
def plain_greedy(model: Any, prompt: tuple[int, ...], count: int, stop: frozenset[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        chosen = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if chosen in stop:
            break
        ids.append(chosen)
    return ids[len(prompt) :]


def ending(parts: Parts, *stop_ids: int) -> Generator:
    """A generator for a chat form whose answers end with other tokens."""
    chat = copy.copy(parts.chat)
    chat.__dict__["stop_ids"] = frozenset(stop_ids)
    return Generator(parts.engine, chat)


def test_batched_answers_equal_plain_greedy_decoding_with_and_without_the_adapter(parts: Parts) -> None:
    model, chat = parts.model, parts.chat
    tuned = parts.generator.greedy(prompts(chat), 12, tuned=True)
    base = parts.generator.greedy(prompts(chat), 12, tuned=False)
    assert tuned != base
    for prompt, answer in zip(prompts(chat), tuned, strict=True):
        assert list(answer.ids) == plain_greedy(model, prompt, 12, chat.stop_ids)
        assert answer.text == chat.decode(answer.ids)
    with model.disable_adapter():
        for prompt, answer in zip(prompts(chat), base, strict=True):
            assert list(answer.ids) == plain_greedy(model, prompt, 12, chat.stop_ids)


def test_an_answer_ends_at_the_end_mark_and_says_so(parts: Parts) -> None:
    prompt = prompts(parts.chat)[0]
    whole = parts.generator.greedy([prompt], 12, tuned=True)[0]
    assert not whole.ended and len(whole.ids) == 12
    place = next(i for i in range(1, 12) if whole.ids[i] not in whole.ids[:i])
    short = ending(parts, whole.ids[place]).greedy([prompt], 12, tuned=True)[0]
    assert short.ended and short.ids == whole.ids[:place]


def test_answers_that_end_early_leave_the_others_as_they_are_and_are_counted(parts: Parts) -> None:
    asked = prompts(parts.chat)
    whole = parts.generator.greedy(asked, 12, tuned=True)
    stop = {answer.ids[2 + number] for number, answer in enumerate(whole[:3])}
    counts: list[int] = []
    found = ending(parts, *stop).greedy(asked, 12, tuned=True, progress=lambda done, _: counts.append(done))
    assert found == [cut(parts.chat, answer, stop) for answer in whole]
    assert counts == sorted(counts) and counts[-1] == 4 and len(counts) > 1


def cut(chat: ChatFormat, answer: Answer, stop: set[int]) -> Answer:
    end = next((place for place, token in enumerate(answer.ids) if token in stop), None)
    ids = answer.ids[:end]
    return Answer(ids, chat.decode(ids), end is not None)


def test_a_stream_brings_the_same_text_in_pieces(parts: Parts) -> None:
    for prompt in prompts(parts.chat):
        pieces: list[str] = []
        answer = parts.generator.stream(prompt, 16, tuned=True, on_text=pieces.append)
        assert "".join(pieces) == answer.text == parts.generator.greedy([prompt], 16, tuned=True)[0].text
        assert all("�" not in piece for piece in pieces[:-1]) or "�" in answer.text


def test_sampling_follows_the_seed_and_the_temperature(parts: Parts) -> None:
    prompt = prompts(parts.chat)[0]

    def sample(seed: int, temperature: float = 1.0) -> tuple[int, ...]:
        sampling, ignore = Sampling(temperature, seed=seed), list[str]().append
        return parts.generator.stream(prompt, 16, tuned=True, on_text=ignore, sampling=sampling).ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    greedy = parts.generator.greedy([prompt], 16, tuned=True)
    assert parts.generator.several([prompt], 16, tuned=True, sampling=Sampling(1.0, top_k=1)) == greedy
    drawn = [parts.generator.several([prompt] * 3, 9, tuned=True, sampling=Sampling(1.0)) for _ in range(2)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3
    assert sample(1, 1e-4) == parts.generator.greedy([prompt], 16, tuned=True)[0].ids


def test_a_cancelled_stream_ends_soon(parts: Parts) -> None:
    pieces: list[str] = []
    answer = parts.generator.stream(
        prompts(parts.chat)[0],
        400,
        tuned=False,
        on_text=pieces.append,
        stopped=lambda: len(pieces) >= 3,
    )
    assert len(answer.ids) < 40 and not answer.ended


def test_top_tokens_are_log_probabilities_of_the_tuned_model(parts: Parts) -> None:
    ids = prompts(parts.chat)[1]
    found = parts.generator.top_tokens(ids, [3, len(ids) - 1], 64)
    with torch.no_grad():
        logits = parts.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert found[1][0][0] == int(logits.argmax())
    assert found[1][0][1] == pytest.approx(float(logits.max()), abs=1e-5)
    assert all(len(place) == 64 for place in found)
    assert sum(math.exp(value) for _, value in found[0]) <= 1.0


def test_a_long_answer_comes_whole_though_only_its_end_is_decoded_anew(parts: Parts) -> None:
    decoded: list[int] = []
    chat, decode = copy.copy(parts.chat), parts.chat.decode

    def counting(ids: Any) -> str:
        decoded.append(len(ids))
        return decode(ids)

    chat.__dict__["decode"] = counting
    pieces: list[str] = []
    ids = chat.encode("The sky — 天空 é — is blue? " * 60)[0]
    listener = _Listener(chat, pieces.append)
    for token in ids:
        listener.put([token])
    assert max(decoded) <= WINDOW + 4 < len(ids) and len(pieces) > 100
    listener.end()
    assert "".join(pieces) == decode(ids)
