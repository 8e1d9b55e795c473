"""From a model and a data file to a plan, in one call, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_tune.core.data.lengths import encode_rows, measure
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.probe import probe_machine
from ollama_tune.core.models.describe import describe
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.settings import BUNDLED
from ollama_tune.core.plan.values import Plan


def prepare(model: str, data: str, changed: Mapping[str, Any]) -> Plan:
    """Probe the box, read model and data, and recommend settings; `changed` are the person's own."""
    spec = describe(model, changed.get("model.revision"))
    profile = load_dataset(data)
    examples, problems = encode_rows(ChatFormat.from_folder(spec.folder), profile.rows)
    if not examples:
        reason = problems[0].text if problems else "The file has no usable row."
        raise TuneError(f"Nothing in {data} can be trained on: {reason}", "Use other data or another model.")
    mine = {} if data == BUNDLED else {"data.path": data}
    return make_plan(probe_machine(), spec, measure(examples), mine | dict(changed))
