"""Signals and the terminal: it is given back whenever the window is left, put to sleep or ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from textual.app import App
from textual.driver import Driver

JUST_NOW = 0.5
"""Seconds in which a SIGCONT still belongs to the sleep that has just ended."""


class SignalApp(App[int]):
    """Ends in order on SIGTERM and SIGHUP; sleeps on Ctrl+Z and SIGTSTP, and is painted anew by SIGCONT.

    Textual handles the first two not at all. Its own handling of the others stops this process alone, which
    freezes the terminal below a wrapper such as `uv run` and where no shell could continue it, and it starts
    a second reader of the keys when SIGCONT comes without SIGTSTP (after SIGSTOP).
    """

    _woke = 0.0

    def on_mount(self) -> None:
        """Take the signals."""
        self._handle_signals(True)

    def on_unmount(self) -> None:
        """Leave them to whoever comes after."""
        self._handle_signals(False)

    def _handle_signals(self, on: bool) -> None:
        if self.is_headless:
            return
        handlers: dict[int, tuple[Callable[..., object], Any]] = {
            number: (self.exit, (None, 128 + number)) for number in (signal.SIGTERM, signal.SIGHUP)
        }
        if self._driver is not None and self._driver.can_suspend:
            handlers |= {signal.SIGTSTP: (self._sleep, (os.getpid(),)), signal.SIGCONT: (self._continued, ())}
        loop = asyncio.get_running_loop()
        for number, (handler, values) in handlers.items():
            if on:
                loop.add_signal_handler(number, handler, *values)
            else:
                loop.remove_signal_handler(number)

    def action_suspend_process(self) -> None:
        """Ctrl+Z: sleep together with what started us, as the terminal itself would have it."""
        if self._driver is not None and self._driver.can_suspend:
            self._sleep(0)

    def _sleep(self, whom: int) -> None:
        """Give the terminal back and stop, until the shell continues us.

        `whom` is a process id, or 0 for the whole process group. It is the system that stops us, by the
        signal's default: it does so only where a shell of the same session is there to continue us.
        """
        driver = self._driver
        if driver is None or not driver.can_suspend:
            return
        self._suspend_signal()
        driver.suspend_application_mode()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTSTP)
        os.kill(whom, signal.SIGTSTP)
        _wait_for_terminal()
        self._handle_signals(True)
        self._enter(driver)

    def _continued(self) -> None:
        """SIGCONT after a SIGSTOP: the shell has had the terminal meanwhile, so set it up again."""
        driver = self._driver
        if driver is None or time.monotonic() - self._woke < JUST_NOW:
            return
        _wait_for_terminal()
        driver.suspend_application_mode()
        self._enter(driver)

    def _enter(self, driver: Driver) -> None:
        driver.resume_application_mode()
        self._woke = time.monotonic()
        self._resume_signal()
        self.refresh(layout=True)


def _wait_for_terminal() -> None:
    """Stop again as long as the terminal is another job's: `bg` must not let us write into it."""
    with contextlib.suppress(OSError, AttributeError):
        while os.tcgetpgrp(sys.__stdin__.fileno()) != os.getpgrp():  # type: ignore[union-attr]
            os.kill(os.getpid(), signal.SIGSTOP)
