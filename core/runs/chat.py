"""The tokenizer and chat template of a run: what its training saw, whatever the base folder says today."""

from __future__ import annotations

from pathlib import Path

from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.models.tokenizer_files import read_text
from ollama_tune.core.runs.folder import RunFolder


def run_chat(folder: RunFolder, base: Path) -> ChatFormat:
    """The stored template of the run on the tokenizer of its adapter, where that has one, or of its base."""
    own = (folder.adapter / "tokenizer.json").is_file()
    template = read_text(folder.chat_template_path)
    return ChatFormat.from_folder(folder.adapter if own else base, template=template, config=base)
