from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train import loss as loss_module
from ollama_tune.core.train.batches import Batch, collate
from ollama_tune.core.train.loss import CHUNK, EVEN, Objective, summed_loss
from ollama_tune.core.train.model import add_adapter, load_base


def example(length: int, seed: int) -> Example:
    chance = random.Random(seed)
    ids = tuple(chance.randrange(3, 370) for _ in range(length))
    trained = (*(chance.random() < 0.5 for _ in range(length - 1)), True)
    return Example("", ids, trained, ((0, 0),) * length)


EXAMPLES = [example(length, length) for length in (5, 9, 33, 17, 64, 21, 40, 12)]


def tuned(model_folder: Path, **changes: Any) -> Any:
    """A model whose adapter is not zero."""
    training = TrainingSettings(**changes)
    model = add_adapter(load_base(model_folder, training), training, "tiny")
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def batch(examples: list[Example] = EXAMPLES) -> Batch:
    return collate(examples, 0, "cpu")


def row_by_row(model: Any, examples: list[Example]) -> torch.Tensor:
    """The plain definition: full logits of one unpadded row at a time, in a loop over its tokens."""
    total = torch.zeros(())
    for row in examples:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for place in range(1, len(row.ids)):
            if row.trained[place]:
                total = total - logits[place - 1, row.ids[place]]
    return total


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("checkpointing", ["none", "layers"])
def test_masked_loss_and_gradients_equal_the_plain_full_logits_computation(
    model_folder: Path, checkpointing: str
) -> None:
    model = tuned(model_folder, gradient_checkpointing=checkpointing).train()
    objective = Objective(model.get_base_model())
    ours = objective(batch())
    ours.backward()
    got = gradients(model)
    plain = row_by_row(model, EXAMPLES)
    plain.backward()
    expected = gradients(model)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    assert set(got) == set(expected) and len(got) == 28
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def test_four_batches_of_two_give_the_gradient_of_one_batch_of_eight(model_folder: Path) -> None:
    model = tuned(model_folder).train()
    objective = Objective(model.get_base_model())
    whole = batch()
    (objective(whole) / whole.supervised_tokens).backward()
    expected = gradients(model)
    for start in range(0, 8, 2):
        (objective(batch(EXAMPLES[start : start + 2])) / whole.supervised_tokens).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_chunks_change_neither_loss_nor_gradient(bias: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(CHUNK * 2 + 7, 16, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(16, 50, bias=bias, dtype=torch.float64).requires_grad_(False)
    targets = torch.randint(0, 50, (len(hidden),))
    ours = summed_loss(hidden, targets, head) * 3
    (got,) = torch.autograd.grad(ours, hidden)
    plain = functional.cross_entropy(head(hidden).float(), targets, reduction="sum") * 3
    (expected,) = torch.autograd.grad(plain, hidden)
    torch.testing.assert_close(ours.float(), plain.float())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("train_head", [True, False])
def test_tokens_that_make_a_chunk_even_change_neither_loss_nor_gradient(
    train_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(CHUNK + 77, 64, requires_grad=True)
    targets = torch.randint(0, 300, (len(hidden),))
    head = torch.nn.Linear(64, 300, bias=not train_head).requires_grad_(train_head)
    sizes: list[int] = []
    head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))

    def found() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = summed_loss(hidden, targets, head, [100, CHUNK - 23], train_head=train_head)
        weights = [hidden, *(head.parameters() if train_head else ())]
        return [loss.detach(), *torch.autograd.grad(loss[0] + 2 * loss[1], weights)]

    even = found()
    assert set(sizes) == {CHUNK, EVEN}
    monkeypatch.setattr(loss_module, "EVEN", 1)
    for got, expected in zip(even, found(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert 77 in sizes


def test_in_32_bit_chunks_are_as_they_are() -> None:
    sizes: list[int] = []
    head = torch.nn.Linear(16, 50)
    head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    summed_loss(torch.randn(77, 16), torch.randint(0, 50, (77,)), head, train_head=True)
    assert sizes == [77]


def test_a_head_that_is_trained_gets_its_own_gradient(model_folder: Path) -> None:
    model = tuned(model_folder, targets=["q_proj"]).train()
    causal = model.get_base_model()
    causal.lm_head.weight = torch.nn.Parameter(causal.lm_head.weight.detach().clone())
    objective = Objective(causal)
    objective(batch()).backward()
    got = causal.lm_head.weight.grad.clone()
    model.zero_grad()
    row_by_row(model, EXAMPLES).backward()
    torch.testing.assert_close(got, causal.lm_head.weight.grad, rtol=1e-3, atol=1e-4)


def test_the_check_notices_a_model_that_changes_its_logits_after_the_head(model_folder: Path) -> None:
    causal = tuned(model_folder).get_base_model()
    assert Objective(causal).check(batch())
    plain = causal.forward

    def capped(**arguments: Any) -> Any:
        output = plain(**arguments)
        output.logits = 0.01 * output.logits
        return output

    causal.forward = capped
    objective = Objective(causal)
    assert not objective.check(batch())
    assert objective(batch()).item() == pytest.approx(objective.reference(batch()).item())
