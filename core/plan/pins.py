"""Which commit of the hub a run is made from, so that the same `run.yaml` is the same run a month later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ollama_tune.core.data.files.hub import commit_here, hub_id
from ollama_tune.core.models.locate import commit_of, is_commit, is_hub_id, snapshots
from ollama_tune.core.models.upstream import Kind, commit_on_hub
from ollama_tune.core.plan import rules
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.plan.values import Choice
from ollama_tune.core.text import one_line

SHOWN = 12
"""Characters of a commit in a sentence."""


@dataclass(frozen=True)
class Used:
    """One thing of the hub that settings name: its kind and id, its field, the revision asked for, and the
    commit of it on this machine, empty without one."""

    kind: Kind
    name: str
    field: str
    revision: str
    commit: str


def model_revision(folder: Path) -> Choice:
    """The commit that was read of a model of the hub; none for any other folder."""
    return _choice(commit_of(folder), Choice(None, "the newest version of the model", rules.PRACTICE))


def data_revision(path_text: str) -> Choice:
    """The commit that was read of a data set of the hub; empty for any other."""
    return _choice(commit_here(path_text, ""), Choice("", "the newest version of the data", rules.DATA))


def _choice(commit: str, newest: Choice) -> Choice:
    text = "the version that was read; with it the file gives the same run again"
    return Choice(commit, text, newest.source) if commit else newest


def used(settings: Settings) -> list[Used]:
    """What settings name on the hub."""
    model, data = settings.model, settings.data
    return [*_model(model.source, model.revision), *_data(data.path, data.revision)]


def _model(source: str, revision: str | None) -> list[Used]:
    if not is_hub_id(source):
        return []
    here = next((commit_of(folder) for folder in snapshots(source, revision)), "")
    return [Used("model", source, "model.revision", revision or "", here)]


def _data(path_text: str, revision: str) -> list[Used]:
    found = hub_id(path_text)
    if found is None:
        return []
    revision = revision or found[1]
    return [Used("data set", found[0], "data.revision", revision, commit_here(path_text, revision))]


def pinned(settings: Settings) -> Settings:
    """The settings with the commits that they mean now: those on this machine, else those of the hub.

    What neither of them knows stays as it is, for the run to say why it cannot be had.
    """
    found = {}
    for one in used(settings):
        if not is_commit(one.revision):
            found[one.field] = one.commit or commit_on_hub(one.name, one.revision, one.kind)
    found = {field: commit for field, commit in found.items() if commit}
    return settings.with_values(found) if found else settings


def hub_news(settings: Settings) -> list[str]:
    """A sentence for each thing on the hub that is another now than the one a run takes; asks the hub."""
    return [text for one in used(settings) if (text := _news(one))]


def model_news(source: str, revision: str | None) -> str:
    """The same of a model alone, empty where it is no other."""
    return "".join(map(_news, _model(source, revision)))


def data_news(path_text: str, revision: str) -> str:
    """The same of a data set."""
    return "".join(map(_news, _data(path_text, revision)))


def _news(one: Used) -> str:
    taken = one.revision if is_commit(one.revision) else one.commit
    branch = "" if is_commit(one.revision) else one.revision
    newest = commit_on_hub(one.name, branch, one.kind) if taken else ""
    if newest in ("", taken):
        return ""
    return (
        f"The hub has another version of the {one.kind} {one_line(one.name, 80)} now than commit "
        f"{taken[:SHOWN]}, which is taken; to take that one, set {one.field} to {newest}."
    )
