"""The steps This machine, Model and Data on real rooms."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import OptionList

from ollama_tune.core.machine.values import Machine
from ollama_tune.tui.screens.data import DataScreen
from ollama_tune.tui.screens.settings import SettingsScreen
from ollama_tune.tui.widgets.filepicker import FilePicker
from ollama_tune.tui.widgets.form import TextField
from tests.tui.conftest import GIB, Corner, cpu_machine, gpu_machine, settled, shown

NASTY = "[/foo] [bold]x\x1b[2J\x1b]52;c;aGk=\x07 \u202eabc\u202c [red"


def words(text: str) -> str:
    return " ".join(text.split())


async def test_the_machine_step_shows_the_gpu_who_holds_it_and_ollama(corner: Corner) -> None:
    app = corner.app(machine=gpu_machine)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = words(shown(app))
    for part in (
        "Example RTX 24 GB driver 560.35, drives a display",
        "20.0 GiB free of 24.0 GiB",
        "ollama (process 4711) holds 3.0 GiB of the GPU.",
        "Ollama keeps llama3:8b loaded: 3.0 GiB of GPU memory.",
        "16 cores",
        "48.0 GiB free of 64.0 GiB",
        "✓ Ollama 0.12.3 answers",
        "u lets it unload llama3:8b.",
    ):
        assert part in text


async def test_a_box_without_gpu_and_ollama_is_told_plainly(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = words(shown(app))
    assert "There is no NVIDIA driver here" in text
    assert "Training on the CPU is fine for small models." in text
    assert "No Ollama answers" in text
    assert "leaves the model file and the commands" in text


async def test_r_looks_at_the_machine_again(corner: Corner) -> None:
    free = [24 * GIB]

    def probe() -> Machine:
        return cpu_machine(free[0])

    app = corner.app(machine=probe)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        free[0] = 3 * GIB
        await pilot.press("r")
        await settled(pilot)
        assert "3.0 GiB free of 32.0 GiB" in shown(app)


async def test_names_of_devices_cannot_write_to_the_terminal(corner: Corner) -> None:
    box = gpu_machine()
    gpu = replace(box.gpu.gpus[0], name=NASTY, processes=(replace(box.gpu.gpus[0].processes[0], name=NASTY),))
    box = replace(box, gpu=replace(box.gpu, gpus=(gpu,)), ollama=replace(box.ollama, version=NASTY))
    app = corner.app(machine=lambda: box)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = shown(app)
    assert "[/foo] [bold]x␛[2J" in text
    assert not set(text) & set("\x1b\x07\u202e")


async def test_the_chosen_model_is_described(corner: Corner) -> None:
    app = corner.app(step=2)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = words(shown(app))
    assert "✓ tiny can be tuned." in text
    assert "LlamaForCausalLM: 2 layers, width 64" in text
    assert "Chat form ✓ the model brings its own" in text
    assert "Reads up to 512 tokens (pieces of words) at once" in text
    assert "tokenizer: BPE, 376 entries" in text
    assert "Expect shows how everything works" in text and "Here ✓ trains in" in text
    assert "✓ can be exported to Ollama" in text


async def test_a_typed_folder_is_read_first_and_the_next_enter_goes_on(corner: Corner) -> None:
    app = corner.app(step=2, model="bundled")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("tab", *"~/tiny".replace("~", str(corner.home)), "enter")
        await settled(pilot)
        assert "✓ tiny can be tuned." in shown(app)
        assert app.answers.model == str(corner.model)
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)


async def test_a_bad_folder_is_explained_below_the_line_and_next_is_dimmed(corner: Corner) -> None:
    (corner.home / "empty").mkdir()
    app = corner.app(step=2)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        line = app.screen.query_one("#source", TextField)
        line.focus()
        line.value = str(corner.home / "empty")
        await pilot.press("enter")
        await settled(pilot)
        text = words(shown(app))
        assert "✗" in text
        assert "has no config.json" in text
        assert app.screen.dims("next")  # type: ignore[attr-defined]
        await pilot.press("enter")
        await settled(pilot)
        assert "Step 2 of 9" in shown(app)
        shutil.copytree(corner.model, corner.home / "empty", dirs_exist_ok=True)
        await pilot.press("enter")
        await settled(pilot)
        assert "✓ empty can be tuned." in shown(app)


async def test_the_arrows_choose_from_the_list(corner: Corner) -> None:
    app = corner.app(step=2)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        app.screen.query_one("#models", OptionList).focus()
        await pilot.press("home")
        await settled(pilot)
        assert app.answers.model == "bundled"
        assert "● Bundled" in shown(app)
        assert app.screen.query_one("#source", TextField).value == ""


async def test_a_model_folder_with_a_nasty_name_and_text_is_shown_harmlessly(corner: Corner) -> None:
    folder = corner.home / "[bold]m\x1b[2J"
    shutil.copytree(corner.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "README.md").write_text(f"---\nlicense: '{NASTY[:14]}'\n---\n")
    (folder / "config.json").write_text(json.dumps(config))
    app = corner.app(step=2, model=str(folder))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = shown(app)
    assert "[bold]m␛[2J" in text
    assert "\x1b" not in text


async def test_the_data_step_shows_format_rows_problems_and_the_trained_text(corner: Corner) -> None:
    with corner.rows.open("a") as file:
        file.write("not json\n")
    app = corner.app(step=3)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = words(shown(app))
        assert "✓ 40 rows of 41 · JSONL" in text
        assert "(line 41)" in text
        assert "What is the colour of bird 0? → Bird 0 is blue." in text
        content = app.screen.query_one("#text").content  # type: ignore[attr-defined]
    assert "trained: learned by the model" in text
    trained = "".join(
        content.plain[span.start : span.end] for span in content.spans if "underline" in str(span.style)
    )
    assert trained == "Bird 0 is blue.<|im_end|>"


async def test_another_row_is_rendered_when_the_cursor_moves(corner: Corner) -> None:
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("tab", "tab", "down", "down")
        await settled(pilot)
        assert "Bird 2 is blue.<|im_end|>" in shown(app)
        await pilot.press("end")
        await settled(pilot)
        assert "Bird 39 is blue.<|im_end|>" in shown(app)


async def test_rows_full_of_markup_and_controls_are_shown_as_they_are(corner: Corner) -> None:
    row = {"messages": [{"role": "user", "content": NASTY}, {"role": "assistant", "content": NASTY}]}
    corner.rows.write_text((json.dumps(row) + "\n") * 12)
    app = corner.app(step=3)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        text = shown(app)
    assert "[/foo] [bold]x␛[2J␛]52;c;aGk=␇" in text
    assert "<U+202E>abc" in text
    assert not set(text) & set("\x1b\x07\u202e")


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no file"), ("", "empty"), ('{"a": 1}\n', "columns"), ("\x00\x01\x02", "✗")],
)
async def test_a_file_that_is_no_data_is_explained_on_the_step(
    corner: Corner, content: str | None, says: str
) -> None:
    path = corner.home / "bad [x].jsonl"
    if content is not None:
        path.write_text(content)
    app = corner.app(step=3, data=str(path))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = words(shown(app))
        assert "✗" in text
        assert says in text.lower() or says in text
        await pilot.press(*["escape"] * (says == "columns"), "enter")
        await settled(pilot)
        assert isinstance(app.screen, DataScreen)


async def test_a_typed_path_is_taken_and_the_plan_follows(corner: Corner) -> None:
    app = corner.app(step=3, data="bundled")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        app.screen.query_one("#path", TextField).value = "~/rows.jsonl"
        await pilot.press("enter")
        await settled(pilot)
        assert app.answers.data == str(corner.rows)
        assert "40 rows" in shown(app)
        await pilot.press("enter")
        await settled(pilot)
        assert isinstance(app.screen, SettingsScreen)
        assert app.facts.plan is not None
        assert app.facts.plan.settings.data.path == str(corner.rows)


async def test_the_file_picker_goes_through_folders_and_takes_a_file(corner: Corner) -> None:
    folder = corner.home / "[data] x"
    folder.mkdir()
    target = folder / "more.jsonl"
    shutil.copy(corner.rows, target)
    app = corner.app(step=3)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+o")
        await pilot.pause()
        assert isinstance(app.screen, FilePicker)
        assert "[data] x/" in shown(app)
        await pilot.press("home", "enter")
        assert "more.jsonl" in shown(app)
        await pilot.press("backspace")
        assert "rows.jsonl" in shown(app)
        await pilot.press("enter", "enter")
        await settled(pilot)
        assert app.answers.data == str(target)
        await pilot.press("ctrl+o")
        await pilot.press("escape")
        await settled(pilot)
        assert app.answers.data == str(target)


def test_a_path_below_home_is_shown_with_a_tilde(corner: Corner) -> None:
    from ollama_tune.tui.text import tilde

    assert tilde(corner.home / "a\x1b.jsonl") == "~/a␛.jsonl"
    assert tilde(Path("/etc/x")) == "/etc/x"
    assert tilde(str(corner.home) + "x") == str(corner.home) + "x"
