"""`ollama-tune schema`: what a run.yaml may hold, for editors, for people and for agents."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "form", flag_value="json", default=True, help="JSON Schema; the default.")
@click.option("--markdown", "form", flag_value="markdown", help="A page that documents every field.")
@click.option("--agents", "form", flag_value="agents", help="How a script or a coding agent drives all this.")
def schema(form: str) -> None:
    """Print the JSON Schema of run.yaml, or a page for people or for agents.

    An editor with a YAML language server completes and checks a run.yaml whose first line is
    `# yaml-language-server: $schema=run.schema.json`.

    \b
    Examples:
      ollama-tune schema > run.schema.json
      ollama-tune schema --markdown
      ollama-tune schema --agents
    """
    click.echo(_text(form))


def _text(form: str) -> str:
    if form == "agents":
        from ollama_tune.core.paths import asset

        return asset("docs/agents.md").read_text(encoding="utf-8").rstrip()
    from ollama_tune.core.plan.schema import json_schema, markdown

    return markdown().rstrip() if form == "markdown" else json.dumps(json_schema(), indent=2)
