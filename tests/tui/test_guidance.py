"""Help, reasons and words: every field explains itself, in plain words, with the number it rests on."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import ollama_tune.core.data
from ollama_tune.core.data.chat.notes import NOTES
from ollama_tune.core.data.rows.clean import CHECKS
from ollama_tune.core.data.rows.wholes import DUPLICATE, HELD_OUT_COPY, NEAR_DUPLICATE
from ollama_tune.core.data.schemas.preferences import TROUBLES
from ollama_tune.core.data.values import OTHER_VERSION
from ollama_tune.core.models.catalogue import catalogue, spec_of
from ollama_tune.core.paths import asset
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.cards import CARDS, gpu_of
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.values import Choice
from ollama_tune.tui.fields import FIELDS, FIRST, MORE
from ollama_tune.tui.help_texts import help_text
from ollama_tune.tui.screens.data_columns import REMOTE, WHOLE
from ollama_tune.tui.state import REVIEW, SETTINGS, STEPS
from ollama_tune.tui.widgets.problems import what_to_do
from tests.cases import CHAT, SHORT, TINY, lengths, machine
from tests.tui.conftest import Corner, gpu_machine, settled, shown

# Help

PARTS = ("**What it is.**", "**When to change it.**")


@pytest.mark.parametrize(
    "path", [field.path for field in (*FIRST, *MORE, *(field for field, _ in WHOLE + REMOTE))]
)
def test_every_field_says_what_it_is_what_other_values_do_and_when_to_change_it(path: str) -> None:
    text = help_text(*path.split("."))
    assert all(part in text for part in PARTS), text
    assert text.count("**") >= 6 or path.startswith("data."), "nothing says what another value does"


@pytest.mark.parametrize("heading", ["columns", "labels", "problems", "table", "text", "path"])
def test_every_part_of_the_data_step_has_help(heading: str) -> None:
    assert "**What it is.**" in help_text("data", heading)


def kinds_of_problems() -> set[str]:
    """The kinds that the data room names: the first words of what notes a problem."""
    found = {check.kind for check in CHECKS} | set(NOTES) | {DUPLICATE, NEAR_DUPLICATE, HELD_OUT_COPY}
    found |= set(TROUBLES)
    for file in Path(ollama_tune.core.data.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found |= set(_kinds(node))
    return found


def _kinds(node: ast.AST) -> Iterator[str]:
    """Of a call that notes a problem, and of a kind and its sentence in one tuple."""
    if isinstance(node, ast.Call) and node.args:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        yield from _texts(node.args[0]) if name in ("warn", "set_aside", "Unusable", "Found") else ()
    if isinstance(node, ast.Tuple) and len(node.elts) in (2, 3):
        found = list(_texts(node.elts[0]))
        wordy = isinstance(
            node.elts[-1], ast.Name | ast.JoinedStr | ast.Constant | ast.BoolOp | ast.Subscript
        )
        yield from (kind for kind in found if wordy and re.fullmatch(r"[a-z]+(-[a-z]+)+|majority", kind))


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))


def test_every_problem_of_the_data_says_what_it_means_what_becomes_of_it_and_what_to_do() -> None:
    kinds = kinds_of_problems()
    assert len(kinds) > 80 and {"bad-line", "duplicate", "secret", "rare-labels", "too-long"} <= kinds
    parts = ("**What it means.**", "**What becomes of it.**", "**What to do.**")
    lacking = [kind for kind in kinds if any(part not in help_text("problems", kind) for part in parts)]
    assert lacking == []
    assert all(what_to_do(kind) for kind in kinds)


def test_the_help_of_problems_explains_no_kind_that_is_gone() -> None:
    text = asset("help/problems.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) - kinds_of_problems() == {
        "labels",
        OTHER_VERSION,
    }


@pytest.mark.parametrize("step", range(1, REVIEW + 1))
async def test_the_help_of_whatever_has_the_focus_is_there(step: int, corner: Corner) -> None:
    corner.rows.write_text(corner.rows.read_text() + "{broken\n")
    app = corner.app(step, machine=gpu_machine)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press(*["m"] * (step == SETTINGS))
        await settled(pilot)
        told = set()
        for widget in app.screen.focus_chain:
            widget.focus(scroll_visible=False)
            await pilot.pause()
            topic = app.screen.help_topic()  # type: ignore[attr-defined]
            assert len(help_text(*topic)) > 60, (widget, topic)
            told.add(topic)
    assert len(told) >= {1: 1, 2: 2, 3: 4, 4: len(FIELDS), 5: 1}[step]


# Reasons

BOXES = {card.name: replace(machine(gpu=24).gpu, gpus=(gpu_of(card.name),)) for card in CARDS[::7]}
DATA = {"short": SHORT, "chat": CHAT, "few": lengths(12), "many": lengths(100_000, 400, 200, 4000, 900)}
BY_FIGURES = (rules.DATA, rules.MACHINE, rules.MODEL, rules.MEMORY, rules.TINKER, rules.QLORA)
WITHOUT_A_NUMBER = {path for path in FIELDS if path.endswith((".targets", ".path", ".push"))}


def choices() -> Iterator[tuple[str, Choice]]:
    """What is recommended for listed models on cards of all sizes, and on processors."""
    boxes = [machine(), machine(ram=4), *(replace(machine(), gpu=report) for report in BOXES.values())]
    models = [TINY, *(spec_of(model) for model in catalogue()[::4])]
    for box, model, data in itertools.product(boxes, models, DATA.values()):
        plan = make_plan(box, model, data, {})
        yield from ((path, choice) for path, choice in plan.choices.items() if path in FIELDS)


@pytest.fixture(scope="module")
def recommended() -> set[tuple[str, str, str]]:
    """Path, reason and source of all of them, each once."""
    found = {(path, choice.reason, choice.source) for path, choice in choices()}
    assert {path for path, _, _ in found} == set(FIELDS)
    return found


def test_every_reason_is_short_and_names_the_number_it_rests_on(
    recommended: set[tuple[str, str, str]],
) -> None:
    for path, reason, source in recommended:
        assert 3 <= len(reason) <= 80 and "…" not in reason, (path, reason)
        if source in BY_FIGURES and path not in WITHOUT_A_NUMBER:
            assert re.search(r"\d", reason), (path, reason)


# Words

JARGON = (
    *(
        "rank",
        "alpha",
        "packing",
        "dropout",
        "gradient",
        "quantiz",
        "qlora",
        "lora",
        "nf4",
        "peft",
        "optimizer",
    ),
    *("safetensors", "logit", "perplexity", "adamw", "warm-up", "scheduler", "kl", "gflop", "tflop", "bpe"),
    *("bfloat16", "float32", "checkpointing", "logarithmic", "epoch", "hyperparameter", "hidden size"),
    "weight decay",
)
"""Words that need an explanation beside them, in brackets."""
ONE_TERM = (
    *("dataset", "fine-tun", "finetun", "hyperparameter", "datapoint", "vram", "huggingface"),
    *("validation set", "validation rows", "context window", "max length", "video card"),
)
"""Other words for data set, tune, setting, row, GPU memory, hub, held-out rows, sequence length and GPU."""
FIGURE = re.compile(r"(?<![\w.,/:-])\d{5,}(?![\w.])")
"""A number of five digits and more without separators."""


def unexplained(text: str) -> list[str]:
    """The jargon of a text that no brackets beside it explain."""
    plain = re.sub(r"\([^)]*\)", "()", text.lower())
    return [word for word in JARGON if re.search(rf"\b{re.escape(word)}(?!\w* \(\))", plain)]


def test_brackets_explain_and_nothing_else_does() -> None:
    assert unexplained("3 epochs (passes over all rows)") == []
    assert unexplained("a small add-on (LoRA, rank 16)") == []
    assert unexplained("LoRA of rank 16, alpha 32") == ["rank", "alpha", "lora"]


def first_level() -> Iterator[tuple[str, str]]:
    """Labels with their units and words, and the first paragraph of their help."""
    for field in FIRST:
        words = ", ".join(words for _, words in field.words)
        yield field.path, f"{field.label} ({field.unit}) {words}"
        yield field.path, help_text(*field.path.split(".")).split("\n\n")[0]
    for step in STEPS[:REVIEW]:
        yield step.title, help_text("screens", step.title).split("\n\n")[0]


@pytest.mark.parametrize(("where", "text"), list(first_level()))
def test_the_first_level_explains_its_words(where: str, text: str) -> None:
    assert unexplained(text) == [], where


def test_reasons_of_the_first_level_use_no_jargon(recommended: set[tuple[str, str, str]]) -> None:
    first = {field.path for field in FIRST}
    assert [(path, reason) for path, reason, _ in recommended if path in first and unexplained(reason)] == []


def all_help() -> list[Path]:
    return sorted(asset("help").glob("*.md"))


@pytest.mark.parametrize("file", all_help(), ids=lambda file: file.stem)
def test_one_thing_has_one_name_in_the_help(file: Path) -> None:
    text = file.read_text(encoding="utf-8").lower()
    assert [word for word in ONE_TERM if word in text] == []


def painted(text: str) -> str:
    """A screen without what is for those who ask for it: technical rows and what stands below More."""
    kept, more = [], False
    for line in text.splitlines():
        more = more or line.strip() == "More"
        if not (more or line.lstrip().startswith("Technical")):
            kept.append(line)
    return "\n".join(kept)


@pytest.mark.parametrize("step", range(1, REVIEW + 1))
async def test_no_setup_screen_shows_jargon_or_bare_figures(step: int, corner: Corner) -> None:
    app = corner.app(step, machine=gpu_machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = painted(shown(app))
    sources = "|".join(map(re.escape, (rules.QLORA, rules.LWR, rules.TINKER)))
    text = re.sub(rf"\[({sources})\]", "", text)
    text = re.sub(r"Epochs .*passes over all rows|File for Ollama.*", "", text)
    assert unexplained(" ".join(text.split())) == []
    assert FIGURE.findall(text.replace(str(corner.home), "")) == []
    assert [word for word in ONE_TERM if word in text.lower()] == []
