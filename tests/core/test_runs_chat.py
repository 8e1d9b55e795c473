"""The chat form of a run on a base model: named by the settings, stored once, refused where open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.models.chat_templates import offer_template
from ollama_tune.core.plan.prepare import prepare
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.chat import run_chat, store_chat
from ollama_tune.core.runs.folder import RunFolder
from tests.tiny import CHAT_TEMPLATE, build_model, build_tokenizer

ASKED = [Message("user", "Is it blue?")]


def base(folder: Path, **values: str) -> Path:
    """A model folder's tokenizer that ends texts with <|endoftext|>; `values` go into its config."""
    build_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"} | values))
    return folder


def run(path: Path, form: str | None) -> RunFolder:
    path.mkdir()
    folder = RunFolder(path)
    Settings().with_value("model.chat_template", form).save(folder.settings_path)
    return folder


def test_the_named_form_is_stored_and_kept_whatever_the_base_says_later(tmp_path: Path) -> None:
    folder, model = run(tmp_path / "run", "plain roles"), base(tmp_path / "base")
    offer = offer_template(model)
    assert offer is not None
    chat = store_chat(folder, model)
    assert chat.original == offer.template
    assert folder.chat_template_path.read_text() == chat.template
    assert chat.render(ASKED, add_generation_prompt=True) == "<|user|>\nIs it blue?\n<|assistant|>\n"
    base(model, chat_template=CHAT_TEMPLATE)
    assert run_chat(folder, model).render(ASKED) == chat.render(ASKED)


@pytest.mark.parametrize("form", [None, "ChatML"])
def test_a_base_model_without_its_form_is_refused_and_the_offer_named(
    tmp_path: Path, form: str | None
) -> None:
    folder = run(tmp_path / "run", form)
    with pytest.raises(UsageError, match="chat") as caught:
        store_chat(folder, base(tmp_path / "base"))
    assert "Set model.chat_template to 'plain roles' (Roles as plain words" in caught.value.fix
    assert not folder.chat_template_path.exists()


def test_a_chat_model_keeps_its_own_form(tmp_path: Path) -> None:
    model = base(tmp_path / "base", chat_template=CHAT_TEMPLATE)
    assert "<|im_start|>user" in store_chat(run(tmp_path / "one", None), model).render(ASKED)
    with pytest.raises(UsageError, match="a chat form of its own"):
        store_chat(run(tmp_path / "two", "plain roles"), model)


def test_a_model_that_nothing_can_be_offered_to_says_so(tmp_path: Path) -> None:
    model = base(tmp_path / "base", eos_token="")
    with pytest.raises(TuneError, match="base model without a chat template") as caught:
        store_chat(run(tmp_path / "run", None), model)
    assert "Choose a chat model" in caught.value.fix
    with pytest.raises(UsageError, match="base model without a chat template"):
        store_chat(run(tmp_path / "other", "plain roles"), model)


def test_a_plan_counts_the_rows_in_the_named_form(tmp_path: Path) -> None:
    model = build_model(tmp_path / "model")
    base(model)
    with pytest.raises(UsageError, match="base model"):
        prepare(str(model), "bundled", {})
    plan = prepare(str(model), "bundled", {"model.chat_template": "plain roles"})
    assert plan.settings.model.chat_template == "plain roles"
