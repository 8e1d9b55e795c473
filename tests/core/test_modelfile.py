"""The Modelfile, read back by Ollama's rules of parser/parser.go, and the commands, by a shell's."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

import pytest

from ollama_tune.core.export.modelfile import commands, quote, write_modelfile


def go_prints(character: str) -> bool:
    return character in " \n" or unicodedata.category(character)[0] in "LMNPS"


def unquote(text: str) -> str:
    """No escapes; three quotes before one; unprintable characters vanish."""
    kept = "".join(character for character in text if go_prints(character))
    for mark in ('"""', '"'):
        if kept.startswith(mark):
            inside, found, after = kept[len(mark) :].partition(mark)
            assert found
            assert after == ""
            return inside
    return kept.strip()


def read(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_it_names_the_file_beside_it_and_the_parameters(tmp_path: Path) -> None:
    path = write_modelfile(tmp_path, "my-tune-q8_0.gguf", ["<|im_end|>"], num_ctx=512, temperature=0.7)
    assert path == tmp_path / "Modelfile"
    assert read(path) == [
        ("FROM", "./my-tune-q8_0.gguf"),
        ("PARAMETER", "num_ctx 512"),
        ("PARAMETER", "temperature 0.7"),
        ("PARAMETER", 'stop "<|im_end|>"'),
    ]


def test_no_template_is_written_because_the_file_holds_it(tmp_path: Path) -> None:
    assert "TEMPLATE" not in write_modelfile(tmp_path, "x.gguf").read_text()


@pytest.mark.parametrize("stop", ["<end>", " <end> ", 'say "it" now', "\\n", "#", "ü▁", "'", "</s>"])
def test_a_stop_text_is_read_back_unchanged(stop: str, tmp_path: Path) -> None:
    ((_, _), (_, value)) = read(write_modelfile(tmp_path, "x.gguf", [stop]))
    assert unquote(value.removeprefix("stop ")) == stop


@pytest.mark.parametrize(
    "stop",
    ["", '"', 'a"', '"a', 'a"""b"c', "\n", "a\nFROM evil", "\u00a0", "\u200b", "\u3000", "\x1b[2J", "\ue000"],
)
def test_a_stop_text_that_the_format_cannot_hold_is_left_out_visibly(stop: str, tmp_path: Path) -> None:
    assert quote(stop) is None
    path = write_modelfile(tmp_path, "x.gguf", [stop, "<end>"])
    assert [value for _, value in read(path)] == ["./x.gguf", 'stop "<end>"']
    text = path.read_text()
    assert text.isascii()
    assert "\x1b" not in text
    assert "cannot hold" in text


def test_the_commands_survive_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder; rm -rf $HOME"
    create, run = commands("me/my-tune:q8_0", folder)
    assert shlex.split(create) == ["ollama", "create", "me/my-tune:q8_0", "-f", str(folder / "Modelfile")]
    assert run == "ollama run me/my-tune:q8_0"


def test_nothing_is_left_half_written(tmp_path: Path) -> None:
    write_modelfile(tmp_path, "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["Modelfile"]
