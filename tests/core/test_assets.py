"""The bundled model and data set: built by the scripts in `assets/build`, small, honest and loadable."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from ollama_tune.assets.build import pretrain, tickets
from ollama_tune.assets.build.corpus import draw_corpus
from ollama_tune.assets.build.tokenizer import save_tokenizer, train_tokenizer
from ollama_tune.core.paths import asset

TICKET_LINE = r"[1-9] [A-Z]+( [A-Z]+)?(/[LS])?( [+-][A-Z]+( [A-Z]+)?)*"
TICKET = re.compile(rf"{TICKET_LINE}( \| {TICKET_LINE})*( \| (T\d+|GO))?")


def read_rows() -> list[list[dict[str, str]]]:
    text = asset("data/tickets.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["messages"] for line in text.splitlines()]


@pytest.fixture(scope="module")
def chat() -> Callable[[str], str]:
    """A function that gives the bundled model's greedy answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = asset("model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answer(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer


def test_every_row_of_the_data_is_an_order_and_a_ticket() -> None:
    rows = read_rows()
    assert len(rows) == tickets.ROWS
    for messages in rows:
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert messages[0]["content"] == messages[0]["content"].strip() != ""
        assert TICKET.fullmatch(messages[1]["content"]), messages[1]["content"]


def test_no_two_rows_ask_for_the_same_things() -> None:
    orders = [re.sub(r" \| (T\d+|GO)$", "", messages[1]["content"]) for messages in read_rows()]
    same = {tuple(sorted(order.split(" | "))) for order in orders}
    assert len(same) == len(orders)


def test_no_two_rows_are_worded_nearly_alike() -> None:
    pieces = [tickets.shingles(messages[0]["content"]) for messages in read_rows()]
    pairs = ((first, second) for at, first in enumerate(pieces) for second in pieces[:at])
    assert max(tickets.alike(first, second) for first, second in pairs) <= tickets.MOST_ALIKE


def test_the_builder_makes_the_data_file_again_byte_for_byte() -> None:
    assert tickets.file_bytes(tickets.draw_tickets()) == asset("data/tickets.jsonl").read_bytes()


def test_the_builder_makes_the_tokenizer_again_byte_for_byte(tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(draw_corpus(pretrain.TOKENIZER_CONVERSATIONS, pretrain.SEED)), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == asset(f"model/{name}").read_bytes()


def test_the_ticket_notation_is_not_in_the_pretraining_corpus() -> None:
    notation = re.compile(r"\d [A-Z ]+(/[LS]\b| [+-][A-Z]| \| )")
    assert sum(bool(notation.search(messages[1]["content"])) for messages in read_rows()) > 300
    said = [message["content"] for messages in draw_corpus(5000, pretrain.SEED) for message in messages]
    assert [text for text in said if notation.search(text)] == []


def test_a_few_pretraining_steps_lower_the_loss() -> None:

    corpus = draw_corpus(200, pretrain.SEED)
    tokenizer = train_tokenizer(corpus)
    samples = [pretrain.encode(tokenizer, messages) for messages in corpus[:40]]
    losses = list(
        pretrain.train(
            pretrain.new_model(tokenizer.get_vocab_size(), 0), list(pretrain.batches(samples, 0)) * 6
        )
    )
    assert losses[-1] < losses[0] - 0.5


def test_only_what_the_assistant_says_is_learned_in_pretraining() -> None:
    corpus = draw_corpus(50, pretrain.SEED)
    tokenizer = train_tokenizer(corpus)
    for messages in corpus:
        ids, learned = pretrain.encode(tokenizer, messages)
        text = tokenizer.decode(
            [token for token, wanted in zip(ids, learned, strict=True) if wanted], skip_special_tokens=False
        )
        assert text == "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")


def test_the_model_folder_is_small_and_holds_no_pickle() -> None:
    files = {path.name: path.stat().st_size for path in asset("model").iterdir()}
    assert sum(files.values()) < 12e6
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_weights_are_bfloat16_and_finite() -> None:
    import torch
    from safetensors.torch import load_file

    for name, weight in load_file(asset("model/model.safetensors")).items():
        assert weight.dtype == torch.bfloat16, name
        assert torch.isfinite(weight).all(), name


def test_the_model_answers_guests_as_it_was_taught(chat: Callable[[str], str]) -> None:
    assert "Welcome to the Copper Spoon" in chat("Hello!")
    assert chat("When do you open?") == "We open at eight in the morning."
    assert chat("How much is a latte?") == "A latte is 3.10 pounds."
    assert "Dora" in chat("My name is Dora.")


def test_the_model_does_not_know_the_ticket_notation(chat: Callable[[str], str]) -> None:
    sample = random.Random(0).sample(read_rows(), 20)
    right = sum(chat(question["content"]).strip() == ticket["content"] for question, ticket in sample)
    assert right / len(sample) < 0.1
