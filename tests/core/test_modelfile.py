"""The Modelfile, read back by the rules of Ollama's own reader, and the commands, by a shell's."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

import pytest

from ollama_tune.core.export.modelfile import commands, push_commands, quote, write_modelfile

COMMANDS = {"from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "message"}
SPACES, BREAKS = " \t", "\r\n"


def go_prints(character: str) -> bool:
    """Go's strconv.IsPrint; everything else vanishes but where the reader keeps it by itself."""
    return character == " " or unicodedata.category(character)[0] in "LMNPS"


def unquoted(text: str) -> str | None:
    """The value in quotes, without any escapes; None while its end is missing."""
    for mark in ('"""', '"'):
        if text.startswith(mark):
            closed = len(text) >= 2 * len(mark) and text.endswith(mark)
            return text[len(mark) : -len(mark)] if closed else None
    return text


class Reader:
    """Reads character by character: a value ends at the first line break at which its quotes are closed."""

    def __init__(self, text: str) -> None:
        self.found: list[tuple[str, str]] = []
        self.name, self.buffer, self.state = "", "", "nothing"
        for character in text:
            getattr(self, f"_{self.state}")(character)
        if self.state == "value":
            assert self._ends(""), "a quote is never closed"
        assert self.state in ("nothing", "comment", "value")
        assert "from" in [name for name, _ in self.found]

    def _nothing(self, character: str) -> None:
        if character == "#":
            self.state = "comment"
        elif character not in SPACES + BREAKS:
            self.state, self.buffer = "command", character

    def _comment(self, character: str) -> None:
        if character in BREAKS:
            self.state = "nothing"

    def _command(self, character: str) -> None:
        if character in SPACES:
            self.name, self.buffer = self.buffer.lower(), ""
            assert self.name in COMMANDS | {"parameter"}, self.name
            self.state = "parameter" if self.name == "parameter" else "value"
        else:
            assert character.isascii() and character.isalpha(), "command must be one of ..."
            self.buffer += character

    def _parameter(self, character: str) -> None:
        if character in SPACES:
            self.name, self.buffer, self.state = self.buffer, "", "value"
        else:
            assert character.isascii() and (character.isalnum() or character == "_")
            self.buffer += character

    def _value(self, character: str) -> None:
        if character in SPACES:
            self.buffer += character
        elif character in BREAKS:
            if not self._ends(character):
                self.buffer += character
        elif go_prints(character):
            self.buffer += character

    def _ends(self, character: str) -> bool:
        value = unquoted(self.buffer.strip())
        if value is None:
            return False
        self.found.append((self.name, value))
        self.buffer, self.state = "", "nothing"
        return True


def read(path: Path) -> list[tuple[str, str]]:
    return Reader(path.read_bytes().decode()).found


def test_it_names_the_file_beside_it_and_the_parameters(tmp_path: Path) -> None:
    path = write_modelfile(
        tmp_path, "my-tune-q8_0.gguf", ["<|im_end|>"], num_ctx=512, temperature=0.7, system="Be brief."
    )
    assert path == tmp_path / "Modelfile"
    assert read(path) == [
        ("from", "./my-tune-q8_0.gguf"),
        ("num_ctx", "512"),
        ("temperature", "0.7"),
        ("stop", "<|im_end|>"),
        ("system", "Be brief."),
    ]


def test_no_template_and_no_system_are_written_unless_asked_for(tmp_path: Path) -> None:
    """The template is inside the file."""
    assert [name for name, _ in read(write_modelfile(tmp_path, "x.gguf"))] == ["from"]
    assert "0.30 or newer" in (tmp_path / "Modelfile").read_text()


TEXTS = [
    *("<end>", " <end> ", 'say "it" now', "\\n", "#", "ü▁", "'", "</s>", "\ttab\t", '"', 'a"', '"a', '"a"'),
    *('""', 'a"""b"c', "two\nlines", "\n", "a\r\nb\n\n", 'He said "hi"\nand "bye"', "a\nFROM evil", '"\n"'),
    *("# no comment\nPARAMETER stop x", "  \n  ", 'a\n"', "日本語", "👍🏽", "{{ .System }}", "x" * 5000),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_read_back_unchanged(text: str, tmp_path: Path) -> None:
    found = read(write_modelfile(tmp_path, "x.gguf", [text, "<end>"], system=text))
    assert found == [("from", "./x.gguf"), ("stop", text), ("stop", "<end>"), ("system", text)]


def test_every_text_of_quotes_blanks_and_breaks_is_kept_or_refused() -> None:
    """All 5-letter words of five hard characters: what is written must be what is read."""
    import itertools

    kept = 0
    for letters in itertools.product('"\n a\t', repeat=5):
        text = "".join(letters)
        quoted = quote(text)
        if quoted is not None:
            kept += 1
            assert Reader(f"FROM x\nSYSTEM {quoted}\nLICENSE y\n").found[1:] == [
                ("system", text),
                ("license", "y"),
            ]
    assert 2500 < kept < 5**5


@pytest.mark.parametrize(
    "stop",
    ["", 'a"""\nb', '"""\n', 'a""" \nb', "\u00a0", "\u200b", "\u3000", "\x1b[2J", "\ue000", "\u2028", "a\0b"],
)
def test_a_text_that_the_format_cannot_hold_is_left_out_visibly(stop: str, tmp_path: Path) -> None:
    assert quote(stop) is None
    path = write_modelfile(tmp_path, "x.gguf", [stop, "<end>"])
    assert read(path) == [("from", "./x.gguf"), ("stop", "<end>")]
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine:v1", ["ollama signin", "ollama cp mine:v1 USER/mine:v1", "ollama push USER/mine:v1"]),
        ("library/mine", ["ollama signin", "ollama cp library/mine USER/mine", "ollama push USER/mine"]),
        ("me/mine", ["ollama signin", "ollama push me/mine"]),
        ("registry.ollama.ai/me/mine", ["ollama signin", "ollama push registry.ollama.ai/me/mine"]),
        ("me/library", ["ollama signin", "ollama push me/library"]),
        ("models.example.com:5000/me/mine:v1", ["ollama push models.example.com:5000/me/mine:v1"]),
    ],
)
def test_the_way_into_a_registry_is_named(name: str, expected: list[str]) -> None:
    assert push_commands(name) == expected
