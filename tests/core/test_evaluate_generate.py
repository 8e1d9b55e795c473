"""Answers of a tiny tuned model against the plain definition of greedy decoding."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.evaluate.generate import Generator
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.model import add_adapter, load_base
from tests.tiny import build_model

QUESTIONS = ("Yes?", "What is the colour of the sky today?", "Birds fly over the old harbour, no?", "1234")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatFormat]:
    """A random model whose adapter changes what it says, and whose answers end at some point."""
    folder = build_model(tmp_path_factory.mktemp("model"))
    training = TrainingSettings()
    model = add_adapter(load_base(folder, training), training, "tiny")
    torch.manual_seed(5)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model, ChatFormat.from_folder(folder)


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


def test_batched_answers_equal_plain_greedy_decoding_with_and_without_the_adapter(
    parts: tuple[Any, ChatFormat],
) -> None:
    model, chat = parts
    generator = Generator(model, chat)
    tuned = generator.greedy(prompts(chat), 12, tuned=True)
    base = generator.greedy(prompts(chat), 12, tuned=False)
    assert tuned != base
    for prompt, answer in zip(prompts(chat), tuned, strict=True):
        assert list(answer.ids) == plain_greedy(model, prompt, 12, chat.stop_ids)
        assert answer.text == chat.decode(answer.ids)
    with model.disable_adapter():
        for prompt, answer in zip(prompts(chat), base, strict=True):
            assert list(answer.ids) == plain_greedy(model, prompt, 12, chat.stop_ids)


def test_an_answer_ends_at_the_end_mark_and_says_so(parts: tuple[Any, ChatFormat]) -> None:
    model, chat = parts
    prompt = prompts(chat)[0]
    whole = Generator(model, chat).greedy([prompt], 12, tuned=True)[0]
    assert not whole.ended and len(whole.ids) == 12
    place = next(i for i in range(1, 12) if whole.ids[i] not in whole.ids[:i])

    ending = copy.copy(chat)
    ending.__dict__["stop_ids"] = frozenset([whole.ids[place]])
    short = Generator(model, ending).greedy([prompt], 12, tuned=True)[0]
    assert short.ended and short.ids == whole.ids[:place]


def test_a_stream_brings_the_same_text_in_pieces(parts: tuple[Any, ChatFormat]) -> None:
    model, chat = parts
    generator = Generator(model, chat)
    for prompt in prompts(chat):
        pieces: list[str] = []
        answer = generator.stream(prompt, 16, tuned=True, on_text=pieces.append)
        assert "".join(pieces) == answer.text == generator.greedy([prompt], 16, tuned=True)[0].text
        assert all("�" not in piece for piece in pieces[:-1]) or "�" in answer.text


def test_sampling_follows_the_seed_and_the_temperature(parts: tuple[Any, ChatFormat]) -> None:
    model, chat = parts
    generator, prompt = Generator(model, chat), prompts(chat)[0]

    def sample(seed: int, temperature: float = 1.0) -> tuple[int, ...]:
        ignore = list[str]().append
        return generator.stream(
            prompt, 16, tuned=True, on_text=ignore, temperature=temperature, seed=seed
        ).ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1, 1e-4) == generator.greedy([prompt], 16, tuned=True)[0].ids


def test_a_cancelled_stream_ends_soon(parts: tuple[Any, ChatFormat]) -> None:
    model, chat = parts
    pieces: list[str] = []
    answer = Generator(model, chat).stream(
        prompts(chat)[0], 400, tuned=False, on_text=pieces.append, stopped=lambda: len(pieces) >= 3
    )
    assert len(answer.ids) < 40 and not answer.ended


def test_top_tokens_are_log_probabilities_of_the_tuned_model(parts: tuple[Any, ChatFormat]) -> None:
    model, chat = parts
    ids = prompts(chat)[1]
    found = Generator(model, chat).top_tokens(ids, [3, len(ids) - 1], 64)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert found[1][0][0] == int(logits.argmax())
    assert found[1][0][1] == pytest.approx(float(logits.max()), abs=1e-5)
    assert all(len(place) == 64 for place in found)
    assert sum(math.exp(value) for _, value in found[0]) <= 1.0
