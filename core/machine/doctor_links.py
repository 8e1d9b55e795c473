"""Checks of what is asked over a network: Ollama, and the hub that models come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ollama_tune.core.machine.doctor import Check, ok, warn
from ollama_tune.core.text import human_bytes, one_line, visible

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
HUB = "https://huggingface.co"
PATIENCE = 3.0
LITTLE = 10 << 30


def ollama() -> Iterator[Check]:
    """The server's address and version, what it holds in memory, and the room for its models."""
    from ollama_tune.core.machine.generations import generation
    from ollama_tune.core.machine.ollama import read_ollama
    from ollama_tune.core.machine.probe import ollama_disk

    status = read_ollama()
    if not status.reachable:
        what, _, advice = status.reason.removesuffix(".").partition("; ")
        advice = f"{advice[:1].upper()}{advice[1:]}" if advice else "Check OLLAMA_HOST"
        yield warn(visible(what), f"{advice}; without it, the export stays a file.", "server")
        return
    said = f"{visible(str(status.version))} at {visible(status.url)}"
    about = generation(str(status.version))
    if about.usable:
        yield ok(f"{said}, {about.text}", "server")
    else:
        yield warn(f"{said} is too old: it {about.text}", "Update Ollama to 0.30 or newer.", "server")
    for model in status.loaded:
        size = f"{one_line(model.name, 40)} holds {human_bytes(model.size)}"
        gpu = f", {human_bytes(model.vram)} of it on the GPU" if model.vram else ""
        yield warn(f"{size}{gpu}", "`ollama-tune probe --unload` makes room before a run.", "loaded")
    disk = ollama_disk(status)
    if disk is not None:
        said = f"{visible(disk.path)}, {human_bytes(disk.free)} free"
        few = "Free some space there: the finished model is copied into it."
        yield ok(said, "store") if disk.free >= LITTLE else warn(said, few, "store")


def hub() -> Iterator[Check]:
    """The Hugging Face settings that decide about downloads; a token's value is never looked at aloud."""
    yield ok(_token(), "token")
    offline = [
        name for name in OFFLINE if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")
    ]
    if offline:
        yield warn(
            f"{offline[0]} is set: nothing is downloaded", f"Unset {offline[0]} for a download.", "offline"
        )
    proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    if proxies:
        yield ok(f"by {', '.join(proxies)}", "proxy")


def _token() -> str:
    """Where a token is found, as huggingface_hub looks for one; never the token itself."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return f"there, by {name}"
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        found = bool(path.read_text(encoding="utf-8", errors="replace").strip())
    except OSError:
        found = False
    return f"there, in {visible(str(path))}" if found else "none; only gated and private models need one"


def hub_reach() -> Iterator[Check]:
    """Whether the hub answers from here, asked without the token."""
    import httpx

    place = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB
    shown = visible(urlsplit(place).hostname or place)
    if any(check.name == "offline" for check in hub()):
        yield ok(f"{shown} was not asked: offline is wished")
        return
    try:
        status = httpx.head(f"{place}/api/models", timeout=PATIENCE, follow_redirects=True).status_code
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        why = one_line(str(error), 80) or type(error).__name__
        fix = "Check the network and the proxy; models that are here already need no hub."
        yield warn(f"{shown} does not answer ({why})", fix)
        return
    if status >= 500:
        yield warn(f"{shown} answers with an error ({status})", "Try again later.")
    else:
        yield ok(f"{shown} answers")
