"""The allocator of CUDA replayed: segments, blocks used again, and a trace stretched to all layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ollama_tune.core.train.allocator import CachingAllocator
from ollama_tune.core.train.fake_model import (
    read_config,
    shortened,
)
from ollama_tune.core.train.memtrace import Event
from ollama_tune.core.train.replay import NotUniform, replayed
from ollama_tune.core.train.traced_step import trace_general
from tests.core.test_train_simulate import MIB, request, small


def reserved(sizes: list[int], *, expandable: bool = False) -> int:
    """Reserved bytes after these requests; a negative one frees the request of that place (from 1)."""
    allocator = CachingAllocator(expandable=expandable)
    events = [Event(-size - 1, 0) if size < 0 else Event(index, size) for index, size in enumerate(sizes)]
    allocator.replay(events)
    return allocator.reserved


def test_small_requests_share_segments_of_2_mib_and_large_ones_have_their_own() -> None:
    assert reserved([512]) == 2 * MIB
    assert reserved([512, MIB, MIB - 512]) == 2 * MIB
    assert reserved([MIB, MIB, 512]) == 4 * MIB
    assert reserved([MIB + 512]) == 20 * MIB
    assert reserved([5 * MIB, 5 * MIB, 5 * MIB, 5 * MIB]) == 20 * MIB
    assert reserved([10 * MIB]) == 10 * MIB
    assert reserved([11 * MIB + 512]) == 12 * MIB


def test_freed_blocks_are_used_again_when_they_fit_and_merged() -> None:
    assert reserved([12 * MIB, -1, 12 * MIB]) == 12 * MIB
    assert reserved([12 * MIB, -1, 14 * MIB]) == 26 * MIB
    assert reserved([4 * MIB, 4 * MIB, -1, -2, 8 * MIB]) == 20 * MIB
    holes = [5 * MIB, 5 * MIB, 5 * MIB, 5 * MIB, -1, -3]
    assert reserved([*holes, 8 * MIB]) == 40 * MIB


def test_a_growing_segment_wastes_less() -> None:
    assert reserved([12 * MIB, -1, 14 * MIB], expandable=True) == 20 * MIB
    assert reserved([30 * MIB], expandable=True) == 40 * MIB
    assert reserved([30 * MIB, 12 * MIB], expandable=True) == 60 * MIB


def test_a_rest_of_up_to_a_mib_stays_with_its_block() -> None:
    allocator = CachingAllocator()
    allocator.replay([Event(0, 12 * MIB), Event(0, 0), Event(1, 11 * MIB + 512)])
    assert (allocator.requested, allocator.allocated) == (11 * MIB + 512, 12 * MIB)


@pytest.mark.parametrize("values", [{"gradient_checkpointing": "layers"}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("expandable", [True, False])
def test_a_stretched_trace_has_the_peak_of_all_layers(values: dict[str, Any], expandable: bool) -> None:
    config = read_config(small("llama", hidden_size=256, head_dim=64, intermediate_size=1024))
    asked = request(**values)
    three = trace_general(shortened(config, [0, 1, 2]), asked).trace.sections
    whole = trace_general(config, asked).trace
    stretched = replayed(three, 5, expandable=expandable)
    peak = max(sum(parts.values()) for parts in whole.peaks.values())
    assert stretched.peak_requested == pytest.approx(peak, rel=0.001)
    assert stretched.reserved >= stretched.peak_allocated >= stretched.peak_requested


def test_a_trace_whose_layers_differ_is_refused() -> None:
    sections = trace_general(read_config(small("llama", 3)), request()).trace.sections
    damaged = copy.deepcopy(sections)
    forward = next(section for section in damaged if section.kind == "forward" and section.layer == 1)
    forward.events.clear()
    with pytest.raises(NotUniform):
        replayed(damaged, 5, expandable=False)
