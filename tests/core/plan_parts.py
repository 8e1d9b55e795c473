"""Boxes from small to large, and the plan for one of them."""

from __future__ import annotations

from typing import Any

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.values import Plan
from tests.cases import SHORT, TINY, machine

CPU = machine()
GPU = machine(gpu=24)
BOXES = {
    "cpu": CPU,
    "little ram": machine(ram=2),
    "8 GiB GPU": machine(gpu=8, name="NVIDIA GeForce RTX 4060"),
    "24 GiB GPU": GPU,
    "80 GiB GPU": machine(gpu=80, name="NVIDIA H100 80GB HBM3", compute_capability=(9, 0)),
    "old GPU": machine(gpu=16, name="Tesla T4", compute_capability=(7, 5)),
}


def plan(
    box: Machine = CPU, model: ModelSpec = TINY, data: Lengths = SHORT, changed: dict[str, Any] | None = None
) -> Plan:
    """What is recommended there, around what the person set."""
    return make_plan(box, model, data, changed or {})
