"""Data sets fetched over real HTTP from a small hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_tune.core.data.files.card import matching, subsets_of
from ollama_tune.core.data.files.hub import hub_id, resolve_data
from ollama_tune.core.data.files.read import read_items
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.values import Reading
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models import download as downloads
from ollama_tune.core.paths import cache_dir
from tests.core.hub import COMMIT, Hub, online


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    folder = tmp_path / "empty"
    folder.mkdir()
    with online(folder, monkeypatch) as hub:
        yield hub


def put(folder: Path, **files: object) -> Path:
    """Files by name; `__` stands for a slash; rows become JSON lines."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = content if isinstance(content, list) else []
        text = "".join(json.dumps({"question": q, "answer": "a"}) + "\n" for q in rows)
        path.write_text(content if isinstance(content, str) else text)
    return folder


def read(path: Path, **choices: str) -> tuple[list[tuple[str, str, bool]], list[str]]:
    log = ProblemLog()
    items = read_items(path, log, ("question", "answer"), **choices)
    found = [(item.value["question"], item.file, item.held_out) for item in items.stream]
    return found, [problem.text for problem in log.problems()]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", ("org/name", "")),
        ("hf://datasets/org/name@v1", ("org/name", "v1")),
        ("https://huggingface.co/datasets/org/name", ("org/name", "")),
        ("https://huggingface.co/datasets/org/name/tree/v1", ("org/name", "v1")),
        ("https://hf-mirror.com/datasets/org/name/viewer/default/train?p=1", ("org/name", "")),
        ("data/rows.jsonl", None),
        ("data/rows.csv.gz", None),
        ("name", None),
        ("a/b/c", None),
        ("../name", None),
        ("hf://datasets/../../etc", None),
    ],
)
def test_what_names_a_data_set_of_the_hub(text: str, found: tuple[str, str] | None) -> None:
    assert hub_id(text) == found


def test_a_folder_that_exists_is_never_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("org/name") is None
    assert resolve_data("org/name") == tmp_path / "org" / "name"


def test_splits_by_name_are_fetched_and_read(hub: Hub, tmp_path: Path) -> None:
    hub.datasets["org/rows"] = put(
        tmp_path / "rows",
        data__train_dot_jsonl=["q1", "q2"],
        data__test_dot_jsonl=["q3"],
        data__extra_validation_dot_jsonl=["q4"],
        README_dot_md="# Rows\n",
        run_dot_py="raise SystemExit\n",
    )
    told: list[tuple[int, int]] = []
    folder = resolve_data("org/rows", Reading(), lambda done, total: told.append((done, total)))
    assert folder.is_relative_to(cache_dir() / "datasets" / "org--rows" / "snapshots" / COMMIT)
    assert told[-1][0] == told[-1][1] > 0
    rows, notes = read(folder)
    assert rows == [
        ("q1", "data/train.jsonl", False),
        ("q2", "data/train.jsonl", False),
        ("q4", "data/extra_validation.jsonl", True),
    ]
    assert notes == ["Of several parts 'train' is trained on; not used: test."]
    assert not list(folder.rglob("*.py")) and not (folder / "data" / "test.jsonl").exists()


def test_a_second_time_needs_no_network_and_another_split_only_what_is_missing(
    hub: Hub, tmp_path: Path
) -> None:
    rows = {"train_dot_jsonl": ["q1"], "test_dot_jsonl": ["q2"], "dev_dot_jsonl": ["q3"]}
    hub.datasets["org/rows"] = put(tmp_path / "rows", **rows)
    first = resolve_data("org/rows")
    asked = len(hub.requests)
    assert resolve_data("hf://datasets/org/rows") == first
    assert len(hub.requests) == asked
    reading = Reading(split="test", validation="validation")
    assert resolve_data("org/rows", reading) == first
    fetched = [path.split()[0] for path in hub.requests[asked:] if "/resolve/" in path]
    assert [path.rpartition("/")[2] for path in fetched] == ["test.jsonl"]
    found, _ = read(first, split="test", validation="validation")
    assert [(question, held_out) for question, _, held_out in found] == [("q2", False), ("q3", True)]


CARD = """---
configs:
- config_name: large
  data_files:
  - split: train
    path: large/part-*.jsonl
- config_name: small
  default: true
  data_files:
  - split: learn
    path: ["small/a.jsonl", "small/b.jsonl"]
  - split: test
    path: small/**/held.jsonl
---
# A card
"""


def test_the_card_tells_subsets_and_splits(hub: Hub, tmp_path: Path) -> None:
    hub.datasets["org/rows"] = put(
        tmp_path / "rows",
        README_dot_md=CARD,
        **{
            "large__part-1_dot_jsonl": ["l1"],
            "large__part-2_dot_jsonl": ["l2"],
            "large__other_dot_jsonl": ["never"],
            "small__a_dot_jsonl": ["s1"],
            "small__b_dot_jsonl": ["s2"],
            "small__deep__held_dot_jsonl": ["s3"],
        },
    )
    rows, notes = read(resolve_data("org/rows"))
    found = [(question, held_out) for question, _, held_out in rows]
    assert found == [("s1", False), ("s2", False), ("s3", True)]
    assert "Of several subsets 'small' was taken; there are also: large." in notes
    rows, _ = read(resolve_data("org/rows", Reading(subset="large")))
    assert [question for question, _, _ in rows] == ["l1", "l2"]
    with pytest.raises(TuneError, match="no subset huge; it has large, small"):
        resolve_data("org/rows", Reading(subset="huge"))
    with pytest.raises(TuneError, match="no split or file half; it has learn, test"):
        resolve_data("org/rows", Reading(split="half"))


