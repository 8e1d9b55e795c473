"""The steps Settings and Review: values, reasons, validation, estimates, the command and the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.settings import field_paths, load, parse
from ollama_tune.core.plan.values import Offer
from ollama_tune.core.runs.folder import list_runs
from ollama_tune.tui import fields
from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.help_texts import help_text
from ollama_tune.tui.screens import settings
from ollama_tune.tui.screens.review import ReviewScreen
from ollama_tune.tui.state import READING, STEPS
from ollama_tune.tui.widgets.confirm import TypedConfirmScreen
from ollama_tune.tui.widgets.form import FieldRow, TextField
from ollama_tune.tui.widgets.help import HelpScreen
from tests.cases import SHORT, TINY
from tests.tui.conftest import Corner, cpu_machine, gpu_machine, settled, shown
from tests.tui.run_logs import until

CLEAR = ("home", *["delete"] * 40)


def row(app: TuneApp, path: str) -> FieldRow:
    return app.screen.query_one("#field-" + path.replace(".", "-"), FieldRow)


async def test_each_field_of_the_first_level_has_a_value_and_its_reason(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text, plan = shown(app), app.facts.plan
        assert plan is not None
        for field in fields.FIRST:
            assert field.label in text
            assert plan.choices[field.path].reason[:60] in text
            assert len(plan.choices[field.path].reason) <= 80


async def test_a_changed_value_is_marked_moves_the_estimate_and_can_be_restored(corner: Corner) -> None:
    app = corner.app(step=4, machine=gpu_machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        before = app.facts.plan
        assert before is not None
        row(app, "training.batch_size").editor.focus()
        await pilot.press(*CLEAR, "9")
        await settled(pilot)
        plan, text = app.facts.plan, shown(app)
        assert plan is not None
        assert plan.settings.training.batch_size == 9
        assert plan.memory.needed > before.memory.needed
        assert f"changed, recommended: {before.settings.training.batch_size}" in text
        assert "why recommended: " in text
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert app.facts.plan == before
        assert "changed, recommended" not in shown(app)


async def test_the_estimate_follows_every_key(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        row(app, "training.epochs").editor.focus()
        await pilot.press(*CLEAR)
        for key in "567":
            await pilot.press("backspace", key)
            await until(
                pilot,
                lambda key=key: app.facts.plan and app.facts.plan.settings.training.epochs == float(key),
            )


async def test_a_wrong_value_is_told_when_the_field_is_left_not_while_it_is_typed(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        row(app, "training.batch_size").editor.focus()
        await pilot.press(*CLEAR, "0")
        await settled(pilot)
        assert "✗ This must" not in shown(app)
        await pilot.press("tab")
        await settled(pilot)
        assert "✗ This must be a whole number from 1 to 4,096, for example" in shown(app)
        assert app.screen.dims("next")  # type: ignore[attr-defined]


async def test_enter_on_a_wrong_value_keeps_the_focus_and_goes_nowhere(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        field = row(app, "export.name")
        field.editor.focus()
        await pilot.press(*CLEAR, *"my", "space", *"model", "enter")
        await settled(pilot)
        text = shown(app)
        assert "may not contain a space" in text, text
        assert "Mend this first: Name in Ollama." in text
        assert field.editor.has_focus
        assert isinstance(app.screen, settings.SettingsScreen)
        await pilot.press(*CLEAR, *"my-model", "enter")
        await settled(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert app.answers.changed["export.name"] == "my-model"


async def test_letters_are_keys_in_a_number_field_and_text_in_a_name(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("m")
        await settled(pilot)
        assert len(app.screen.query(FieldRow)) == len(fields.FIELDS)
        await pilot.press("m")
        await settled(pilot)
        assert len(app.screen.query(FieldRow)) == len(fields.FIRST)
        editor = row(app, "export.name").editor
        assert isinstance(editor, TextField)
        editor.focus()
        await pilot.press(*CLEAR, *"mq?")
        assert editor.value == "mq?"


async def test_a_choice_turns_with_the_arrows(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        row(app, "training.quantization").editor.focus()
        await pilot.press("right")
        await settled(pilot)
        assert app.facts.plan is not None
        assert app.facts.plan.settings.training.quantization == "nf4"
        assert "4 bit (NF4)" in shown(app)


async def test_help_explains_the_focused_field(corner: Corner) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        row(app, "training.learning_rate").editor.focus()
        await pilot.press("f1")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        assert "How far the adapter moves at each step" in shown(app)
        await pilot.press("escape")
        await pilot.press("?")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)


def test_every_field_and_every_step_has_help() -> None:
    assert [path for path in field_paths() if not help_text(*path.split("."))] == []
    assert [step.title for step in STEPS if not help_text("screens", step.title)] == []


def test_every_setting_can_be_reached_in_the_form() -> None:
    elsewhere = {"model.source", "model.revision", "model.chat_template", "data.path"}
    elsewhere |= {f"data.{name}" for name in READING}
    assert set(field_paths()) - elsewhere == set(fields.FIELDS)


PLAN = make_plan(cpu_machine(), TINY, SHORT, {"training.epochs": 2.0})


@pytest.mark.parametrize(
    ("path", "typed", "value"),
    [
        ("training.epochs", " 2.5 ", 2.5),
        ("training.rank", "64", 64),
        ("training.learning_rate", "1e-4", 1e-4),
        ("training.targets", "q_proj, v_proj", ["q_proj", "v_proj"]),
        ("training.targets", "all-linear", "all-linear"),
        ("export.name", "  ", None),
    ],
)
def test_typed_text_becomes_a_value(path: str, typed: str, value: object) -> None:
    field = fields.FIELDS[path]
    checked = fields.check(PLAN, field, fields.value_of(field, typed))
    assert checked == value
    assert fields.value_of(field, fields.text_of(field, checked)) is not None or value is None


@pytest.mark.parametrize(
    ("path", "typed", "says"),
    [
        ("training.rank", "0", "a whole number from 1 to 512, for example 16."),
        ("training.epochs", "0", "a number above 0 and up to 1000, for example 2."),
        ("training.dropout", "1", "a number from 0 and below 1, for example 0."),
        ("training.weight_decay", "x", "a number from 0 to 1, for example 0."),
        ("training.evaluation_interval", "-1", "a whole number from 0 up, for example "),
        ("training.max_gradient_norm", "0", "a number above 0, for example 1."),
        ("training.compute_dtype", "float16", "float16 needs a GPU"),
        ("export.name", "a/b/c/d", "Ollama name"),
    ],
)
def test_what_is_allowed_is_said_in_one_sentence_with_an_example(path: str, typed: str, says: str) -> None:
    field = fields.FIELDS[path]
    with pytest.raises(UsageError) as caught:
        fields.check(PLAN, field, fields.value_of(field, typed))
    assert says in caught.value.what


@pytest.mark.parametrize("method", [value for value, _ in fields.METHODS])
def test_every_method_can_be_chosen_whatever_is_recommended(method: str) -> None:
    assert PLAN.settings.export.name
    assert fields.check(PLAN, fields.FIELDS["training.method"], method) == method
    given = {path: PLAN.settings.get(path) for path in PLAN.changed} | {"training.method": method}
    made = make_plan(cpu_machine(), TINY, SHORT, given)
    assert parse(made.settings.model_dump()).training.method == method


def test_what_does_not_go_with_another_value_of_the_person_is_refused() -> None:
    named = make_plan(cpu_machine(), TINY, SHORT, {"export.name": "kitchen"})
    with pytest.raises(UsageError, match="no place for the soft prompt") as caught:
        fields.check(named, fields.FIELDS["training.method"], "prompt")
    assert "The setting" not in caught.value.what


def test_every_value_fits_into_its_field() -> None:
    for field in fields.FIELDS.values():
        longest = max((len(words) for _, words in field.words), default=0)
        assert longest + len("‹  ›") <= field.width, field.path


async def test_review_shows_everything_and_a_command_that_works_as_it_stands(corner: Corner) -> None:
    app = corner.app(step=5)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = " ".join(shown(app).split())
        command = app.screen.command()  # type: ignore[attr-defined]
        plan = app.facts.plan
    assert plan is not None
    for part in (
        "tiny",
        "~/rows.jsonl, 40 rows",
        "epochs",
        "✓ fits",
        "steps",
        "for checkpoints",
        "~/tune-home",
    ):
        assert part in text
    assert command in text
    assert load(Path(command.removeprefix("ollama-tune run ")).expanduser()) == plan.settings
    assert list_runs() == []


async def test_w_writes_run_yaml_here_and_never_over_another(corner: Corner) -> None:
    (corner.home / "run.yaml").write_text("mine")
    app = corner.app(step=5)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("w")
        await settled(pilot)
        assert "ollama-tune run ~/run-2.yaml" in shown(app)
        assert app.facts.plan is not None
        assert load(corner.home / "run-2.yaml") == app.facts.plan.settings
    assert (corner.home / "run.yaml").read_text() == "mine"


async def test_a_plan_that_does_not_fit_starts_only_after_a_typed_yes(corner: Corner) -> None:
    app = corner.app(step=5, machine=lambda: cpu_machine(64 << 20))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "✗ does not fit" in shown(app)
        for answer in ("", "y", "no"):
            await pilot.press("enter")
            await pilot.pause()
            assert isinstance(app.screen, TypedConfirmScreen)
            await pilot.press(*answer, "enter")
            await settled(pilot)
            assert isinstance(app.screen, ReviewScreen)
    assert list_runs() == []


async def test_f_takes_the_nearest_plan_that_fits(corner: Corner) -> None:
    changed = {"training.batch_size": 4096, "training.epochs": 5.0, "training.sequence_length": 512}
    app = corner.app(step=5, machine=lambda: cpu_machine(540 << 20), changed=changed)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert app.facts.plan is not None
        assert not app.facts.plan.memory.fits
        assert "f Make it fit" in shown(app)
        assert "1 batch_size 4,096 →" in shown(app)
        (offer, *_) = app.facts.plan.offers
        await pilot.press("9")
        await pilot.press("f")
        await settled(pilot)
        assert app.facts.plan.memory.fits
        assert app.facts.plan.memory == offer.memory
        assert dict(app.answers.changed) == changed | dict(offer.changes)
        assert app.answers.changed["training.epochs"] == 5.0
        assert "f Make it fit" not in shown(app)


async def test_a_number_takes_its_offer_and_another_model_is_read(corner: Corner) -> None:
    app = corner.app(step=5, machine=lambda: cpu_machine(540 << 20), changed={"training.batch_size": 4096})
    async with app.run_test(size=(100, 40)) as pilot:
        await settled(pilot)
        assert app.facts.plan is not None
        (offer, *_) = app.facts.plan.offers
        other = Offer({"model.source": "bundled", "training.rank": 8}, "another", offer.memory)
        app.facts = replace(app.facts, plan=replace(app.facts.plan, offers=(offer, other)))
        await settled(pilot)
        assert "2 another" in shown(app)
        await pilot.press("2")
        await settled(pilot)
        assert app.answers.model == "bundled"
        assert app.facts.spec is not None and app.facts.spec.source == "bundled"
        assert app.facts.plan.settings.training.rank == 8


async def test_what_each_reason_rests_on_stands_beside_its_field_and_is_counted_in_the_review(
    corner: Corner,
) -> None:
    app = corner.app(step=4)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = shown(app)
        assert "tokens, longest row [your data]" in text
        assert "rows at once [convention]" in text
        await pilot.press("enter")
        await settled(pilot)
        assert app.facts.plan is not None
        assert f"{len(app.facts.plan.changed)} yours" in " ".join(shown(app).replace("│", "").split())
        assert "by convention" in shown(app)
