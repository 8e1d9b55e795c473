"""All weights trained: against a plain script of transformers, resumed, frozen in part, exported, asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ollama_tune.core.errors import UsageError
from ollama_tune.core.evaluate.loading import load_engine
from ollama_tune.core.plan.settings import TrainingSettings, parse
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.train import checkpoint
from ollama_tune.core.train.full import make_full
from ollama_tune.core.train.model import load_base
from ollama_tune.core.train.session import Stopped
from tests.core.loop_parts import TRAIN, Run
from tests.core.train_parts import curve, make_run, work, write_rows

PLAIN: dict[str, Any] = {
    "method": "full",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup": 0.0,
    "max_gradient_norm": 1e9,
    "weight_decay": 0.1,
    "epochs": 1.0,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of six steps on all weights, with noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        run = Run(model_folder, **PLAIN, neftune=5.0)
        run.trainer.run()
    return run


def plain_loss(model: Any, rows: list[int]) -> torch.Tensor:
    """The summed cross entropy of rows, one computed after the other."""
    total = torch.zeros(())
    for row in (TRAIN[number] for number in rows):
        logits = model(torch.tensor([row.ids])).logits[0, :-1]
        trained = torch.tensor(row.trained[1:])
        total = total + functional.cross_entropy(
            logits[trained], torch.tensor(row.ids[1:])[trained], reduction="sum"
        )
    return total


@pytest.mark.parametrize("frozen", [0, 1])
def test_every_step_is_that_of_a_plain_script(model_folder: Path, frozen: int) -> None:
    run = Run(model_folder, **PLAIN, freeze_layers=frozen)
    run.trainer.run()
    model = load_base(model_folder, TrainingSettings())
    if frozen:
        for part in (model.model.embed_tokens, model.model.layers[0]):
            part.requires_grad_(False)
    learning = {name: weight for name, weight in model.named_parameters() if not frozen}
    learning |= {n: w for n, w in model.named_parameters() if frozen and ("layers.1." in n or ".norm." in n)}
    for weight in learning.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(learning.values(), lr=1e-3, weight_decay=0.1)
    losses = []
    for step in range(run.trainer.plan.total_steps):
        rows = [row for batch in run.trainer.plan.window(step) for row in batch]
        loss = plain_loss(model, rows) / sum(sum(TRAIN[row].trained[1:]) for row in rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    found = [loss for loss, _ in curve(run.folder.events()).values()]
    assert found == pytest.approx(losses, rel=1e-4) and len(found) == 6
    assert run.path.weights.keys() == learning.keys()
    theirs = dict(model.named_parameters())
    for name, weight in run.model.named_parameters():
        torch.testing.assert_close(weight.detach(), theirs[name].detach(), rtol=1e-3, atol=2e-5)


def test_a_stop_and_a_resume_give_the_same_curve_bit_for_bit(model_folder: Path, undisturbed: Run) -> None:
    first = Run(model_folder, **PLAIN, neftune=5.0)
    first.stop_after(2)
    with pytest.raises(Stopped):
        first.trainer.run()
    first.folder.stop_path.unlink()
    second = Run(model_folder, first.folder)
    assert second.resume() == []
    second.trainer.run()
    assert curve(second.folder.events()) == curve(undisturbed.folder.events())
    for name, weight in second.path.weights.items():
        assert torch.equal(weight, undisturbed.path.weights[name]), name


def test_the_way_back_is_the_base_and_no_second_model_waits_for_it(
    model_folder: Path, undisturbed: Run
) -> None:
    base, path = load_base(model_folder, TrainingSettings()), undisturbed.path
    kept = {name: weight.detach().clone() for name, weight in path.weights.items()}
    assert not all(torch.equal(kept[name], weight) for name, weight in base.named_parameters())
    path.way_back()()
    assert all(torch.equal(path.weights[name], weight) for name, weight in base.named_parameters())
    path.load_adapter(kept)


def test_a_checkpoint_holds_what_learns_in_32_bit_and_nothing_else(undisturbed: Run) -> None:
    found, _ = checkpoint.newest(undisturbed.folder)
    assert found is not None
    names = sorted(path.name for path in found.path.iterdir())
    assert names == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    sizes = {name: (found.path / name).stat().st_size for name in names}
    trained = sum(weight.nbytes for weight in undisturbed.path.weights.values())
    assert sizes["weights.safetensors"] == pytest.approx(trained, rel=0.01)
    assert sizes["optimizer.safetensors"] == pytest.approx(2 * trained, rel=0.02)


@pytest.mark.parametrize("recompute", ["none", "layers"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_16_bit_arithmetic_gives_about_the_gradients_of_32(
    model_folder: Path, dtype: str, recompute: str
) -> None:
    def gradients(**values: Any) -> dict[str, torch.Tensor]:
        path = make_full(model_folder, TrainingSettings.model_validate({"method": "full"} | values), "")
        path.train(True)
        path.loss(path.collate(TRAIN[:3])).backward()  # type: ignore[no-untyped-call]
        assert all(weight.dtype == torch.float32 for weight in path.weights.values())
        return {name: weight.grad for name, weight in path.weights.items() if weight.grad is not None}

    exact, found = gradients(), gradients(compute_dtype=dtype, gradient_checkpointing=recompute)
    assert found.keys() == exact.keys()
    far = 1e-4 if dtype == "float32" else 0.06
    for name, gradient in found.items():
        assert (gradient - exact[name]).norm() <= far * exact[name].norm(), name


# A whole run, and what its result is good for


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        folder = make_run(
            model_folder,
            write_rows(home / "rows.jsonl", 24),
            training={"method": "full", "learning_rate": 2e-3, "epochs": 1.0},
            export={"name": "whole", "type": "q8_0", "push": False, "also": ["merged"]},
        )
        done = work(folder, "all")
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return folder


def test_the_base_is_measured_before_it_changes_and_the_file_is_proved(finished: RunFolder) -> None:
    events = finished.events()
    kinds = [(e.kind, e.get("model")) for e in events if e.kind in ("step", "evaluation")]
    assert kinds[0] == ("evaluation", "base") and kinds[1] == ("step", None)
    assert [event["name"] for event in events if event.kind == "phase"].count("training") == 1
    measured = [event["loss"] for event in events if event.kind == "evaluation"]
    assert measured[-1] < measured[0] - 0.3
    (proof,) = [event for event in events if event.kind == "verification"]
    verdicts = {check["name"]: check["verdict"] for check in proof["checks"]}
    assert proof["verdict"] == "pass"
    assert [verdicts[name] for name in ("structure", "tensors", "probabilities", "answers")] == ["pass"] * 4
    assert not [event for event in events if event.kind in ("warning", "error")]


def test_the_result_is_a_model_folder_in_32_bit_and_the_merged_one_in_16(finished: RunFolder) -> None:
    from safetensors import safe_open

    assert finished.tuned == finished.model and not finished.adapter.exists()
    stored = json.loads((finished.model / "config.json").read_text())["dtype"]
    merged = finished.export / "whole-merged"
    assert (stored, json.loads((merged / "config.json").read_text())["dtype"]) == ("float32", "bfloat16")
    for folder, dtype in ((finished.model, "F32"), (merged, "BF16")):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {dtype}  # noqa: SIM118
        model = load_base(folder, TrainingSettings())
        assert model.num_parameters() > 0


@pytest.mark.parametrize("path", ["auto", "general"])
def test_base_and_tuned_model_answer_from_two_folders(
    model_folder: Path, finished: RunFolder, path: str
) -> None:
    training = finished.settings().training.model_copy(update={"path": path})
    assert finished.tuned is not None
    engine = load_engine(model_folder, finished.tuned, training)
    known = json.loads((finished.path / "reference.json").read_text())["prompts"][0]
    prompt, place = known["prompt_ids"], known["positions"][0]
    answers = [engine.decode([prompt], 8, tuned=tuned, stop_ids=[2])[0] for tuned in (True, False)]
    assert answers[0][: len(known["answer_ids"])] == known["answer_ids"] != answers[1][: len(answers[0])]
    ids = [*prompt, *known["answer_ids"][: place["index"]]]
    logs = engine.logits(ids, [len(ids) - 1], tuned=True)[0].log_softmax(-1)
    assert logs[place["ids"]].tolist() == pytest.approx(place["logprobs"], abs=1e-3)


# What cannot be


@pytest.mark.parametrize(
    ("training", "also", "words"),
    [
        ({"quantization": "nf4"}, [], "4 bit cannot hold"),
        ({"path": "fast"}, [], "path fast trains method lora only"),
        ({}, ["adapter"], "makes no adapter"),
        ({}, ["merged", "adapter_gguf"], "makes no adapter"),
        ({"dora": True}, [], "forms of method lora"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_sentence(
    training: dict[str, Any], also: list[str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        parse({"training": {"method": "full"} | training, "export": {"also": also}})
