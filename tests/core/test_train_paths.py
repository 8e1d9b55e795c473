"""The two ways to compute a model under one loop: the same losses, the same steps, the same checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.plan.paths import FAST, PathName, choose_path
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.path import STEPS_DOWN
from ollama_tune.core.train.session import Stopped
from tests.core.loop_parts import Run
from tests.core.train_parts import curve, kinds, make_run, quiet_environment, write_rows

PLAIN: dict[str, Any] = {"dropout": 0.0, "epochs": 1.0}
PATHS: tuple[PathName, ...] = ("general", "fast")


@pytest.fixture(scope="module")
def runs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[PathName, Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        made = {name: Run(model_folder, computed=name, **PLAIN) for name in PATHS}
        for run in made.values():
            run.trainer.run()
    return made


def assert_close(found: Run, wanted: Run) -> None:
    ours, theirs = curve(found.folder.events()), curve(wanted.folder.events())
    assert list(ours) == list(theirs)
    for step, figures in theirs.items():
        assert ours[step] == pytest.approx(figures, abs=1e-5, rel=2e-5), step


def test_both_paths_give_the_same_losses_at_every_step(runs: dict[PathName, Run]) -> None:
    assert_close(runs["fast"], runs["general"])
    told = [
        [(e.kind, e["step"], e.data.get("useful_tokens"), e.data.get("rows")) for e in run.folder.events()]
        for run in runs.values()
    ]
    assert told[0] == told[1] and len(told[0]) > 12


@pytest.mark.parametrize(("first", "second"), [PATHS, PATHS[::-1]])
def test_a_run_stopped_on_one_path_goes_on_on_the_other(
    model_folder: Path, runs: dict[PathName, Run], first: PathName, second: PathName
) -> None:
    run = Run(model_folder, computed=first, **PLAIN)
    run.stop_after(3)
    with pytest.raises(Stopped):
        run.trainer.run()
    run.folder.stop_path.unlink()
    other = Run(model_folder, run.folder, computed=second)
    assert other.resume() == []
    other.trainer.run()
    assert_close(other, runs[first])


@pytest.mark.parametrize("computed", PATHS)
@pytest.mark.parametrize("what", STEPS_DOWN)
def test_what_is_recomputed_changes_no_gradient(model_folder: Path, computed: PathName, what: str) -> None:
    found = []
    for recompute in ("none", what):
        run = Run(model_folder, computed=computed, dropout=0.2, gradient_checkpointing=recompute)
        run.path.train(True)
        torch.manual_seed(3)
        loss = run.path.loss(run.trainer.computer.collate([0, 1, 2]))
        loss.backward()
        gradients = [weight.grad for weight in run.path.weights.values() if weight.grad is not None]
        assert len(gradients) == len(run.path.weights)
        found.append((loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


WATCH = """
import sys
from ollama_tune.core.train import worker
done = worker.main(sys.argv[1:])
print(done, sorted({name.partition(".")[0] for name in sys.modules} & {"transformers", "peft", "datasets"}))
"""


def test_a_fast_run_never_imports_transformers_or_peft(model_folder: Path, tmp_path: Path) -> None:
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"), training={"epochs": 1.0})
    command = [sys.executable, "-c", WATCH, str(folder.path)]
    done = subprocess.run(command, capture_output=True, timeout=300, env=quiet_environment(), check=True)
    assert done.stdout.decode().split("\n")[-2] == "0 []"
    events = folder.events()
    assert (events[0]["path"], "padding" in events[0]["path_reason"]) == ("fast", False)
    assert events[0]["path_reason"] == FAST
    assert kinds(events)[-1] == "done" and (folder.adapter / "adapter_model.safetensors").exists()


def test_the_path_is_chosen_with_a_reason(model_folder: Path) -> None:
    spec = read_spec(str(model_folder))
    assert choose_path(spec, TrainingSettings())[0] == "fast"
    assert choose_path(spec, TrainingSettings(path="general")) == (
        "general",
        "The settings ask for transformers and PEFT.",
    )
    name, reason = choose_path(spec, TrainingSettings(dora=True))
    assert name == "general" and "DoRA" in reason
    with pytest.raises(TuneError, match="DoRA"):
        choose_path(spec, TrainingSettings(dora=True, path="fast"))


def test_dora_is_trained_written_and_resumed(model_folder: Path) -> None:
    run = Run(model_folder, **PLAIN, dora=True)
    run.trainer.run()
    losses = [loss for loss, _ in curve(run.folder.events()).values()]
    assert losses[-1] < losses[0]
    assert len([name for name in run.path.weights if "magnitude" in name]) == 14
    again = Run(model_folder, run.folder)
    assert again.resume() == []
    for name, weight in again.path.weights.items():
        assert torch.equal(weight, run.path.weights[name]), name


@pytest.mark.parametrize("computed", PATHS)
def test_rank_stabilised_lora_scales_by_the_root_of_the_rank(model_folder: Path, computed: PathName) -> None:
    losses = []
    for extra in ({"rslora": True, "alpha": 8}, {"rslora": False, "alpha": 16}):
        run = Run(model_folder, computed=computed, **PLAIN | extra)  # type: ignore[arg-type]
        losses.append([run.trainer.compute(run.trainer.plan.window(step), step) for step in range(3)])
    assert losses[0] == losses[1]
