"""AdaLoRA, prompt tuning and p-tuning: computed as by PEFT, resumed bit for bit, and asked as trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ollama_tune.core.data.values import Example
from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.chat import load_engine
from ollama_tune.core.evaluate.general_engine import GeneralEngine
from ollama_tune.core.export.prepare import prepare
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.plan.exportable import export_obstacle
from ollama_tune.core.plan.methods import trained_parameters
from ollama_tune.core.plan.settings import Method, parse
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.train import worker
from ollama_tune.core.train.adalora import schedule
from ollama_tune.core.train.loop import learning_rate
from ollama_tune.core.train.model import load_adapter, load_base
from ollama_tune.core.train.session import Session, Stopped, StopWish
from ollama_tune.tui.cli import _new_run
from ollama_tune.tui.exporting import look
from ollama_tune.tui.printing import finished_lines
from tests.cases import machine
from tests.core.export_parts import quiet
from tests.core.loop_parts import TRAIN, Run, finished_run
from tests.core.train_parts import curve, make_run, write_rows

METHODS: tuple[Method, ...] = ("adalora", "prompt", "ptuning")
SOFT: tuple[Method, ...] = ("prompt", "ptuning")
RATES = {"adalora": 5e-2, "prompt": 3e-2, "ptuning": 1e-2}
QUESTIONS = [TRAIN[0].ids[:3], TRAIN[1].ids[:9], TRAIN[2].ids[:5]]


def settings(method: Method) -> dict[str, Any]:
    return {"method": method, "learning_rate": RATES[method], "virtual_tokens": 5, "dropout": 0.0}


@pytest.fixture(scope="module")
def model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers depend on everything before them, as those of its small random weights do not."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("lively") / "model"
    shutil.copytree(model_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    loud = {name: 6 * tensor if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    save_file(loud, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Run]:
    home = tmp_path_factory.mktemp("home")
    return {method: finished_run(model, home, **settings(method)) for method in METHODS}


@pytest.fixture(scope="module")
def published(runs: dict[Method, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Path]:
    folders = {method: tmp_path_factory.mktemp(method) for method in METHODS}
    for method, folder in folders.items():
        runs[method].path.write_adapter(folder)
    return folders


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in run.path.weights.items()}


@pytest.mark.parametrize(("method", "step"), [("adalora", 3), ("adalora", 8), ("prompt", 3), ("ptuning", 3)])
def test_a_stopped_run_goes_on_bit_for_bit(
    model: Path, runs: dict[Method, Run], method: Method, step: int
) -> None:
    run = Run(model, **settings(method))
    run.stop_after(step)
    with pytest.raises(Stopped):
        run.trainer.run()
    run.folder.stop_path.unlink()
    other = Run(model, run.folder)
    assert other.resume() == []
    other.trainer.run()
    assert curve(other.folder.events()) == curve(runs[method].folder.events())
    found, wanted = weights(other), weights(runs[method])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def plain_steps(run: Run, folder: Path) -> Iterator[tuple[Any, float]]:
    """The same steps by a plain script of transformers and PEFT: the model and the loss after each."""
    from peft import AdaLoraConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    training, plan = run.session.settings.training, run.trainer.plan
    made: dict[Method, Any] = {
        "prompt": PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=5, prompt_tuning_init="SAMPLE_VOCAB"
        ),
        "ptuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "adalora": AdaLoraConfig(
            init_r=6,
            target_r=4,
            lora_alpha=training.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            **schedule(plan.total_steps),
        ),
    }
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(training.seed)
    with quiet():
        model: Any = get_peft_model(base, made[training.method])
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    for step in range(plan.total_steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, plan.total_steps, training)
        (rows,) = plan.window(step)
        loss = model.train()(**padded([TRAIN[row] for row in rows])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, training.max_gradient_norm)
        optimizer.step()
        if training.method == "adalora":
            model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        yield model, float(loss.detach())


def padded(rows: list[Example]) -> dict[str, torch.Tensor]:
    width = max(len(row.ids) for row in rows)
    ids, mask, labels = (torch.full((len(rows), width), fill) for fill in (0, 0, -100))
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length], mask[number, :length] = torch.tensor(row.ids), 1
        wanted = torch.tensor([t if on else -100 for t, on in zip(row.ids, row.trained, strict=True)])
        labels[number, :length] = wanted
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_that_of_a_plain_script_of_transformers_and_peft(model: Path, method: Method) -> None:
    run = Run(model, **settings(method), gradient_accumulation_steps=1)
    run.trainer.run()
    steps = list(plain_steps(run, model))
    assert len(steps) == run.trainer.plan.total_steps == 24
    losses = [loss for loss, _ in curve(run.folder.events()).values()]
    if method != "adalora":  # whose loss PEFT tells with the pull to orthogonal rows in it
        assert losses == pytest.approx([loss for _, loss in steps], abs=2e-4)
    theirs = dict(steps[-1][0].named_parameters())
    for name, ours in weights(run).items():
        other = theirs[name if method != "adalora" else f"{name}.default"]
        torch.testing.assert_close(ours, other.detach(), rtol=2e-3, atol=2e-4)
    if method == "adalora":
        kept = [int((weight != 0).sum()) for name, weight in weights(run).items() if name.endswith("lora_E")]
        assert len(set(kept)) > 1 and sum(kept) == 4 * len(kept)


def test_the_plan_counts_the_parameters_that_are_there(model: Path, runs: dict[Method, Run]) -> None:
    for run in runs.values():
        held = sum(weight.numel() for weight in weights(run).values())
        assert held == trained_parameters(run.session.settings.training, read_spec(str(model)))


def test_ranks_move_between_layers_until_half_of_the_run(runs: dict[Method, Run]) -> None:
    found = {name: int((w != 0).sum()) for name, w in weights(runs["adalora"]).items() if "lora_E" in name}
    assert sum(found.values()) == 4 * len(found) and min(found.values()) < 4 < max(found.values()) <= 6
    assert schedule(12) == {"total_step": 12, "tinit": 1, "tfinal": 6, "deltaT": 1}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_run_has_ranks_to_give(model: Path, steps: int) -> None:
    planned = schedule(steps)
    assert planned["tinit"] < planned["total_step"] - planned["tfinal"] >= 2
    run = Run(model, **settings("adalora"), gradient_accumulation_steps=12, epochs=steps)
    run.trainer.run()
    kept = [int((weight != 0).sum()) for name, weight in weights(run).items() if name.endswith("lora_E")]
    assert run.trainer.state.step == steps and (sum(kept) == 4 * len(kept) or steps < 2)


def logits(engine: Any, ids: tuple[int, ...]) -> torch.Tensor:
    found: torch.Tensor = engine.logits(ids, range(len(ids)), tuned=True)
    return found


def test_a_published_adalora_is_a_plain_lora_with_the_same_logits(
    model: Path, runs: dict[Method, Run], published: dict[Method, Path]
) -> None:
    run, folder = runs["adalora"], published["adalora"]
    training = run.session.settings.training
    wanted = logits(run.path.engine, TRAIN[0].ids)
    assert not torch.allclose(wanted, run.path.engine.logits(TRAIN[0].ids, range(len(wanted)), tuned=False))
    by_peft = GeneralEngine(load_adapter(load_base(model, training), folder))
    fast = load_engine(model, folder, training)
    assert type(fast).__name__ == "FastEngine"
    for engine in (by_peft, fast):
        torch.testing.assert_close(logits(engine, TRAIN[0].ids), wanted, rtol=1e-4, atol=2e-5)


def greedy(model: Any, prompt: tuple[int, ...], count: int) -> list[int]:
    """By PEFT's own forward pass of the whole text, without a cache, one prompt alone."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("method", SOFT)