def test_a_script_is_not_run_but_the_hubs_own_copy_taken(hub: Hub, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    hub.datasets["org/script"] = put(tmp_path / "script", script_dot_py="raise SystemExit\n")
    with pytest.raises(TuneError, match="scripts of a data set are never run"):
        resolve_data("org/script")
    copy = tmp_path / "copy" / "default" / "train"
    copy.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"question": ["q1"], "answer": ["a"]}), copy / "0000.parquet")
    hub.datasets["org/script@refs/convert/parquet"] = tmp_path / "copy"
    rows, _ = read(resolve_data("org/script"))
    assert rows == [("q1", "default/train/0000.parquet", False)]


def test_the_same_rows_in_two_kinds_of_file_are_taken_once(hub: Hub, tmp_path: Path) -> None:
    csv = "question,answer\nq1,a\n"
    hub.datasets["org/rows"] = put(tmp_path / "rows", rows_dot_csv=csv, rows_dot_jsonl=["q1"])
    assert [path for _, path, _ in read(resolve_data("org/rows"))[0]] == ["rows.jsonl"]


def test_names_that_lead_out_of_the_folder_are_never_written(hub: Hub, tmp_path: Path) -> None:
    hub.datasets["org/rows"] = put(tmp_path / "rows", train_dot_jsonl=["q1"])
    info = hub.dataset_info("org/rows")
    evil = [{**info["siblings"][0], "rfilename": name} for name in ("../../evil.jsonl", "/etc/evil.jsonl")]  # type: ignore[index]
    hub.dataset_info = lambda _: {**info, "siblings": [*info["siblings"], *evil]}  # type: ignore[method-assign, misc]
    folder = resolve_data("org/rows")
    assert [path.name for path in cache_dir().rglob("*.jsonl")] == ["train.jsonl"]
    assert [question for question, _, _ in read(folder)[0]] == ["q1"]


def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.datasets["org/rows"] = put(tmp_path / "rows", train_dot_jsonl=[f"q{i}" for i in range(2000)])
    hub.cuts, hub.cut_after = 2, 30_000
    assert len(read(resolve_data("org/rows"))[0]) == 2000
    assert any("bytes=30000-" in asked for asked in hub.requests)


def test_refusals_are_told_in_words(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with pytest.raises(TuneError, match="knows no data set org/none, or it is private"):
        resolve_data("org/none")
    hub.datasets["org/rows"] = put(tmp_path / "rows", train_dot_jsonl=["q1"])
    with pytest.raises(TuneError, match="data set org/rows has no such revision"):
        resolve_data("org/rows", Reading(revision="v9"))
    hub.gated = True
    with pytest.raises(TuneError, match="data set org/rows is given only to people") as caught:
        resolve_data("org/rows")
    assert "huggingface.co/datasets/org/rows" in caught.value.fix
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TuneError, match="hub cannot be reached"):
        resolve_data("org/other")


def test_without_network_what_was_fetched_before_is_used(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.datasets["org/rows"] = put(tmp_path / "rows", train_dot_jsonl=["q1"])
    folder = resolve_data("org/rows", Reading(revision="v1"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_data("org/rows", Reading(revision="v1")) == folder
    assert resolve_data("org/rows", Reading(revision=COMMIT)) == folder
    with pytest.raises(TuneError, match="is not downloaded, and HF_HUB_OFFLINE is set"):
        resolve_data("org/rows")


def test_bundled_empty_and_plain_paths(tmp_path: Path) -> None:
    assert resolve_data("bundled").name == "tickets.jsonl"
    assert resolve_data(str(tmp_path / "none.jsonl")) == tmp_path / "none.jsonl"
    with pytest.raises(TuneError, match="No data file is chosen"):
        resolve_data("  ")


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("# no front matter", []),
        ("---\nconfigs: 3\n---\n", []),
        ("---\nconfigs: [\n---\n", []),
        ("---\nconfigs:\n- config_name: x\n  data_files: a.csv\n---\n", [("x", {"train": ["a.csv"]})]),
        (
            "---\nconfigs:\n- data_files: {train: a.csv, test: [b.csv]}\n---\n",
            [("default", {"train": ["a.csv"], "test": ["b.csv"]})],
        ),
        ("---\nconfigs:\n- data_dir: d\n---\n", [("default", {"train": ["d/a.csv", "d/e/b.csv"]})]),
        ("---\nconfigs:\n- data_dir: d\n  data_files: '*.csv'\n---\n", [("default", {"train": ["d/a.csv"]})]),
    ],
)
def test_cards_in_every_form(card: str, found: list[object]) -> None:
    names = ["a.csv", "b.csv", "d/a.csv", "d/e/b.csv"]
    assert [(subset.name, subset.files(names)) for subset in subsets_of(card)] == found


def test_patterns_of_cards() -> None:
    names = ["a-1.csv", "a-2.csv", "b/a-1.csv", "b/c/a-3.csv"]
    assert matching(names, "*.csv") == names[:2]
    assert matching(names, "**/*.csv") == names
    assert matching(names, "b/**") == names[2:]
    assert matching(names, "a-[12].csv") == names[:2]
    assert matching(names, "{b,d}/a-?.csv") == ["b/a-1.csv"]
    assert matching(names, "b") == names[2:]
