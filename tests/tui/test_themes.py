"""Colours: every theme can be read, and the person's choice is kept and found again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from rich.style import Style
from textual.color import Color
from textual.pilot import Pilot

from ollama_tune.core.errors import UsageError
from ollama_tune.core.preferences import Preferences, load_preferences, preferences_path, save_preference
from ollama_tune.tui.app import TuneApp
from ollama_tune.tui.look import THEMES, VARIABLE, Look, find_look
from ollama_tune.tui.themes import OWN, automatic_theme
from tests.tui.conftest import Corner, gpu_machine, settled, shown
from tests.tui.run_logs import Log, alive, at_rest, make_run, open_app, until_text

NORMAL, HIGH, BORDER = 4.5, 7.0, 3.0
BORDERS = "─│╭╮╰╯━┃┏┓┗┛┌┐└┘"
LINES = "".join(map(chr, (*range(0x2500, 0x25A0), *range(0x2800, 0x2900))))
"""Lines, blocks and the dots of curves are no text."""


PLACES = (
    ((*"abc", "shift+home"), "abc"),
    (("tab",), "? Help"),
    (("f2",), "Temperature"),
    (("escape", "f1"), "Keys"),
    (("escape", "ctrl+p", *"never"), "Nothing is called that."),
    (("escape", "ctrl+p", *"show all", "enter"), "Delete"),
    (("home", "space", "space"), "2 runs are marked"),
    (("c",), "x Axis"),
    (("escape", "x"), "Delete run"),
    (("escape", "f", *"on", "shift+home"), "on"),
)
"""Keys from Try it through the windows over it, the list of runs and two compared; what is there then."""


def luminance(color: Color) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [part / 255 for part in (color.r, color.g, color.b)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def pairs(app: TuneApp, drawn: str = "") -> Iterator[tuple[str, str, float, str]]:
    """The colours of every piece of text on the screen as it is painted, or of what is drawn with these
    characters, with their contrast."""
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            style = segment.style or Style()
            words = "".join(
                c for c in segment.text if (c in drawn if drawn else not c.isspace() and c not in LINES)
            )
            inactive = style.strike
            if words and not inactive and style.color is not None and style.bgcolor is not None:
                back, fore = Color.from_rich_color(style.bgcolor), Color.from_rich_color(style.color)
                if style.reverse:
                    back, fore = fore, back
                yield fore.hex, back.hex, contrast(fore, back), words


def too_faint(app: TuneApp, least: float) -> list[str]:
    """What is written below a contrast, and what is drawn around a box below that of borders."""
    faint = [(pair, least) for pair in pairs(app)] + [(pair, BORDER) for pair in pairs(app, BORDERS)]
    return [
        f"{ratio:.2f} {fore} on {back}: {words[:20]}"
        for (fore, back, ratio, words), least in faint
        if ratio < least
    ]


async def faint_anywhere(pilot: Pilot[int]) -> dict[str, list[str]]:
    """What cannot be read on the present screen, theme by theme."""
    app = pilot.app
    assert isinstance(app, TuneApp)
    found = {}
    for theme in OWN:
        app.theme = theme.name
        await pilot.pause()
        await pilot.pause()
        found[theme.name] = too_faint(app, HIGH if theme.name == "high-contrast" else NORMAL)
    return {name: words for name, words in found.items() if words}


async def test_every_text_of_the_setup_can_be_read_in_every_theme(corner: Corner) -> None:
    app = corner.app(1, gpu_machine, changed={"training.epochs": 9.0})
    async with app.run_test(size=(100, 34)) as pilot:
        for step in (1, 2, 3, 4, 5):
            await app.go_to(step)
            await settled(pilot)
            assert f"Step {step} of 9" in shown(app)
            assert await faint_anywhere(pilot) == {}
        for keys in (["question_mark"], ["escape", "ctrl+p"]):
            await pilot.press(*keys)
            assert await faint_anywhere(pilot) == {}


@pytest.mark.parametrize("step", [6, 7, 8, 9])
async def test_every_text_of_a_run_can_be_read_in_every_theme(step: int, corner: Corner) -> None:
    folder = make_run("kitchen")
    log = Log(folder).trained() if step > 6 else Log(folder).training(120).samples(step=100)
    if step == 9:
        log.exported("kitchen")
    with alive(folder) if step == 6 else nullcontext():
        app = open_app(folder, step, gpu_machine)
        async with app.run_test(size=(100, 40)) as pilot:
            await until_text(pilot, f"Step {step} of 9")
            await at_rest(pilot)
            assert await faint_anywhere(pilot) == {}


async def test_runs_compared_and_the_windows_over_them_can_be_read_in_every_theme(corner: Corner) -> None:
    folders = [make_run(name) for name in ("one", "other")]
    for folder in folders:
        Log(folder).trained()
    app = open_app(folders[0], 7, gpu_machine)
    async with app.run_test(size=(100, 34)) as pilot:
        for keys, text in PLACES:
            await pilot.press(*keys)
            await until_text(pilot, text)
            assert await faint_anywhere(pilot) == {}, text


@pytest.mark.parametrize("name", THEMES)
async def test_a_theme_that_is_asked_for_is_there_from_the_first_frame(name: str, corner: Corner) -> None:
    app = corner.app(look=Look(name))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        first = {(fore, back) for fore, back, _, _ in pairs(app)}
        assert app.theme == name
        for other in (next(theme for theme in THEMES if theme != name), name):
            app.theme = other
            await pilot.pause()
            await pilot.pause()
            again = {(fore, back) for fore, back, _, _ in pairs(app)}
            assert (again == first) == (other == name or {other, name} <= {"ansi-dark", "ansi-light"})


async def test_high_contrast_dims_nothing_and_other_themes_do(corner: Corner) -> None:
    app = corner.app(2)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        lowest = {}
        for name in ("dark", "high-contrast"):
            app.theme = name
            await pilot.pause()
            lowest[name] = min(ratio for _, _, ratio, _ in pairs(app))
    assert lowest["dark"] < HIGH <= lowest["high-contrast"]


@pytest.mark.parametrize(
    ("colours", "said", "theme"),
    [
        ("truecolor", "", "dark"),
        ("256", "0;15", "light"),
        ("standard", "15;0", "ansi-dark"),
        ("standard", "0;default;15", "ansi-light"),
        (None, "nonsense", "dark"),
    ],
)
def test_a_theme_is_chosen_by_the_terminal(colours: str | None, said: str, theme: str) -> None:
    assert automatic_theme(colours, {"COLORFGBG": said}) == theme


def test_the_command_goes_before_the_environment_and_both_before_the_file(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_look() == Look()
    save_preference("theme", "light")
    save_preference("mouse", False)
    assert find_look() == Look("light", False)
    monkeypatch.setenv(VARIABLE, "high-contrast")
    assert find_look().theme == "high-contrast"
    assert find_look("ansi-dark", True) == Look("ansi-dark", True)


def test_in_gnu_screen_the_mouse_is_left_alone_unless_it_is_asked_for(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it, screen 4.9 holds Esc back until the next key."""
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("STY", "1234.pts-0.box")
    assert find_look().mouse is False
    assert find_look(mouse=True).mouse is True
    save_preference("mouse", True)
    assert find_look().mouse is True
    preferences_path().unlink()
    monkeypatch.setenv("TMUX", "default,1,0")
    assert find_look().mouse is True


