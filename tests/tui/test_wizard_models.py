"""The step Model: the list with its recommendation, the hub, and the chat form of a base model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import OptionList

from ollama_tune.tui.screens.data import DataScreen
from ollama_tune.tui.screens.model import ModelScreen
from tests.core.hub import Hub, online
from tests.tui.conftest import Corner, gpu_machine, make_base, settled, shown

SMALLEST = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def hub(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the smallest listed model: the corner's own."""
    monkeypatch.setenv("HF_HUB_CACHE", str(corner.home / "cache"))
    with online(corner.model, monkeypatch) as hub:
        hub.repository = SMALLEST
        yield hub


def words(text: str) -> str:
    return " ".join(text.split())


async def test_the_recommended_base_stands_second_with_its_reason(corner: Corner) -> None:
    app = corner.app(step=2, model="bundled", machine=gpu_machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        lines = [line.strip() for line in shown(app).splitlines()]
    base = app.facts.base
    assert base is not None
    assert lines[2].startswith("● Bundled demo model")
    assert lines[3].startswith(f"○ {base.value.id}") and "★ " in lines[3] and "recommended" in lines[3]
    assert words(f"★ {base.value.name} suits this machine: {base.reason}") in words(" ".join(lines))


async def test_enter_on_the_first_line_goes_on_with_the_bundled_model(corner: Corner) -> None:
    app = corner.app(step=2, model="bundled", machine=gpu_machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)
    assert app.answers.model == "bundled"


async def test_a_listed_model_is_looked_at_without_the_hub_and_read_on_enter(
    corner: Corner, hub: Hub
) -> None:
    (corner.model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    app = corner.app(step=2, model="bundled")
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        models = app.screen.query_one("#models", OptionList)
        assert isinstance(app.screen, ModelScreen)
        models.focus()
        models.highlighted = app.screen._sources.index(SMALLEST)
        await settled(pilot)
        text = words(shown(app))
        assert "134.5 M, about 256.6 MiB to download" in text
        assert "Licence apache-2.0" in text and "Here trains in" in text and "for your rows" in text
        assert "Expect one narrow task with short answers, such as labels" in text
        assert "Enter asks the hub for its small files" in text
        assert (hub.requests, app.answers.model) == ([], "bundled")
        await pilot.press("enter")
        await settled(pilot)
        text = words(shown(app))
        assert app.answers.model == SMALLEST and f"● {SMALLEST}" in text
        assert "✓ SmolLM2-135M-Instruct can be tuned." in text
        assert "tokenizer: BPE, 376 entries" in text
        assert "KiB when the run starts" in text
        assert not any("model.safetensors" in asked and "bytes=0-" not in asked for asked in hub.requests)
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)


async def test_what_is_in_the_way_of_a_listed_model_is_said(corner: Corner) -> None:
    app = corner.app(step=2, model="bundled", machine=gpu_machine)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        models = app.screen.query_one("#models", OptionList)
        models.focus()
        await pilot.press("end")
        await settled(pilot)
        text = words(shown(app))
    assert "Llama-3.3-70B-Instruct" in text and "licence to accept" in text
    assert "Licence llama3.3; it has to be accepted on the hub" in text
    assert "! Not recommended here:" in text and "to train" in text


async def test_an_unreachable_hub_is_explained_and_another_model_can_be_taken(
    corner: Corner, hub: Hub
) -> None:
    hub.failing = 500
    app = corner.app(step=2, model="bundled")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        app.screen.query_one("#models", OptionList).focus()
        await pilot.press("down", "enter")
        await settled(pilot)
        assert "✗" in shown(app) and isinstance(app.screen, ModelScreen)
        await pilot.press("home", "enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)
    assert app.answers.model == "bundled"


async def test_too_little_room_for_a_download_is_marked(corner: Corner, hub: Hub) -> None:
    small = replace(gpu_machine(), models_disk=replace(gpu_machine().disk, free=1000))
    app = corner.app(step=2, model=SMALLEST, machine=lambda: small)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "✗ 193.7 KiB when the run starts, 1000 B free" in words(shown(app))


async def test_a_base_model_is_offered_a_chat_form_and_enter_takes_it(corner: Corner) -> None:
    make_base(corner.model)
    app = corner.app(step=2)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = words(shown(app))
        assert "Enter takes “plain roles”: Roles as plain words" in text
        assert "Chat form none; offered: plain roles" in text
        assert app.facts.plan is None and not app.screen.dims("next")  # type: ignore[attr-defined]
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)
        assert "<|user|>" in shown(app) and "<|assistant|>" in shown(app)
        assert app.facts.plan is not None
        assert app.facts.plan.settings.model.chat_template == "plain roles"
        await pilot.press("escape")
        await settled(pilot)
        assert "Chat form none; taken: plain roles" in words(shown(app))
    assert app.answers.template == "plain roles"


async def test_an_offer_that_was_passed_over_is_said_on_the_later_steps(corner: Corner) -> None:
    make_base(corner.model)
    app = corner.app(step=5)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "The step Model offers one; Enter takes it there." in words(shown(app))


async def test_the_form_of_one_model_is_not_carried_to_the_next(corner: Corner) -> None:
    make_base(corner.model)
    other = Path(shutil.copytree(corner.model, corner.home / "other"))
    make_base(other, "<|im_end|>")
    app = corner.app(step=2, template="plain roles")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert app.facts.plan is not None
        app.choose_model(str(other))
        await settled(pilot)
        assert app.answers.template is None
        assert "Enter takes “ChatML”: ChatML, as the model ends its texts" in words(shown(app))
        app.choose_model("bundled")
        await settled(pilot)
        assert app.facts.plan is not None
        assert app.facts.plan.settings.model.chat_template is None


async def test_a_base_model_that_nothing_can_be_offered_to_is_refused(corner: Corner) -> None:
    make_base(corner.model, "")
    app = corner.app(step=2)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "✗ This is a base model without a chat template" in words(shown(app))
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, ModelScreen)
