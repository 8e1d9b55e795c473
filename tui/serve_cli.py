"""The command `serve`: the wizard in a browser, for those who reach this box through `ssh -L`."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import shlex
import sys
from importlib.util import find_spec

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.shell import json_option

HOST = "127.0.0.1"
PACKAGE = "textual-serve>=1.1.3,<1.2"
VIEW = "ollama_tune.tui.web_view"


@click.command()
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on."
)
@click.option("--host", default=HOST, show_default=True, help="Address to listen on; see --i-know-the-risk.")
@click.option(
    "--i-know-the-risk", "risk", is_flag=True, help="Listen on an address that other machines reach."
)
@json_option
def serve(port: int, host: str, risk: bool, as_json: bool) -> None:
    """Show the wizard in a browser, through an SSH tunnel.

    Each visitor gets a wizard of their own; closing the page ends that view and never a run. Whoever has the
    printed address (its key is new at each start) has your rights on this box: keep it to yourself.

    --json prints one object first, and nothing else: {"url", "tunnel"}; it serves until it is interrupted.

    \b
    Examples:
      ollama-tune serve
      ollama-tune serve --port 8080 --json
    """
    if not _is_loopback(host) and not risk:
        raise UsageError(
            f"On {host} other machines reach your files and this box, in plain text over the network.",
            "Leave --host out and use the printed `ssh -L`, or add --i-know-the-risk.",
        )
    if find_spec("textual_serve") is None:
        raise TuneError(
            "The browser view needs the package textual-serve, which is not installed.",
            f"Install it: {shlex.quote(sys.executable)} -m pip install '{PACKAGE}'",
        )
    from ollama_tune.tui.web import WebServer

    key = secrets.token_urlsafe(24)
    command = f"exec {shlex.join([sys.executable, '-m', VIEW])}"
    if as_json:
        click.echo(json.dumps({"url": address(host, port, key), "tunnel": tunnel(port)}))
    else:
        for line in opening(host, port, key):
            click.echo(line)
    sys.exit(WebServer(command, host, port, key).run())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int, key: str) -> str:
    """What to open in a browser."""
    shown = "localhost" if _is_loopback(host) else host
    return f"http://{shown}:{port}/?key={key}"


def tunnel(port: int) -> str:
    """The command that makes the address reachable from another computer."""
    return f"ssh -L {port}:127.0.0.1:{port} {_login()}"


def opening(host: str, port: int, key: str) -> list[str]:
    """What is said before the server starts: the tunnel to type, the address to open, and the warning."""
    lines = [f"Open {address(host, port, key)}"]
    if _is_loopback(host):
        lines += ["From another computer, type there first:", f"  {tunnel(port)}"]
    return [
        *lines,
        "Whoever has this address has your rights on this box. Closing the page never ends a run.",
        "Ctrl+C ends the server.",
    ]


def _login() -> str:
    """`user@host` as one would type it; by the address that an SSH session came to, if there is one."""
    parts = os.environ.get("SSH_CONNECTION", "").split()
    place = parts[2] if len(parts) == 4 else os.uname().nodename
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or ""
    name = f"{user}@{place}" if user else place
    return name if re.fullmatch(r"[\w.@:%+-]+", name) else "this-box"