def test_an_unknown_theme_is_an_error_in_a_command_and_a_remark_in_the_file(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="dark, light, high-contrast, ansi-dark, ansi-light"):
        find_look("lite")
    preferences_path().write_text('theme = "lite"\n')
    look = find_look()
    assert look.theme is None
    assert "unknown theme 'lite'" in look.remarks[0]
    monkeypatch.setenv(VARIABLE, "lite")
    with pytest.raises(UsageError):
        find_look()


async def test_remarks_about_the_file_are_shown_and_nothing_is_read_as_markup(corner: Corner) -> None:
    preferences_path().write_text('teme = "light"\n"[/foo]" = 1\n')
    app = corner.app(look=find_look())
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        seen, end = "", time.monotonic() + 300
        while time.monotonic() < end and not ("did you mean theme?" in seen and "[/foo]" in seen):
            await pilot.pause(0.05)
            seen += " ".join(toast.message for toast in app._notifications)
    assert "did you mean theme?" in seen and "[/foo]" in seen


async def test_a_theme_chosen_by_name_is_taken_and_kept(corner: Corner) -> None:
    app = corner.app()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p", *"contrast", "enter")
        await pilot.pause()
        assert app.theme == "high-contrast"
        assert "Kept in" in shown(app)
    assert load_preferences() == (Preferences("high-contrast"), ())
    assert set(THEMES) >= {theme.name for theme in OWN}


async def test_a_choice_that_cannot_be_kept_still_holds(corner: Corner) -> None:
    preferences_path().write_text("theme = ")
    app = corner.app()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p", *"theme light", "enter")
        await pilot.pause()
        assert app.theme == "light"
        assert "could not be written" in " ".join(shown(app).split())
    assert preferences_path().read_text() == "theme = "


@pytest.mark.parametrize("theme", ["ansi-dark", "ansi-light"])
async def test_selected_text_can_be_read_and_seen_in_sixteen_colours(theme: str, corner: Corner) -> None:
    app = corner.app(3, look=Look(theme))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+u", *"abcdef", *["shift+left"] * 3)
        await pilot.pause()
        line = next(strip for strip in app.screen._compositor.render_strips() if "abcdef" in strip.text)
    style = {segment.text: segment.style or Style() for segment in line}
    assert style["ef"].underline and not style["abc"].underline
    used = [colour.get_truecolor() for colour in (style["ef"].color, style["ef"].bgcolor) if colour]
    assert contrast(*(Color(*colour) for colour in used)) >= NORMAL


@pytest.mark.parametrize("no_colour", [False, True], ids=["16 colours", "16 colours and NO_COLOR"])
async def test_the_line_under_the_cursor_is_seen_without_colours(
    no_colour: bool, corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    app = corner.app(look=Look("ansi-dark"))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p", *"theme", "down")
        await pilot.pause()
        strips = app.screen._compositor.render_strips()
        marked = ["".join(s.text for s in strip if s.style and s.style.reverse) for strip in strips]
    assert [line for line in marked if "theme: light" in line]
    assert not [line for line in marked if "theme: dark" in line]
