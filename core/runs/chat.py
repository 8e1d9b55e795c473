"""The tokenizer and chat template of a run: what its training saw, whatever the base folder says today."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ollama_tune.core.data.chat.options import fit_options
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Row
from ollama_tune.core.files import write_atomic
from ollama_tune.core.models.chat_templates import chosen_template
from ollama_tune.core.models.tokenizer_files import read_text
from ollama_tune.core.runs.folder import RunFolder


def run_chat(folder: RunFolder, base: Path) -> ChatFormat:
    """The stored template of the run on the tokenizer of its adapter, where that has one, or of its base.

    A run without a stored template gets its base's, with the date of the run's start; for a base without
    one, the form that its settings name. Raises `UsageError` where they name none or a wrong one.
    """
    own = (folder.adapter / "tokenizer.json").is_file()
    template = read_text(folder.chat_template_path)
    now = None if template is not None else _first_day(folder)
    if template is None:
        template = chosen_template(base, folder.settings().model.chat_template)
    return ChatFormat.from_folder(folder.adapter if own else base, now, template=template, config=base)


def store_chat(folder: RunFolder, base: Path, rows: Sequence[Row] = ()) -> ChatFormat:
    """The run's chat format, its template stored at the first call: the same on every later day.

    `rows` are all usable ones of the data; the options of a new template are chosen by them.
    """
    chat = run_chat(folder, base)
    if not folder.chat_template_path.exists():
        chat = fit_options(chat, rows)
        write_atomic(folder.chat_template_path, chat.template)
    return chat


def _first_day(folder: RunFolder) -> datetime | None:
    events = folder.events()
    return datetime.fromtimestamp(events[0].t) if events else None
