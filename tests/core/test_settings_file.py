"""A run.yaml as a file: what is wrong in it is told with its line, and what is unsafe is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.former import FORMER, Former, migrate
from ollama_tune.core.plan.refusal import SettingsError
from ollama_tune.core.plan.settings import Settings, load, release
from ollama_tune.core.plan.yaml_lines import read_value


def refused(path: Path, text: str) -> UsageError:
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert str(path) in caught.value.what
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("training:\n  # a remark\n  learning_rte: 0.1\n", 3, "training.learning_rate"),
        ("model:\n  source: a\n\ntrainng:\n  rank: 3\n", 4, "'training'"),
        ("training: {rank: 8,\n  alpha: many}\n", 2, "training.alpha"),
        ("export:\n  also:\n  - merged\n  - zip\n", 4, "export.also.1"),
        ("training:\n  targets:\n    nested: 3\n", 2, "training.targets"),
        ("data:\n  labels:\n    0: ' '\n", 3, "data.labels.0"),
        ("training: 7\n", 1, "training"),
    ],
)
def test_a_mistake_is_told_with_its_line(file: Path, text: str, line: int, words: str) -> None:
    error = refused(file, text)
    assert f"{file}, line {line}: " in error.what
    assert words in str(error)
    assert isinstance(error, SettingsError) and error.mistakes[0].line == line


def test_several_mistakes_are_told_at_once_in_the_order_of_the_file(file: Path) -> None:
    error = refused(file, "training:\n  rnk: 3\n  epochs: 0\nexport:\n  typ: q8_0\n")
    assert isinstance(error, SettingsError)
    assert [(each.field, each.line) for each in error.mistakes] == [
        ("training.rnk", 2),
        ("training.epochs", 3),
        ("export.typ", 5),
    ]
    assert f"{file} has 3 mistakes." in error.what
    assert "(1) Line 2: There is no setting 'training.rnk'. Did you mean 'training.rank'?" in error.what
    assert "(3) Line 5:" in error.what and "(4)" not in error.what


def test_no_more_than_five_mistakes_are_told_and_the_rest_is_counted(file: Path) -> None:
    error = refused(file, "training:\n" + "".join(f"  wrong_{n}: 1\n" for n in range(9)))
    assert "has 9 mistakes" in error.what and "(5)" in error.what and "(6)" not in error.what
    assert "And 4 more." in error.what


@pytest.mark.parametrize(
    ("text", "second", "first"),
    [
        ("training:\n  rank: 8\n  alpha: 16\n  rank: 16\n", 4, 2),
        ("training: {rank: 8}\nmodel: {}\ntraining: {rank: 9}\n", 3, 1),
        ('data:\n  labels:\n    0: a\n    "0": b\n', 4, 3),
    ],
)
def test_a_name_that_stands_twice_is_refused(file: Path, text: str, second: int, first: int) -> None:
    error = refused(file, text)
    assert f"line {second}:" in error.what and f"first on line {first}" in error.what


@pytest.mark.parametrize("text", ["\ttraining: 1\n", "training:\n\trank: 8\n", "training:\n  \trank: 8\n"])
def test_a_tab_is_explained(file: Path, text: str) -> None:
    error = refused(file, text)
    assert (
        "begins with a tab" in error.what
        and f"line {text.count(chr(10), 0, text.index(chr(9))) + 1} " in (error.what)
    )
    assert "spaces" in error.fix


def test_aliases_that_stand_for_very_much_are_refused_at_once(file: Path) -> None:
    layers = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for number in range(30):
        before, name = chr(ord("a") + number) if number < 1 else f"l{number - 1}", f"l{number}"
        layers += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    error = refused(file, layers)
    assert "more than 20,000 values" in error.what and "aliases" in error.what


def test_an_alias_of_itself_is_refused(file: Path) -> None:
    assert "aliases" in refused(file, "training: &t\n  rank: *t\n").what


@pytest.mark.parametrize("text", ["[" * 20_000, "x: " + "{a: " * 5_000], ids=["lists", "tables"])
def test_what_is_nested_without_end_is_refused(file: Path, text: str) -> None:
    assert "nested too deeply" in refused(file, text).what


def test_a_number_that_there_is_not_is_told(file: Path) -> None:
    assert "that there is not" in refused(file, f"training:\n  epochs: {'9' * 5_000}\n").what


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("export: {name: no}", "export.name", "no"),
        ("export: {name: 2026-11-22}", "export.name", "2026-11-22"),
        ("export: {name: 010}", "export.name", "010"),
        ("data: {path: on}", "data.path", "on"),
        ("export: {push: off}", "export.push", False),
        ("export: {push: False}", "export.push", False),
        ("training: {rank: 010}", "training.rank", 10),
        ("training: {learning_rate: 1e-4}", "training.learning_rate", 1e-4),
        ("training: {learning_rate: .5}", "training.learning_rate", 0.5),
        ("training:\n  # rank: 8\nexport:\n", "training.rank", 16),
    ],
)
def test_values_are_what_stands_there(file: Path, text: str, field: str, value: object) -> None:
    file.write_text(text)
    assert load(file).get(field) == value


def test_minutes_and_seconds_are_no_number(file: Path) -> None:
    assert "training.epochs" in refused(file, "training: {epochs: 1:30}\n").what


def test_a_number_where_text_belongs_is_to_be_quoted(file: Path) -> None:
    assert "quotes" in refused(file, "export: {name: 2026}\n").fix
    assert "section" in refused(file, "training: 7\n").what


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("010", "010"),
        ("", None),
        ("true", True),
        ("no", "no"),
        ("[q_proj, 1]", ["q_proj", 1]),
        ("{a: b}", {"a": "b"}),
        ("'8'", "8"),
        ("Note: use # for heads", "Note: use # for heads"),
        ("- be brief", "- be brief"),
        ("*x &y !z", "*x &y !z"),
    ],
)
def test_a_value_of_the_command_line_is_not_cut_and_not_guessed(text: str, value: object) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize("text", ["[", "'", "[" * 20_000, "9" * 5_000])
def test_a_value_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_value(text)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["training", "data", "rank", "targets", "labels", "x"]), inner)
    ),
    max_leaves=8,
)


@given(st.text(max_size=60) | TREES.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused_in_a_sentence(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        load(file)
    except UsageError as error:
        assert str(file) in error.what and error.fix


def test_a_file_that_is_too_large_is_not_read(file: Path) -> None:
    assert "larger than 1 MiB" in refused(file, "# " + "x" * (1 << 20)).what


def test_an_honest_alias_is_taken(file: Path) -> None:
    file.write_text("data: {seed: &s 11}\ntraining: {seed: *s}\n")
    assert load(file).get("training.seed") == 11


def test_a_written_file_names_its_version_and_the_release(file: Path) -> None:
    Settings().save(file)
    first, second, *_ = file.read_text().splitlines()
    assert first == f"# Written by ollama-tune {release()}."
    assert second == "version: 1"
    assert load(file) == Settings()


def test_a_file_without_a_version_is_one_of_version_1(file: Path) -> None:
    file.write_text("training: {rank: 4}\n")
    assert load(file).version == 1


def test_a_newer_version_is_refused_before_its_fields(file: Path) -> None:
    error = refused(file, "version: 2\ntraining:\n  of_the_future: 1\n")
    assert "version 2" in error.what and "up to 1" in error.what and "of_the_future" not in error.what
    assert error.fix == "Update ollama-tune."


def test_a_version_that_is_none_is_told_with_its_line(file: Path) -> None:
    error = refused(file, "model: {}\nversion: newest\n")
    assert "line 2: The setting version is wrong" in error.what


def test_former_words_are_read_as_todays() -> None:
    (former,) = FORMER
    tree = {"training": {"gradient_checkpointing": True, "rank": 4}}
    assert migrate(tree) == {"training": {"gradient_checkpointing": "layers", "rank": 4}}
    assert tree["training"]["gradient_checkpointing"] is True, "the tree itself is left alone"
    assert set(former.words.values()) == {"layers", "none"}


def test_a_setting_that_moved_is_found_where_it_is_now_and_the_new_name_wins() -> None:
    moved = (Former("training.answers", "evaluation.rows", {"all": 0}),)
    assert migrate({"training": {"answers": "all"}}, moved) == {"training": {}, "evaluation": {"rows": 0}}
    both = {"training": {"answers": 3}, "evaluation": {"rows": 5}}
    assert migrate(both, moved) == {"training": {}, "evaluation": {"rows": 5}}
    assert migrate({"training": 7}, moved) == {"training": 7}
