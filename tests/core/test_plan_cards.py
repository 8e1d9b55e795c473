"""Cards that are not in this box: known by many names, refused with the nearest one."""

from __future__ import annotations

import pytest

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.cards import CARDS, find_card, gpu_of
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.speed import expected_rate
from tests.cases import CHAT, GIB, LLAMA_8B, machine


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("RTX 4070Ti super", "RTX 4070 Ti Super"),
        ("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti"),
        ("RTX 4060 Ti 16 GB", "RTX 4060 Ti 16GB"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("A100 80 GiB", "A100 80GB"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Blackwell"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_a_card_is_known_as_people_and_the_driver_write_it(name: str, card: str) -> None:
    found = find_card(name)
    assert found is not None
    assert found.name == card


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "Quadro RTX 6000", "Something 24GB", ""]
)
def test_another_card_with_a_similar_name_is_none_of_these(name: str) -> None:
    assert find_card(name) is None


def test_every_card_is_found_by_its_own_name_and_plausible() -> None:
    assert len(CARDS) >= 40
    for card in CARDS:
        assert find_card(card.name) is card
        assert find_card(f"NVIDIA GeForce {card.name}") is card
        assert 8 * 1024 - 10 <= card.mib <= 192 * 1024
        assert 70 <= card.watts <= 1000
        assert 20 <= card.teraflops <= 2500
        assert card.bandwidth >= 250
    free = [(gpu_of(card.name).free, gpu_of(card.name).total) for card in CARDS]
    assert all(0.93 * total < left < total - GIB // 4 for left, total in free)


@pytest.mark.parametrize("text", ["24GiB", "24 GB", "24g", " 24gib ", "24.0 GiB"])
def test_memory_alone_is_enough(text: str) -> None:
    gpu = gpu_of(text)
    assert gpu.total == 24 * GIB
    assert 23 * GIB < gpu.free < 24 * GIB
    assert gpu.compute_capability is None
    assert gpu.power_limit is None


def test_a_named_card_brings_what_a_plan_needs() -> None:
    gpu = gpu_of("T4")
    assert (gpu.compute_capability, gpu.power_limit, gpu.name) == ((7, 5), 70.0, "T4")
    box = machine(gpu=15, name=gpu.name, compute_capability=gpu.compute_capability)
    assert make_plan(box, LLAMA_8B, CHAT, {}).settings.training.compute_dtype == "float16"
    rates = [
        expected_rate(make_plan(box, LLAMA_8B, CHAT, {}).settings.training, box).flops
        for box in (machine(gpu=15, name=name) for name in ("T4", "RTX 3090", "RTX 4090", "H100"))
    ]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("RTX 4095", "RTX 4090"),
        ("H1000", "H100"),
        ("a 100", "A100"),
        ("24", "24GiB"),
        ("Radeon", "RTX 4090"),
        ("", "24GiB"),
        ("RX\x1b[2J", "24GiB"),
    ],
)
def test_an_unknown_card_is_refused_with_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        gpu_of(text)
    assert hint in caught.value.fix
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("text", ["0GiB", "0.5 GB", "99999GiB"])
def test_impossible_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="No GPU has"):
        gpu_of(text)