def test_a_soft_prompt_answers_with_a_cache_and_in_batches_as_peft_does(
    model: Path, runs: dict[Method, Run], published: dict[Method, Path], method: Method
) -> None:
    training = runs[method].session.settings.training
    tuned = load_adapter(load_base(model, training), published[method])
    engine = load_engine(model, published[method], training)
    seen: list[int] = []
    found = engine.decode(
        QUESTIONS, 6, tuned=True, stop_ids=[], on_tokens=lambda tokens: seen.append(len(tokens))
    )
    assert found == [greedy(tuned, question, 6) for question in QUESTIONS] and seen == [3] * 6
    assert found == runs[method].path.engine.decode(QUESTIONS, 6, tuned=True, stop_ids=[])
    base = engine.decode(QUESTIONS, 6, tuned=False, stop_ids=[])
    with tuned.disable_adapter():
        assert base == [greedy(tuned, question, 6) for question in QUESTIONS] != found


@pytest.mark.parametrize("method", SOFT)
def test_likelihoods_and_logits_are_those_of_peft(
    model: Path, runs: dict[Method, Run], published: dict[Method, Path], method: Method
) -> None:
    training = runs[method].session.settings.training
    tuned = load_adapter(load_base(model, training), published[method])
    engine = load_engine(model, published[method], training)
    for row in TRAIN[:3]:
        with torch.no_grad():
            answer = tuned(**padded([row]))
        whole = answer.logits[0, 5:]
        torch.testing.assert_close(logits(engine, row.ids), whole, rtol=1e-4, atol=1e-5)
        summed = -float(answer.loss) * sum(row.trained)
        assert engine.likelihoods(TRAIN[:3], tuned=True)[TRAIN.index(row)] == pytest.approx(summed, rel=1e-4)
    alone = load_base(model, training)(torch.tensor([TRAIN[0].ids])).logits[0]
    torch.testing.assert_close(engine.logits(TRAIN[0].ids, range(len(alone)), tuned=False), alone)


