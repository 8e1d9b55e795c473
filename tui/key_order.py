"""Keys one after the other: what is typed ahead, or comes in one packet of a slow line, keeps its order."""

from __future__ import annotations

from collections import deque

from textual import events
from textual.app import App
from textual.message import Message
from textual.timer import Timer

LONGEST = 2.0
"""Seconds after which the next key is taken even though the one before is not known to be dealt with."""


class Followed(Message):
    """Goes the way of a key, behind it: where it arrives, the key has been dealt with."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        self.turn = turn


class KeyOrderApp(App[int]):
    """Hands on a key when the one before it has been dealt with, and a window that it opened can take one.

    Textual deals with priority keys at once and puts the others into a queue of the focused widget, so that
    an Enter overtakes the letters typed before it, and a letter is lost while a window opens.
    """

    def __init__(self) -> None:
        super().__init__()
        self._typed: deque[events.Key | events.Paste] = deque()
        self._now: events.Event | None = None
        self._turn = 0
        self._shown: object = None
        self._overdue: Timer | None = None

    async def on_event(self, event: events.Event) -> None:
        """Keys wait for their turn; one that comes back, as nobody stopped it, has been dealt with."""
        if not isinstance(event, events.Key | events.Paste) or event.is_forwarded:
            await super().on_event(event)
            if event is self._now:
                await self._dealt_with(self._turn)
            return
        self._typed.append(event)
        if self._now is None:
            await self._next_key()
        elif self._overdue is None:
            self._overdue = self.set_timer(LONGEST, self._next_key)

    async def _next_key(self) -> None:
        if self._overdue is not None:
            self._overdue.stop()
            self._overdue = None
        self._now = event = self._typed.popleft() if self._typed else None
        if event is None:
            return
        if self._typed:
            self._overdue = self.set_timer(LONGEST, self._next_key)
        self._turn += 1
        turn, self._shown, target = self._turn, self.screen, self.focused or self.screen
        await super().on_event(event)
        if not (event.is_forwarded and target.post_message(Followed(turn))):
            await self._dealt_with(turn)

    async def on_followed(self, message: Followed) -> None:
        """The key before this one has been dealt with."""
        await self._dealt_with(message.turn)

    async def _dealt_with(self, turn: int) -> None:
        """The next key, once a screen that came up since is drawn."""
        if turn != self._turn or self._now is None:
            return
        if self._shown is self.screen:
            await self._next_key()
        else:
            self._shown = self.screen
            self.screen.call_after_refresh(self._dealt_with, turn)
