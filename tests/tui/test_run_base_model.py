"""A base model without a chat form through the whole wizard: the offered form is what Ollama then renders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.models.chat_templates import offer_template
from ollama_tune.core.runs.folder import list_runs
from ollama_tune.tui.app import Start, TuneApp
from ollama_tune.tui.screens.export import ExportScreen
from ollama_tune.tui.state import WizardState
from tests.ollama_double import OllamaDouble
from tests.tiny import build_model
from tests.tui.conftest import write_rows
from tests.tui.run_logs import until, until_text

CHANGED = {
    "training.rank": 4,
    "training.alpha": 8,
    "training.learning_rate": 5e-3,
    "training.epochs": 1.0,
    "training.batch_size": 8,
    "evaluation.rows": 2,
    "evaluation.max_new_tokens": 8,
}


def base_model(folder: Path) -> Path:
    """A tiny model that ends texts with <|endoftext|>, and nothing says how people talk to it."""
    build_model(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"eos_token_id": 0}))
    return folder


async def test_the_offered_chat_form_goes_into_training_proof_and_ollama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, rows = base_model(tmp_path / "tiny"), write_rows(tmp_path / "rows.jsonl")
    offer = offer_template(model)
    assert offer is not None
    answers = WizardState(step=2, model=str(model), data=str(rows), changed=CHANGED)
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        app = TuneApp(Start(answers), warm=False)
        async with app.run_test(size=(120, 40)) as pilot:
            for step, text in enumerate(("offered: plain roles", "40 rows", "fits", "ollama-tune run"), 2):
                await until_text(pilot, f"Step {step} of 9", text)
                await pilot.press("enter")
            await until_text(pilot, "✓ Finished after")
            await pilot.press("enter", "enter")
            await until(pilot, lambda: isinstance(app.screen, ExportScreen))
            await until_text(pilot, "tiny-rows", "0.34.4")
            await pilot.press("enter")
            await until_text(pilot, "✓ Exported.", "Proved", "✓ ollama")
    (run,) = list_runs()
    assert run.settings().model.chat_template == "plain roles"
    proof = json.loads((run.export / "verification.json").read_text())
    assert proof["verdict"] in ("pass", "warn")
    verdicts = {check["name"]: check["verdict"] for check in proof["checks"]}
    assert verdicts["chat"] == verdicts["tokens"] == "pass"
    assert "<|{{ message['role'] }}|>" in run.chat_template_path.read_text()
    (gguf,) = run.export.glob("*.gguf")
    with LlamaServer(gguf, 512) as llama:
        text = llama.render([{"role": "user", "content": "Is it blue?"}])
    assert text == "<|user|>\nIs it blue?\n<|assistant|>\n"
