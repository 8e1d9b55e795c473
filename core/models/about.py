"""What a person wants to know of a base model besides its shape, before anything large is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.models.chat_templates import TemplateOffer, offer_template
from ollama_tune.core.models.locate import HUB_FACTS, is_complete
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.models.values import ModelSpec

KINDS = {
    "BPE": "BPE",
    "Unigram": "Unigram (SentencePiece)",
    "WordPiece": "WordPiece",
    "WordLevel": "whole words",
}


@dataclass(frozen=True)
class About:
    """Texts and sizes for the model screen.

    `tokenizer` is its kind and size in words. `gated` is how the hub gives the model out: `auto` or
    `manual` after a licence, empty when free or not known. `offer` is a chat form for a base model.
    `to_download` are the bytes of weights that are not here yet; they go to `folder`. `newer` says that the
    hub has another version by now, where it was asked.
    """

    tokenizer: str
    gated: str
    offer: TemplateOffer | None
    to_download: int
    folder: Path
    newer: str = ""


def about(spec: ModelSpec) -> About:
    """Read what `describe` fetched, or what lies in a local folder; raises `TuneError` for damaged files."""
    facts = read_json(spec.folder / HUB_FACTS) or {}
    gated = facts.get("gated")
    return About(
        tokenizer=_tokenizer(spec),
        gated=gated if gated in ("auto", "manual") else "",
        offer=offer_template(spec.folder),
        to_download=0 if is_complete(spec.folder) else missing_bytes(spec, facts),
        folder=spec.folder,
    )


def missing_bytes(spec: ModelSpec, facts: dict[str, Any]) -> int:
    """Bytes of weights to fetch, less what an interrupted download left here."""
    sizes = facts.get("weights")
    if not isinstance(sizes, dict) or not sizes:
        return spec.weight_bytes
    known = {name: size for name, size in sizes.items() if isinstance(size, int) and Path(name).name == name}
    return sum(max(size - _held(spec.folder, name), 0) for name, size in known.items())


def _held(folder: Path, name: str) -> int:
    for path in (folder / name, folder / f".{name}.part"):
        if path.is_file():
            return path.stat().st_size
    return 0


def _tokenizer(spec: ModelSpec) -> str:
    model = (read_json(spec.folder / "tokenizer.json") or {}).get("model")
    kind = str(model.get("type") or "") if isinstance(model, dict) else ""
    return f"{KINDS.get(kind, 'of an unknown kind')}, {spec.vocabulary_size:,} entries"
