"""Where things go: the XDG folders, or everything below `OLLAMA_TUNE_HOME` when that is set."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import PlatformDirs

from ollama_tune.core.files import not_made

try:
    Path.home()
except RuntimeError:
    os.environ["HOME"] = "/"  # as in a container: an account that the system does not know, without HOME
_DIRS = PlatformDirs("ollama-tune", appauthor=False)


def _folder(kind: str, default: str) -> Path:
    home = os.environ.get("OLLAMA_TUNE_HOME")
    path = Path(home).expanduser().absolute() / kind if home else Path(default)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise not_made(path, error) from error
    return path


def config_dir() -> Path:
    """Settings of the tool itself (theme and such)."""
    return _folder("config", _DIRS.user_config_dir)


def data_dir() -> Path:
    """What must be kept: runs and downloaded models."""
    return _folder("data", _DIRS.user_data_dir)


def state_dir() -> Path:
    """What may be lost without harm: unfinished wizard answers, logs, crash reports, warm workers."""
    return _folder("state", _DIRS.user_state_dir)


def cache_dir() -> Path:
    """What can be made again."""
    return _folder("cache", _DIRS.user_cache_dir)


def runs_dir() -> Path:
    """The folder of run folders."""
    return _folder("data/runs", str(Path(_DIRS.user_data_dir) / "runs"))


def models_dir() -> Path:
    """The folder of models downloaded by this tool."""
    return _folder("data/models", str(Path(_DIRS.user_data_dir) / "models"))


def asset(name: str) -> Path:
    """A file or folder shipped with the package, such as `model` or `data/tickets.jsonl`."""
    from importlib.resources import files

    return Path(str(files("ollama_tune.assets"))) / name
