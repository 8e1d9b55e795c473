"""The commands of `ollama-tune` in the order in which a job needs them, and where each is found."""

from __future__ import annotations

import difflib
import importlib
import keyword
import sys
from collections.abc import Sequence
from typing import Any, cast

import click

from ollama_tune.tui.shell import telling, wants_json

GROUPS = {
    "Before a run": {
        "probe": "probe_cli",
        "doctor": "doctor_cli",
        "data": "data_cli",
        "plan": "plan_cli",
        "predict": "predict_cli",
        "import": "import_cli",
        "schema": "schema_cli",
    },
    "Runs": {
        "demo": "",
        "run": "",
        "sweep": "sweep_cli",
        "launch": "launch_cli",
        "runs": "runs_cli",
        "attach": "control_cli",
        "pause": "control_cli",
        "stop": "control_cli",
        "resume": "control_cli",
        "delete": "control_cli",
    },
    "What came of a run": {
        "evaluate": "evaluate_cli",
        "compare": "runs_cli",
        "ask": "chat_cli",
        "chat": "chat_cli",
        "export": "export_cli",
        "verify": "export_cli",
        "track": "tracking_cli",
        "tensorboard": "tracking_cli",
    },
    "This program": {
        "serve": "serve_cli",
        "keys": "keys_cli",
        "paths": "",
    },
}
"""The module of each command, which is imported when the command is asked for; "" is the one of the group."""
MODULES = {name: module for commands in GROUPS.values() for name, module in commands.items()}
WHOLE = 300
"""More letters than the first sentence of any command has: the list of commands cuts none off."""


class Commands(click.Group):
    """The wizard's first frame waits for no command that nobody gave."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """As click does it; where a command line asks for JSON, every error is an object."""
        words = sys.argv[1:] if args is None else list(args)
        with telling(wants_json(words)):
            return super().main(words, *more, **options)

    def list_commands(self, context: click.Context) -> list[str]:
        """All of them."""
        return list(MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """From the group's module, else from its own."""
        if not MODULES.get(name):
            return super().get_command(context, name)
        module = importlib.import_module(f"ollama_tune.tui.{MODULES[name]}")
        return cast("click.Command", getattr(module, name + "_" * keyword.iskeyword(name)))

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but a name that is none is told with the nearest that is one."""
        name = words[0]
        near = difflib.get_close_matches(name, MODULES, n=1)
        if near and name not in MODULES and not context.resilient_parsing:
            context.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(context, words)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """One group after the other, each command with its whole first sentence."""
        for title, names in GROUPS.items():
            found = [(name, self.get_command(context, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, one.get_short_help_str(WHOLE)) for name, one in found if one])