@pytest.mark.parametrize("method", SOFT)
def test_virtual_tokens_are_never_supervised_nor_counted(runs: dict[Method, Run], method: Method) -> None:
    path, rows = runs[method].path, TRAIN[:2]
    text = Example("", rows[0].ids, (True,) * len(rows[0].ids), rows[0].offsets)
    batch = path.collate([rows[1], text])
    assert int((batch.ids == -1).sum()) == 10
    assert int((batch.trained & (batch.ids == -1)).sum()) == 0
    assert batch.useful_tokens == sum(len(row.ids) for row in rows)
    wanted = sum(rows[1].trained) + len(text.ids) - 1
    assert batch.supervised_tokens == int(batch.trained[:, 1:].sum()) == wanted
    with path.without_adapter():
        assert int((path.collate(rows).ids == -1).sum()) == 0


@pytest.mark.parametrize("method", SOFT)
def test_the_base_is_measured_without_the_soft_prompt(
    model: Path, runs: dict[Method, Run], method: Method
) -> None:
    plain = Run(model, dropout=0.0)
    assert runs[method].trainer.base_loss() == pytest.approx(plain.trainer.base_loss(), rel=1e-6)
    assert runs[method].trainer.validation_loss() < plain.trainer.base_loss()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["mlp", "layers"])
def test_what_is_recomputed_changes_no_gradient(model: Path, method: Method, what: str) -> None:
    found = []
    for recompute in ("none", what):
        run = Run(model, **settings(method), gradient_checkpointing=recompute)
        run.path.train(True)
        loss = run.path.loss(run.path.collate(TRAIN[:3]))
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in run.path.weights.values())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_padded_rows_have_the_losses_of_rows_end_to_end(model: Path, runs: dict[Method, Run]) -> None:
    for method in SOFT:
        path = runs[method].path
        with torch.no_grad():
            laid = path.loss(path.collate(TRAIN[:4]))
            path.padded = True
            apart = path.loss(path.collate(TRAIN[:4]))
            path.padded = False
        assert float(laid) == pytest.approx(float(apart), rel=1e-5)


# whole runs, by the worker's stages in this process


def work_here(run: RunFolder, stage: str) -> None:
    session = Session(run, StopWish(run))
    session.finish("done", **worker._work(session, stage))


def test_an_adalora_run_ends_with_a_proved_export(model_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    training = {"method": "adalora", "learning_rate": 5e-2, "epochs": 1.0}
    export = {"name": "tiny", "type": "f16", "push": False, "also": ["adapter_gguf"]}
    run = make_run(model_folder, rows, training=training, export=export, evaluation={"rows": 2})
    work_here(run, "all")
    events = run.events()
    assert next(event for event in events if event.kind == "start")["path"] == "general"
    assert [event["verdict"] for event in events if event.kind == "verification"] == ["pass"]
    assert (run.export / "tiny-adapter.gguf").is_file() and events[-1].kind == "done"


def test_a_prompt_run_ends_with_its_adapter_and_a_plain_sentence(model_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    training = {"method": "prompt", "virtual_tokens": 5, "epochs": 1.0}
    run = make_run(model_folder, rows, training=training, evaluation={"rows": 2})
    work_here(run, "all")
    assert [event["stage"] for event in run.events() if event.kind == "done"] == ["train"]
    adapter, *_ = finished_lines(run)
    assert str(run.adapter) in adapter and adapter.endswith(export_obstacle(run.settings()))
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"prompt_embeddings": (5, 64)}
    with pytest.raises(TuneError) as refused:
        prepare(run, lambda *_, **__: None, lambda: False)
    assert refused.value.what == export_obstacle(run.settings())
    found = look(run, machine())
    assert found.spec is not None and found.spec.export_reason == export_obstacle(run.settings())


def test_the_command_line_says_before_a_run_that_it_has_no_export(model_folder: Path, tmp_path: Path) -> None:
    wanted = parse({"model": {"source": str(model_folder)}, "training": {"method": "ptuning"}})
    wanted.save(tmp_path / "run.yaml")
    told: list[str] = []
    _new_run(tmp_path / "run.yaml", {}, told.append)
    assert told[0] == f"! {export_obstacle(wanted)}"
