"""The wizard of one visitor of `ollama-tune serve`: `python -m ollama_tune.tui.web_view`.

It ends with its server, whatever became of that: a view that nobody sees must not stay.
"""

from __future__ import annotations

import os
import select
import signal
import threading

OUTPUT = 1


def _end_with_server() -> None:
    """Wait until nobody reads the output any more, then end in order; what is still painted goes nowhere."""
    gone = select.poll()
    gone.register(OUTPUT, 0)
    gone.poll()
    os.dup2(os.open(os.devnull, os.O_WRONLY), OUTPUT)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Open the wizard; returns its exit status."""
    threading.Thread(target=_end_with_server, daemon=True).start()
    from ollama_tune.tui.app import run_app

    return run_app()


if __name__ == "__main__":
    raise SystemExit(main())
