"""A run is made from one commit of what it takes from the hub, and its file says which."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.values import Reading
from ollama_tune.core.models.describe import describe
from ollama_tune.core.models.download import download
from ollama_tune.core.plan import pins
from ollama_tune.core.plan.pins import data_news, hub_news, model_news, pinned
from ollama_tune.core.plan.settings import Settings, load
from ollama_tune.core.runs.folder import create_run
from ollama_tune.tui.cli import _new_run as new_run
from ollama_tune.tui.cli import cli
from tests.core.hub import COMMIT, Hub, running

NEXT = "f" * 40
NAMED = {"model.source": "org/tiny", "data.path": "org/rows"}


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model and a data set, and nothing of either here."""
    from huggingface_hub import constants

    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running(Path(shutil.copytree(model_folder, tmp_path / "model"))) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.datasets["org/rows"] = rows(tmp_path / "rows", "old")
        yield hub


def rows(folder: Path, answer: str) -> Path:
    folder.mkdir()
    lines = [json.dumps({"question": f"Why {n}?", "answer": f"{answer} {n}"}) for n in range(12)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def move(hub: Hub, tmp_path: Path) -> None:
    """Others change both repositories."""
    hub.datasets |= {
        f"org/rows@{COMMIT}": hub.datasets["org/rows"],
        "org/rows": rows(tmp_path / "new", "new"),
    }
    (hub.folder / "README.md").write_text("Changed.")
    hub.commit = NEXT


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_plan_names_the_commits_that_it_read(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    asked = ["plan", "--model", "org/tiny", "--data", "org/rows", "--output", str(file), "--json"]
    done = CliRunner().invoke(cli, asked, catch_exceptions=False)
    settings = load(file)
    assert settings.model.revision == settings.data.revision == COMMIT
    told = json.loads(done.stdout)
    assert "same run again" in told["choices"]["model.revision"]["reason"]
    assert "model.revision" not in told["changed"]
    assert not any("another version" in text for text in told["warnings"])


def test_a_run_is_pinned_before_anything_is_fetched_and_a_month_later_fetches_the_same(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = create_run(Settings().with_values(NAMED), "tiny").settings()
    assert (settings.model.revision, settings.data.revision) == (COMMIT, COMMIT)
    move(hub, tmp_path)
    folder = download("org/tiny", settings.model.revision, lambda *_: None)
    assert folder.name == COMMIT and not any(f"/{NEXT}/" in asked for asked in hub.requests)
    found = load_dataset("org/rows", settings.data.reading())
    assert found.rows[0].answer == "old 0"
    assert create_run(settings, "again").settings() == settings
    newest = create_run(Settings().with_values(NAMED | {"model.revision": "main"}), "new").settings()
    assert newest.model.revision == newest.data.revision == NEXT
    offline(monkeypatch)
    assert load_dataset("org/rows", settings.data.reading()).rows[0].answer == "old 0"
    assert pinned(settings) == settings


def test_what_is_here_is_taken_and_the_change_on_the_hub_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe("org/tiny")
    load_dataset("org/rows", Reading())
    settings = Settings().with_values(NAMED)
    assert hub_news(settings) == [] and model_news("org/tiny", "v1") == ""
    move(hub, tmp_path)
    model, data = hub_news(settings)
    assert f"model org/tiny now than commit {COMMIT[:12]}" in model and f"model.revision to {NEXT}." in model
    assert f"data set org/rows now than commit {COMMIT[:12]}" in data and f"data.revision to {NEXT}." in data
    kept = pinned(settings)
    assert hub_news(kept) == [model, data] == [model_news("org/tiny", None), data_news("org/rows", "")]
    assert kept.model.revision == kept.data.revision == COMMIT
    later = kept.with_values({"model.revision": NEXT, "data.revision": NEXT})
    assert describe("org/tiny", later.model.revision).folder.name == NEXT
    assert load_dataset("org/rows", later.data.reading()).rows[0].answer == "new 0"
    assert hub_news(later) == []
    offline(monkeypatch)
    assert hub_news(settings) == [] and pinned(settings) == kept


def test_a_run_tells_before_it_starts_that_the_hub_has_changed(hub: Hub, tmp_path: Path) -> None:
    describe("org/tiny")
    file, told = tmp_path / "run.yaml", list[str]()
    file.write_text("model: {source: org/tiny}\n")
    move(hub, tmp_path)
    assert new_run(file, {}, told.append).settings().model.revision == COMMIT
    assert [text for text in told if "another version of the model org/tiny" in text]


def test_without_hub_and_cache_the_settings_stay_and_another_source_loses_the_commit() -> None:
    settings = Settings().with_values(NAMED)
    assert pinned(settings) == settings and hub_news(settings) == []
    fixed = settings.with_values({"model.revision": COMMIT, "data.revision": COMMIT})
    other = fixed.with_values({"model.source": "org/other"})
    assert other.model.revision is None and other.data.revision == COMMIT
    assert fixed.with_values(NAMED) == fixed


def test_only_what_is_not_pinned_is_asked_for_and_a_branch_is_compared_with_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str, str]] = []

    def commit_on_hub(*about: str) -> str:
        asked.append(about)  # type: ignore[arg-type]
        return NEXT

    monkeypatch.setattr(pins, "commit_on_hub", commit_on_hub)
    fixed = Settings().with_values(NAMED | {"model.revision": COMMIT, "data.revision": COMMIT})
    assert pinned(fixed) == fixed and not asked
    branches = Settings().with_values({"model.source": "org/tiny", "model.revision": "v1"})
    named = pinned(branches.with_values({"data.path": "org/rows@v2"}))
    assert named.model.revision == named.data.revision == NEXT
    assert asked == [("org/tiny", "v1", "model"), ("org/rows", "v2", "data set")]
    asked.clear()
    for revision, commit in ((COMMIT, ""), ("v1", COMMIT)):
        used = pins.Used("model", "org/tiny", "model.revision", revision, commit)
        assert f"than commit {COMMIT[:12]}" in pins._news(used)
    assert asked == [("org/tiny", "", "model"), ("org/tiny", "v1", "model")]
    assert not pins._news(pins.Used("model", "org/tiny", "model.revision", "v1", ""))
    assert pins.model_revision(Path("elsewhere")).value is None
