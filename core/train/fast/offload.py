"""Layer inputs that wait for their backward in the computer's memory instead of the device's."""

from __future__ import annotations

import torch


class Parking:
    """Holds the inputs of a model's layers, in their order, until backward takes them in the other order.

    On a GPU the copies run beside the computation, on a stream of their own and through pinned memory; taking
    one starts fetching the one before it. On the CPU nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._device = device
        self._parked: list[torch.Tensor] = []
        self._fetched: dict[int, torch.Tensor] = {}

    def put(self, states: torch.Tensor) -> int:
        """Take states in; returns the number to ask for them with."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            host = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
            with torch.cuda.stream(self._stream):
                host.copy_(states, non_blocking=True)
            states.record_stream(self._stream)
            states = host
        self._parked.append(states)
        return len(self._parked) - 1

    def take(self, number: int) -> torch.Tensor:
        """The states of that number, on the device; they can be taken once."""
        self._fetch(number)
        states = self._fetched.pop(number)
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            states.record_stream(current)
        self._fetch(number - 1)
        return states

    def _fetch(self, number: int) -> None:
        if number < 0 or number in self._fetched:
            return
        states, self._parked[number] = self._parked[number], self._parked[number][:0]
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                states = states.to(self._device, non_blocking=True)
        self._fetched[number] = states
