"""The command line: `ollama-tune`."""

from __future__ import annotations


def main() -> int:
    """Entry point of the console script; returns the exit status."""
    return 0
