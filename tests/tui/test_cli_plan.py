"""`ollama-tune plan`: for people and for programs, for this box and for cards to rent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.settings import field_paths, load
from ollama_tune.tui.cli import cli
from ollama_tune.tui.plan_cli import plan
from tests.core.test_plan_prepare import CONFIG


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path)


def run(*arguments: str, simulate: bool = False) -> str:
    """What the command prints; quick, without the child process that simulates, unless asked for."""
    arguments += () if simulate else ("--no-simulation",)
    done = CliRunner().invoke(plan, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def as_json(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return found


def test_json_has_every_documented_key_and_plain_numbers(model: str) -> None:
    found = as_json("--model", model, "--gpu", "RTX 4090", "--set", "training.rank=32")
    assert set(found) == {
        "version", "settings", "choices", "changed", "memory", "work", "offers", "warnings", "gpu", "gpus"
    }  # fmt: skip
    assert set(found["choices"]) == set(field_paths()) - {"training.rank"}
    assert set(found["choices"]["training.epochs"]) == {"value", "reason", "source"}
    assert found["changed"] == ["training.rank"]
    assert found["settings"]["training"]["rank"] == 32
    memory = found["memory"]
    assert memory["needed_bytes"] == sum(memory["parts"].values())
    assert memory["fits"] is True
    assert found["gpu"]["name"] == "RTX 4090"
    assert found["work"]["energy_kwh"] > 0
    assert found["work"]["seconds"] > 0
    assert found["offers"] == []


def test_offers_stand_in_json_and_their_options_work_as_they_stand(model: str) -> None:
    asked = ("--model", model, "--gpu", "12GiB", "--set", "training.batch_size=2048")
    offer = as_json(*asked)["offers"][0]
    assert offer["memory"]["fits"] is True
    lines = run(*asked).splitlines()
    at = next(i for i, line in enumerate(lines) if offer["text"] in line)
    options = lines[at + 1].split()
    then = as_json("--model", model, "--gpu", "12GiB", *options)
    assert then["memory"]["fits"] is True
    assert then["memory"] == offer["memory"]


def test_a_person_reads_reason_and_source_memory_time_energy_and_disk(model: str) -> None:
    text = run("--model", model, "--gpu", "RTX 4090", "--set", "training.epochs=1")
    for words in ("[LoRA Without Regret]", "[convention]", "yours", "fits", "between", "kWh", "TFLOP/s"):
        assert words in text
    assert "activations" in text
    assert "what would fit" not in text


def test_a_written_run_yaml_holds_the_plan(model: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    found = as_json("--model", model, "--gpu", "24GiB", "--output", str(file))
    assert load(file).model_dump() == found["settings"]


def test_an_unknown_card_names_the_nearest(model: str) -> None:
    with pytest.raises(UsageError, match="RTX 4095"):
        CliRunner().invoke(
            plan, ["--model", model, "--gpu", "RTX 4095"], catch_exceptions=False, standalone_mode=False
        )


def test_the_memory_is_simulated_after_the_plan_is_printed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    asked = ("--model", model, "--gpu", "RTX 4090")
    lines = run(*asked, simulate=True).splitlines()
    formula = next(i for i, line in enumerate(lines) if line.endswith("(formula)"))
    simulated = next(i for i, line in enumerate(lines) if line.endswith("(simulated)"))
    assert formula < simulated
    memory = json.loads(run(*asked, "--json", simulate=True))["memory"]
    assert (memory["method"], memory["remark"]) == ("simulated", "")


def test_an_error_is_one_object_where_that_was_asked_for(model: str) -> None:
    done = CliRunner().invoke(cli, ["plan", "--model", model, "--gpu", "RTX 4095", "--json"])
    assert done.exit_code == 2
    told = json.loads(done.stdout)
    assert told["outcome"] == "error" and "RTX 4095" in told["what"] and told["fix"]


def test_a_run_yaml_is_planned_as_it_stands(model: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {{source: {model}}}\ntraining: {{device: cuda, rank: 64, batch_size: 32}}\n")
    found = as_json(str(path), "--gpu", "8GiB", "--set", "training.alpha=8")
    training = found["settings"]["training"]
    assert (training["rank"], training["alpha"], training["batch_size"]) == (64, 8, 32)
    assert set(field_paths()) == set(found["changed"])
    assert not found["memory"]["fits"] and found["offers"]
    with pytest.raises(UsageError, match="names model and data"):
        run(str(path), "--data", "rows.jsonl")
