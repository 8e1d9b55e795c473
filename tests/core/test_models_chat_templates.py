"""The chat form offered to a base model: rendered, trained on, and carried into Ollama like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.chat.mask import make_example
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message, Row
from ollama_tune.core.export.gotemplate import GoTemplate, go_template
from ollama_tune.core.export.gotemplate import run as run_go
from ollama_tune.core.models.chat_templates import TemplateOffer, offer_template
from tests.tiny import build_tokenizer

TALK = (
    Message("system", "Be brief."),
    Message("user", "Is it blue?"),
    Message("assistant", "yes"),
    Message("user", "Why?"),
    Message("assistant", "I don't know"),
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model's tokenizer: it ends texts with <|endoftext|>, and nothing says how people talk to it."""
    build_tokenizer(tmp_path)
    return configure(tmp_path, eos_token="<|endoftext|>")


def configure(folder: Path, **values: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def offered(folder: Path) -> TemplateOffer:
    offer = offer_template(folder)
    assert offer is not None
    return offer


def test_roles_are_plain_words_and_the_end_is_the_models_own(base: Path) -> None:
    offer = offered(base)
    assert (offer.name, offer.end) == ("plain roles", "<|endoftext|>")
    assert offer.reason == (
        "Roles as plain words and <|endoftext|> after an answer, which the model knows already."
    )
    chat = ChatFormat.from_folder(base, template=offer.template)
    assert chat.render(TALK[:4], add_generation_prompt=True) == (
        "<|system|>\nBe brief.\n<|user|>\nIs it blue?\n<|assistant|>\nyes<|endoftext|>\n<|user|>\nWhy?\n"
        "<|assistant|>\n"
    )
    assert not chat.merges_system
    (end,) = chat.stop_ids
    assert chat.decode([end]) == "<|endoftext|>"


def test_an_answer_is_trained_with_its_end_and_nothing_else(base: Path) -> None:
    chat = ChatFormat.from_folder(base, template=offered(base).template)
    example = make_example(chat, Row(TALK, 1))
    trained = [i for i, learned in zip(example.ids, example.trained, strict=True) if learned]
    assert chat.decode(trained) == "yes<|endoftext|>I don't know<|endoftext|>"
    prompt = chat.prompt_ids(TALK[:2])
    assert example.ids[: len(prompt)] == prompt


def test_the_form_goes_into_ollama_as_it_is(base: Path) -> None:
    chat = ChatFormat.from_folder(base, template=offered(base).template)
    found = go_template(chat)
    assert isinstance(found, GoTemplate), found
    assert run_go(found.text, TALK[:4]) == chat.render(TALK[:4], add_generation_prompt=True)


def test_a_start_of_text_that_pre_training_had_stands_first_once(base: Path) -> None:
    configure(base, eos_token="<|endoftext|>", bos_token="<|im_start|>", add_bos_token=True)
    chat = ChatFormat.from_folder(base, template=offered(base).template)
    assert chat.render(TALK[1:3]).startswith("<|im_start|><|user|>\n")
    assert chat.render(TALK).count("<|im_start|>") == 1
    configure(base, eos_token="<|endoftext|>", bos_token="<|im_start|>", add_bos_token=False)
    assert "<|im_start|>" not in offered(base).template


def test_a_start_of_text_is_also_seen_in_the_tokenizers_own_steps(base: Path) -> None:
    configure(base, eos_token="<|endoftext|>", bos_token="<|im_start|>")
    assert "<|im_start|>" not in offered(base).template
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    step = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": [step]}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert offered(base).template.startswith('{{ "<|im_start|>" }}')


def test_chatml_is_for_models_that_end_their_texts_so(base: Path) -> None:
    offer = offered(configure(base, eos_token="<|im_end|>"))
    assert (offer.name, offer.end) == ("ChatML", "<|im_end|>")
    chat = ChatFormat.from_folder(base, template=offer.template)
    assert (
        chat.render(TALK[1:3])
        == "<|im_start|>user\nIs it blue?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )


def test_the_end_is_also_found_by_its_number(base: Path) -> None:
    configure(base)
    assert offer_template(base) is None
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [0]}))
    assert offered(base).end == "<|endoftext|>"


def test_a_chat_model_gets_no_offer(tmp_path: Path) -> None:
    build_tokenizer(tmp_path)
    assert offer_template(tmp_path) is None


@pytest.mark.parametrize("end", ['"}}{% raw %}', "{{ 7 * 7 }}", "<｜end▁of▁sentence｜>", "a\\b\n"])
def test_a_token_is_a_text_and_never_a_piece_of_program(base: Path, end: str) -> None:
    offer = offered(configure(base, eos_token=end))
    chat = ChatFormat.from_folder(base, template=offer.template)
    assert chat.render(TALK[1:3]) == f"<|user|>\nIs it blue?\n<|assistant|>\nyes{end}\n"
    assert "\n" not in offer.reason
