"""The one schema: what is allowed, and what is said of everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.schema import field_info
from ollama_tune.core.plan.settings import Settings, field_paths, load, parse


def refused(call: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value).lower()
    return caught.value


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("training.learning_rat", "training.learning_rate"),
        ("training.lr_rank", "training.rank"),
        ("trainng.rank", "training.rank"),
        ("rank", "training.rank"),
        ("export.nam", "export.name"),
        ("alpha", "training.alpha"),
        ("training.num_train_epochs", "training.epochs"),
        ("micro_batch_size", "training.batch_size"),
        ("training.use_dora", "training.dora"),
    ],
)
def test_an_unknown_setting_names_the_nearest(path: str, nearest: str) -> None:
    error = refused(lambda: Settings().with_value(path, 1))
    assert path in error.what
    assert nearest in error.fix


def test_a_name_near_to_nothing_says_where_the_list_is() -> None:
    assert "ollama-tune schema" in refused(lambda: Settings().with_value("qqqq.zzzz", 1)).fix


def test_an_unknown_name_in_a_file_is_told_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training:\n  learning_rte: 0.1\n")
    error = refused(lambda: load(path))
    assert str(path) in error.what
    assert "training.learning_rate" in error.fix


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.rank", "many"),
        ("training.rank", 0),
        ("training.rank", 513),
        ("training.rank", 1.5),
        ("training.learning_rate", 0),
        ("training.learning_rate", "fast"),
        ("training.learning_rate", float("nan")),
        ("training.dropout", 1.0),
        ("training.epochs", 0),
        ("training.device", "tpu"),
        ("training.quantization", "int8"),
        ("training.targets", 3),
        ("training.gradient_checkpointing", "perhaps"),
        ("data.validation_split", 0.6),
        ("data.seed", -1),
        ("export.type", "q4_K_M"),
        ("model.source", None),
    ],
)
def test_a_wrong_value_names_the_field(path: str, value: Any) -> None:
    assert path in refused(lambda: Settings().with_value(path, value)).what


def test_the_allowed_values_are_named() -> None:
    message = refused(lambda: Settings().with_value("export.type", "q4_K_M")).what
    assert all(kind in message for kind in ("f16", "bf16", "q8_0"))


def test_float16_needs_a_gpu() -> None:
    error = refused(lambda: Settings().with_value("training.compute_dtype", "float16"))
    assert "needs a GPU" in error.what
    both = {"training.device": "cuda", "training.compute_dtype": "float16"}
    assert Settings().with_values(both).training.compute_dtype == "float16"


def test_paged_states_need_a_gpu_and_dora_the_general_path() -> None:
    error = refused(lambda: Settings().with_value("training.optimizer", "paged_adamw_8bit"))
    assert "needs a GPU" in error.what and "adamw_8bit" in error.what
    both = {"training.device": "cuda", "training.optimizer": "paged_adamw_8bit"}
    assert Settings().with_values(both).training.optimizer == "paged_adamw_8bit"
    assert Settings().with_value("training.dora", True).training.dora
    both = {"training.path": "fast", "training.dora": True}
    assert "path fast" in refused(lambda: Settings().with_values(both)).what


@pytest.mark.parametrize(
    ("former", "now"), [("true", "layers"), ("false", "none"), ("yes", "layers"), ("none", "none")]
)
def test_files_from_before_there_was_a_choice_of_recomputation_are_read(
    former: str, now: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"training:\n  gradient_checkpointing: {former}\n")
    assert load(path).training.gradient_checkpointing == now
    load(path).save(path)
    assert load(path).training.gradient_checkpointing == now


def test_a_changed_copy_leaves_the_original_alone() -> None:
    before = Settings()
    after = before.with_value("training.rank", 64)
    assert (before.training.rank, after.training.rank) == (16, 64)
    assert after.get("training.rank") == 64


def test_text_from_a_form_becomes_the_fields_type() -> None:
    settings = Settings().with_values({"training.rank": "32", "training.learning_rate": "1e-4"})
    assert (settings.training.rank, settings.training.learning_rate) == (32, 1e-4)


def test_a_round_trip_through_yaml_loses_nothing(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "model.source": "org/ünïcode",
        "data.path": "/data/a: b #c.jsonl",
        "training.targets": ["q_proj", "v_proj"],
        "training.learning_rate": 1.25e-5,
        "training.epochs": 0.5,
        "export.name": "yes",
        "export.push": False,
    }
    settings = Settings().with_values(values)
    path = tmp_path / "run.yaml"
    settings.save(path)
    assert load(path) == settings
    assert [file.name for file in tmp_path.iterdir()] == ["run.yaml"]


def test_a_file_with_some_values_gets_the_defaults_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training: {rank: 8}\n")
    assert load(path) == Settings().with_value("training.rank", 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  rank: 16\n bad: [\n", "line 3"),
        ("training: {rank: 16", "line 1"),
        ("\tx: 1", "line 1"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("- a\n- b\n", "not a table"),
        ("", "not a table"),
        ("training: 7\n", "training"),
        ("version: 2\n", "version"),
    ],
)
def test_a_broken_file_is_named_with_the_place(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    error = refused(lambda: load(path))
    assert str(path) in error.what
    assert words in error.what


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80abc"])
def test_a_file_that_is_not_text_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert str(path) in refused(lambda: load(path)).what


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        error = refused(lambda path=path: load(path))
        assert f"{path} cannot be read" in error.what


def test_labels_in_a_file_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  labels:\n    0: negative\n    -1: ' none '\n    true: 'yes'\n")
    settings = load(path)
    assert settings.data.labels == {"0": "negative", "-1": "none", "true": "yes"}
    assert settings.data.reading().labels == (("-1", "none"), ("0", "negative"), ("true", "yes"))
    settings.save(path)
    assert load(path) == settings
    for wrong in ({"0": ""}, {"0": " "}, {"1": True}, ["a"]):
        assert "data.labels" in refused(lambda wrong=wrong: Settings().with_value("data.labels", wrong)).what


def test_every_field_has_its_documentation() -> None:
    paths = field_paths()
    assert len(paths) == len(set(paths))
    assert all(len(str(field_info(path).description)) > 10 for path in paths)
    assert all(Settings().get(path) is not ... for path in paths)


def test_parse_takes_what_dump_gives() -> None:
    assert parse(Settings().model_dump()) == Settings()


def test_a_name_that_ollama_refuses_shows_before_the_training() -> None:
    with pytest.raises(UsageError, match=r"export\.name is wrong: The model in an Ollama name may not"):
        Settings().with_value("export.name", "bad name!")
    assert Settings().with_value("export.name", "me/my-model:v2").export.name == "me/my-model:v2"
