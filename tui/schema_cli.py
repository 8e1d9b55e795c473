"""`ollama-tune schema`: what a run.yaml may hold and what commands print, for editors, people and agents."""

from __future__ import annotations

import json

import click

from ollama_tune.core.errors import UsageError


@click.command()
@click.argument("command", required=False)
@click.option("--json", "form", flag_value="json", default=True, help="JSON Schema; the default.")
@click.option("--markdown", "form", flag_value="markdown", help="A page that documents every field.")
@click.option("--agents", "form", flag_value="agents", help="How a script or a coding agent drives all this.")
def schema(command: str | None, form: str) -> None:
    """Print the JSON Schema of run.yaml, or a page for people or for agents.

    With the name of a COMMAND it is the JSON Schema of what that command prints with --json: of its one
    object, or of each line of run, attach, resume and chat. An editor with a YAML language server completes
    and checks a run.yaml whose first line is `# yaml-language-server: $schema=run.schema.json`.

    \b
    Examples:
      ollama-tune schema > run.schema.json
      ollama-tune schema evaluate
      ollama-tune schema --markdown
      ollama-tune schema --agents
    """
    if command is not None and form != "json":
        raise UsageError(f"--{form} is not for one command.", f"Leave it out, or see `{command} --help`.")
    click.echo(_text(command, form))


def _text(command: str | None, form: str) -> str:
    if form == "agents":
        from ollama_tune.core.paths import asset

        return asset("docs/agents.md").read_text(encoding="utf-8").rstrip()
    if command is not None:
        from ollama_tune.tui.outputs import output_schema

        return json.dumps(output_schema(command), indent=2)
    from ollama_tune.core.plan.schema import json_schema, markdown

    return markdown().rstrip() if form == "markdown" else json.dumps(json_schema(), indent=2)
