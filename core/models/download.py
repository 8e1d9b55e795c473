"""Fetches models from the hub: first a small description, then, in the worker, the weights.

Files go into our models folder in the layout of Hugging Face's own cache. Weights are streamed here
rather than by `snapshot_download`, which starts a large file again after every interruption.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import BusyError, TuneError
from ollama_tune.core.files import sha256_of, write_atomic
from ollama_tune.core.models import locate
from ollama_tune.core.models.hub_errors import hub_errors, transport_error
from ollama_tune.core.models.locate import HUB_FACTS, is_complete, is_described, is_hub_id
from ollama_tune.core.models.weights import HEADERS, INDEX, SINGLE, indexed_names, no_weights
from ollama_tune.core.paths import models_dir
from ollama_tune.core.text import human_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoSibling

__all__ = ["download", "fetch_metadata", "is_hub_id"]

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    INDEX,
)
REQUIRED = ("config.json", "tokenizer.json")
LARGEST_SMALL = 64 * 2**20
SPARE = 2**29
"""Bytes that must stay free on the disk after a download."""
ATTEMPTS = 5
"""Broken connections in a row, without a byte between them, before giving up."""
TOLD_EVERY = 2**20
"""Bytes between two calls of a progress function."""
TIMEOUT = 30.0
"""Seconds without an answer."""

Progress = Callable[[int, int], None]


def fetch_metadata(source: str, revision: str | None = None) -> Path:
    """The folder of a model with everything but the weights: texts, and the headers of the weight files.

    A hub id that is on this machine already, and a folder or `bundled`, need no network. Raises
    `TuneError` when the hub cannot be reached, refuses, or has no model that could be used.
    """
    local = _local(source, revision)
    if local is not None:
        return local
    with hub_errors(source):
        api, info = _info(source, revision)
        names = _weight_files(api, info)
        folder = _snapshot(source, info)
        with exclusive(folder):
            for file in info.siblings or []:
                if file.rfilename in SMALL_FILES and not (folder / file.rfilename).is_file():
                    _fetch_small(api, info, file, folder)
            write_atomic(folder / HUB_FACTS, json.dumps(_facts(info, names)))
            write_atomic(folder / HEADERS, json.dumps(_headers(api, info, names)))
            _remember(folder, revision)
    return folder


def download(source: str, revision: str | None, progress: Progress) -> Path:
    """The folder of a model with its weights; `progress` is called with (bytes so far, bytes in all).

    An interrupted download goes on where it stopped, and a file gets its name only when its size and
    SHA-256 are right. An exception raised by `progress` stops it. Raises `TuneError`.
    """
    if not is_hub_id(source):
        return locate.resolve(source, revision)
    local = next((folder for folder in locate.snapshots(source, revision) if is_complete(folder)), None)
    if local is not None:
        return local
    described = fetch_metadata(source, revision)
    with hub_errors(source):
        api, info = _info(source, described.name)
        wanted = set(_weight_files(api, info))
        files = [file for file in info.siblings or [] if file.rfilename in wanted]
        folder = _snapshot(source, info)
        with exclusive(folder):
            fetch_files(api, info, files, folder, progress, "The model", models_dir())
    return folder


def _local(source: str, revision: str | None) -> Path | None:
    if not is_hub_id(source):
        return locate.resolve(source, revision)
    found = locate.snapshots(source, revision)
    return next((folder for folder in found if is_complete(folder) or is_described(folder)), None)


def _info(source: str, revision: str | None) -> tuple[HfApi, ModelInfo]:
    from huggingface_hub import HfApi

    api = HfApi()
    return api, api.model_info(source, revision=revision, files_metadata=True, timeout=TIMEOUT)


def _weight_files(api: HfApi, info: ModelInfo) -> list[str]:
    """Names of the safetensors files that make up the model; `TuneError` when it cannot be used."""
    names = {file.rfilename for file in info.siblings or []}
    for required in REQUIRED:
        if required not in names:
            raise TuneError(f"The model {info.id} has no {required}.", "Choose another model.")
    if SINGLE in names:
        return [SINGLE]
    if INDEX not in names:
        raise no_weights(info.id, names)
    wanted = indexed_names(json.loads(get_small(api, info, INDEX)), info.id)
    if not names.issuperset(wanted):
        raise TuneError(f"Weight files of {info.id} are missing on the hub.", "Choose another model.")
    return wanted


def _facts(info: ModelInfo, names: list[str]) -> dict[str, Any]:
    """What only the hub knows: whether a licence has to be accepted, and the bytes of the weight files."""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if file.rfilename in names}
    return {"gated": info.gated or "", "weights": sizes}


def _snapshot(source: str, info: ModelInfo) -> Path:
    folder = locate.repository_folder(models_dir(), source) / "snapshots" / str(info.sha)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _remember(folder: Path, revision: str | None) -> None:
    """Note which commit a branch or tag named."""
    if revision != folder.name:
        reference = folder.parent.parent / "refs" / (revision or "main")
        reference.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(reference, folder.name)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of the repository that a snapshot's folder belongs to. Raises `BusyError`."""
    with (folder.parent.parent / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError("Another ollama-tune is downloading this.", "Wait until it is done.") from error
        yield


def _url(api: HfApi, info: ModelInfo | DatasetInfo, name: str) -> str:
    from huggingface_hub import DatasetInfo, hf_hub_url

    kind = "dataset" if isinstance(info, DatasetInfo) else "model"
    return hf_hub_url(info.id, name, repo_type=kind, revision=info.sha, endpoint=api.endpoint)


def _headers_out() -> dict[str, str]:
    """What every request says: the library's name, and the person's token where one is stored."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return dict(build_hf_headers())


def get_small(api: HfApi, info: ModelInfo | DatasetInfo, name: str) -> bytes:
    """The bytes of a small file of a commit. Raises what the hub's library raises."""
    from huggingface_hub import get_session, hf_raise_for_status

    response = get_session().get(_url(api, info, name), headers=_headers_out(), timeout=TIMEOUT)
    hf_raise_for_status(response)
    return bytes(response.content)


def _fetch_small(api: HfApi, info: ModelInfo, file: RepoSibling, folder: Path) -> None:
    if (file.size or 0) > LARGEST_SMALL:
        raise TuneError(f"{file.rfilename} of {info.id} is much too large.", "Choose another model.")
    content = get_small(api, info, file.rfilename)
    if file.size is not None and len(content) != file.size:
        raise TuneError(f"{file.rfilename} of {info.id} arrived cut off.", "Try again.")
    write_atomic(folder / file.rfilename, content)


def _headers(api: HfApi, info: ModelInfo, names: list[str]) -> dict[str, Any]:
    """Number format and shape of every weight, from the first kilobytes of each file."""
    return {
        name: {"dtype": tensor.dtype, "shape": tensor.shape}
        for file in names
        for name, tensor in api.parse_safetensors_file_metadata(
            info.id, file, revision=info.sha, timeout=TIMEOUT
        ).tensors.items()
    }


def fetch_files(
    api: HfApi,
    info: ModelInfo | DatasetInfo,
    files: list[RepoSibling],
    folder: Path,
    progress: Progress,
    what: str,
    root: Path,
    fix: str = "Free some space, or set OLLAMA_TUNE_HOME to a folder on a larger disk.",
) -> None:
    """Bring the files of a commit that are not in `folder` yet, if the disk has room for them.

    Where it has not, `TuneError` says that `what` needs the bytes on the disk of `root`, and the `fix`.
    Raises what `fetch_file` raises.
    """
    total = sum(file.size or 0 for file in files)
    missing = _missing(folder, files, total)
    free = shutil.disk_usage(folder).free
    if missing + SPARE > free:
        needed = f"{what} needs {human_bytes(missing + SPARE)} on the disk of {root}"
        raise TuneError(f"{needed}, where {human_bytes(free)} are free.", fix)
    done = 0
    for file in files:
        path = folder / file.rfilename
        if not path.is_file():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fetch_file(api, info, file, folder, _shifted(progress, done, total))
        done += file.size or 0
        progress(done, total)


def _shifted(progress: Progress, done: int, total: int) -> Callable[[int], None]:
    return lambda count: progress(done + count, total)


def _missing(folder: Path, files: list[RepoSibling], total: int) -> int:
    """Bytes that are still to come, unfinished files taken into account."""
    return total - sum(
        path.stat().st_size
        for file in files
        for path in (folder / file.rfilename, _part(folder, file))
        if path.is_file()
    )


def _part(folder: Path, file: RepoSibling) -> Path:
    path = folder / file.rfilename
    return path.with_name(f".{path.name}.part")


def fetch_file(
    api: HfApi,
    info: ModelInfo | DatasetInfo,
    file: RepoSibling,
    folder: Path,
    progress: Callable[[int], None],
) -> None:
    """One file of a commit, of any size, into its folder (which exists); goes on where it stopped before.

    `progress` is called with the bytes so far. Raises what the hub's library raises, or `TuneError`.
    """
    part = _part(folder, file)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _stream(_url(api, info, file.rfilename), part, progress)
            break
        except transport_error() as error:
            failures = failures + 1 if part.stat().st_size == before else 1
            if failures >= ATTEMPTS or getattr(error, "response", None) is not None:
                raise
            time.sleep(0.2 * 2**failures)
    _verify(part, info, file)
    part.rename(folder / file.rfilename)


def _stream(url: str, part: Path, progress: Callable[[int], None]) -> None:
    """Append to the part what is missing; a server that cannot continue sends it from the start."""
    from huggingface_hub import get_session, hf_raise_for_status

    with part.open("ab") as output:
        held = output.tell()
        headers = {**_headers_out(), "Accept-Encoding": "identity", "Range": f"bytes={held}-"}
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            if response.status_code == 416:
                return
            hf_raise_for_status(response)
            if response.status_code == 200:
                output.truncate(0)
                held = 0
            told = held
            for chunk in response.iter_raw():
                output.write(chunk)
                held += len(chunk)
                if held - told >= TOLD_EVERY:
                    progress(told := held)


def _verify(part: Path, info: ModelInfo | DatasetInfo, file: RepoSibling) -> None:
    """Check size and, where the hub tells it, SHA-256; a wrong part is deleted, to be fetched anew."""
    right = file.size is None or part.stat().st_size == file.size
    right = right and (file.lfs is None or sha256_of(part) == file.lfs.sha256)
    if not right:
        part.unlink()
        raise TuneError(f"{file.rfilename} of {info.id} arrived damaged.", "Try again.")
    with part.open("rb") as content:
        os.fsync(content.fileno())
