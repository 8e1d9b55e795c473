"""Finds models on this machine: the bundled one, folders, and both download caches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.models.values import ModelChoice
from ollama_tune.core.models.weights import HEADERS, has_weights, weight_names
from ollama_tune.core.paths import asset, models_dir

BUNDLED = "bundled"
HUB_FACTS = "ollama-tune-hub.json"
"""What the hub said of a model besides its files; lies beside `config.json` in our own models folder."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(source: str) -> bool:
    """True for `org/name` that is not a folder here; the hub's own rules for names."""
    shape = _HUB_ID.fullmatch(source) is not None and len(source) <= 96
    forbidden = "--" in source or ".." in source or source.endswith((".git", "-", "."))
    return shape and not forbidden and not Path(source).is_dir()


def hub_cache() -> Path:
    """Hugging Face's download folder, by that library's own environment variables."""
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    stored = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(stored or str(Path(home) / "hub"))).expanduser()


def repository_folder(root: Path, source: str) -> Path:
    """Where both caches keep a hub id."""
    return root / f"models--{source.replace('/', '--')}"


def commit_of(folder: Path) -> str:
    """The commit that a folder of one of the two caches holds; empty for any other folder."""
    held = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if held else ""


def is_commit(revision: str | None) -> bool:
    """Whether a revision names one commit for all times, as no branch or tag does."""
    return bool(revision and _COMMIT.fullmatch(revision))


def snapshots(source: str, revision: str | None = None) -> list[Path]:
    """The folders of a hub id on this machine with a config: complete ones first, then ours.

    Without a revision the one that `main` named at the last download is meant, else any.
    """
    found = [
        folder
        for root in (models_dir(), hub_cache())
        for folder in _revisions(repository_folder(root, source), revision)
        if (folder / "config.json").is_file()
    ]
    return sorted(found, key=lambda folder: not is_complete(folder))


def is_complete(folder: Path) -> bool:
    """True when weights and tokenizer are there, not just the fetched description."""
    return has_weights(folder) and (folder / "tokenizer.json").is_file()


def is_described(folder: Path) -> bool:
    """True when all but the weights was fetched, so that `read_spec` works."""
    return (folder / HEADERS).is_file()


def _revisions(repository: Path, revision: str | None) -> list[Path]:
    if revision is not None and _COMMIT.fullmatch(revision):
        return [repository / "snapshots" / revision]
    try:
        commit = (repository / "refs" / (revision or "main")).read_text().strip()
        if _COMMIT.fullmatch(commit):
            return [repository / "snapshots" / commit]
    except (OSError, ValueError):
        pass
    if revision is not None:
        return []
    try:
        return sorted((repository / "snapshots").iterdir(), key=lambda path: -path.stat().st_mtime)
    except OSError:
        return []


def resolve(source: str, revision: str | None = None) -> Path:
    """The folder of a model: `bundled`, a folder, or a hub id that was downloaded or described before.

    A folder of a hub id may lack its weights (`is_complete` tells). Raises `TuneError` if it is absent.
    """
    if source == BUNDLED:
        folder = asset("model")
        if not folder.is_dir():
            raise TuneError("The bundled model is missing.", "Install ollama-tune again.")
        return folder
    if is_hub_id(source):
        found = snapshots(source, revision)
        if found:
            return found[0]
        wanted = f"{source} ({revision})" if revision else source
        raise TuneError(
            f"There is no folder {source}, and the model {wanted} is not downloaded.",
            "Check the name, or let it be downloaded.",
        )
    return _local(source)


def _local(source: str) -> Path:
    try:
        folder = Path(source).expanduser().absolute()
        exists, is_folder = folder.exists(), folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise TuneError(
            "The model folder cannot be read.", "Check its name and permissions.", details=repr(error)
        ) from error
    if not source.strip() or not exists:
        raise TuneError(
            f"There is no model folder {source}.", "Give a folder, or a Hugging Face id such as org/name."
        )
    if not is_folder:
        raise TuneError(
            f"{source} is a file, not a model folder.",
            "Give the folder that holds config.json and the weights.",
        )
    return folder


def list_models() -> list[ModelChoice]:
    """The bundled model, then chat models downloaded by this tool, then those in Hugging Face's cache."""
    choices = []
    if asset("model").is_dir():
        note = "to learn the tool with"
        choices.append(ModelChoice(BUNDLED, BUNDLED, "Bundled demo model", _size(asset("model")), note))
    seen: set[str] = set()
    for kind, root in (("downloaded", models_dir()), ("cache", hub_cache())):
        for source, folder in _cached(root):
            if source not in seen:
                seen.add(source)
                choices.append(ModelChoice(source, kind, source, _size(folder), _note(folder)))
    return choices


def _cached(root: Path) -> Iterator[tuple[str, Path]]:
    """Hub ids in a cache with the folder of their newest use; only causal language models."""
    try:
        repositories = sorted(root.glob("models--*--*"))
    except OSError:
        return
    for repository in repositories:
        source = repository.name.removeprefix("models--").replace("--", "/", 1)
        for folder in _revisions(repository, None):
            if _is_causal(folder):
                yield source, folder
                break


def _is_causal(folder: Path) -> bool:
    try:
        config = read_json(folder / "config.json") or {}
    except TuneError:
        return False
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith("ForCausalLM") for name in names)


def _size(folder: Path) -> int | None:
    try:
        return sum((folder / name).stat().st_size for name in weight_names(folder))
    except (OSError, TuneError):
        return None


def _note(folder: Path) -> str:
    if is_complete(folder):
        return ""
    if is_described(folder):
        return "described, weights not downloaded yet"
    return "not completely downloaded, or without safetensors weights"
