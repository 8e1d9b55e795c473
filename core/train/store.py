"""Torch's key-value store, through which the ranks of a run talk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from ollama_tune.core.train.world import Lost


class Store:
    """Torch's key-value store, whose end is the end of the launcher that serves it, or of rank 0."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def set(self, name: str, value: str | bytes) -> None:
        """Put down a value."""
        self._asked(self._store.set, name, value)

    def get(self, name: str) -> bytes:
        """A value that is known to be there."""
        return bytes(self._asked(self._store.get, name))

    def has(self, name: str) -> bool:
        """Whether a value is there."""
        return bool(self._asked(self._store.check, [name]))

    def forget(self, name: str) -> None:
        """Remove a value."""
        self._asked(self._store.delete_key, name)

    def wait(self, names: Sequence[str], seconds: float) -> bool:
        """Wait for values at most so long; whether all are there."""
        from torch.distributed import DistNetworkError, DistStoreError

        try:
            self._store.wait(list(names), timedelta(seconds=seconds))
        except DistNetworkError as error:
            raise self._gone() from error
        except DistStoreError:
            return False
        return True

    def _asked(self, ask: Callable[..., Any], *what: Any) -> Any:
        try:
            return ask(*what)
        except RuntimeError as error:
            raise self._gone() from error

    @staticmethod
    def _gone() -> Lost:
        return Lost(
            "The program that started the run's processes has ended, and they with it.",
            "Resume the run: it goes on from its last checkpoint.",
        )
