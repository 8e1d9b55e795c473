"""From the trace of a step with three layers to that of a step with all, and what it would reserve."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ollama_tune.core.train.allocator import CachingAllocator
from ollama_tune.core.train.memtrace import Event, Section

LAYERS = 3
"""Layers of the traced model: the first, one that stands for all between, the last."""

_Place = tuple[int, int | None, int]
"""Where an allocation was made: group of sections, layer (or None), and which of its section's it was."""


class NotUniform(Exception):
    """The layers between the first and the last are not copies of one another."""


@dataclass(frozen=True)
class _Group:
    """Sections of one kind that follow each other: one a layer, or a single one without a layer."""

    kind: str
    sections: tuple[Section, ...]


def _groups(sections: Sequence[Section]) -> list[_Group]:
    found = []
    for (kind, _), part in itertools.groupby(sections, key=lambda s: (s.kind, s.layer is None)):
        found.append(_Group(kind, tuple(part)))
    return found


class Stretcher:
    """Repeats the middle layer of a trace until there are `layers` of them.

    An event of a copy that frees what another layer allocated frees it in the layer at the same distance.
    """

    def __init__(self, sections: Sequence[Section], layers: int) -> None:
        self._layers = layers
        self._groups = _groups(sections)
        self._made: dict[int, _Place] = {}
        self._numbers: dict[_Place, tuple[int, int]] = {}
        for index, group in enumerate(self._groups):
            for section in group.sections:
                made = (event for event in section.events if event.size)
                for position, event in enumerate(made):
                    self._made[event.number] = (index, section.layer, position)

    def groups(self) -> Iterator[tuple[str, list[Event]]]:
        """Kind and events of each group of sections, with all layers."""
        for index, group in enumerate(self._groups):
            events: list[Event] = []
            for section, layer in self._positions(group):
                events += self._section(index, section, layer)
            yield group.kind, events

    def _positions(self, group: _Group) -> Iterator[tuple[Section, int | None]]:
        """Which section stands for which layer of the whole model."""
        for section in group.sections:
            if section.layer is None or section.layer == 0:
                yield section, section.layer
            elif section.layer == LAYERS - 1:
                yield section, self._layers - 1
            else:
                between = range(1, self._layers - 1)
                forward = group.sections[0].layer == 0
                for layer in between if forward else reversed(between):
                    yield section, layer

    def _section(self, group: int, section: Section, layer: int | None) -> Iterator[Event]:
        position = 0
        for event in section.events:
            if event.size:
                number = len(self._numbers)
                self._numbers[group, layer, position] = number, event.size
                position += 1
                yield Event(number, event.size)
            else:
                yield from self._frees(event, section.layer, layer)

    def _frees(self, event: Event, template: int | None, layer: int | None) -> Iterator[Event]:
        if event.number not in self._made:
            raise NotUniform
        group, origin, position = self._made[event.number]
        for target in self._targets(origin, template, layer):
            found = self._numbers.get((group, target, position))
            if found is None:
                raise NotUniform
            yield Event(found[0], 0)

    def _targets(self, origin: int | None, template: int | None, layer: int | None) -> Sequence[int | None]:
        """The layers whose allocation is freed."""
        if origin is None:
            return [None]
        if template is not None and layer is not None:
            return [layer + origin - template]
        if origin in (0, LAYERS - 1):
            return [0 if origin == 0 else self._layers - 1]
        return range(1, self._layers - 1)


def replayed(sections: Sequence[Section], layers: int, *, expandable: bool) -> CachingAllocator:
    """The allocator after two steps of a model with that many layers; `NotUniform` where they differ.

    The optimizer's states are made at the end of the first step.
    """
    static: list[Event] = []
    states: list[Event] = []
    step: list[Event] = []
    for kind, events in Stretcher(sections, layers).groups():
        {"start": static, "weights": static, "states": states}.get(kind, step).extend(events)
    allocator = CachingAllocator(expandable=expandable)
    try:
        for events in (static, step, states, step):
            allocator.replay(events)
    except KeyError as error:
        raise NotUniform from error
    return allocator
