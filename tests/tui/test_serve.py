"""`ollama-tune serve`: the real server, spoken to as a browser does, and what ends when a page is closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyte
import pytest
from click.testing import CliRunner

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.runs import control
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui import serve_cli
from ollama_tune.tui.serve_cli import opening, serve
from ollama_tune.tui.state import REVIEW, WizardState
from ollama_tune.tui.web import FOCUS
from tests.ports import free_port
from tests.tui.conftest import write_rows

aiohttp: Any = pytest.importorskip("aiohttp", reason="the extra `web` (textual-serve) is not installed")
pytest.importorskip("textual_serve", reason="the extra `web` (textual-serve) is not installed")

LONG = 300.0


@dataclass
class Server:
    """A started server: its process, its home, and the address that it printed."""

    process: subprocess.Popen[str]
    home: Path
    url: str

    @property
    def place(self) -> str:
        return self.url.split("/?")[0]

    def views(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if _is_view(child)]


def _is_view(process: psutil.Process) -> bool:
    try:
        return "ollama_tune.tui.web_view" in process.cmdline()
    except psutil.Error:
        return False


Serving = Callable[[], Server]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """Starts servers; each ends with the test."""
    started: list[Server] = []

    def start() -> Server:
        home = tmp_path / "home"
        home.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "ollama_tune.tui", "serve", "--port", str(free_port())],
            env=os.environ | {"OLLAMA_TUNE_HOME": str(home), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        _until(lambda: _listens(url))
        started.append(Server(process, home, url))
        return started[-1]

    yield start
    for server in started:
        server.process.terminate()
        try:
            server.process.wait(LONG)
        finally:
            server.process.kill()
            assert server.process.stdout is not None
            server.process.stdout.close()


def _listens(url: str) -> bool:
    host, _, port = url.split("/")[2].partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _until(condition: Callable[[], bool], seconds: float = LONG) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


class Page:
    """The browser's side: what is painted, and keys."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    async def shows(self, wanted: str, *, press: str = "") -> None:
        """Wait until a text is painted; a key is typed each second, since a screen at work may ignore it."""
        deadline, typed = time.monotonic() + LONG, 0.0
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            if press and time.monotonic() > typed + 1:
                typed = time.monotonic()
                await self._socket.send_json(["stdin", press])
            with contextlib.suppress(asyncio.TimeoutError):
                message = await self._socket.receive(timeout=0.5)
                assert message.type == aiohttp.WSMsgType.BINARY, f"{message}\n{self.text}"
                self._stream.feed(message.data)


@asynccontextmanager
async def opened(server: Server) -> AsyncIterator[Page]:
    """A page that found its websocket where the document says."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        async with session.get(server.url) as answer:
            assert answer.status == 200 and answer.headers["Referrer-Policy"] == "no-referrer"
            text = await answer.text()
        found = re.search(r'data-session-websocket-url="(ws:[^"]+)"', text)
        assert found
        assert f"{FOCUS}</body>" in text, "keys reach the wizard without a click into the page"
        options = {"width": "80", "height": "24"}
        async with session.ws_connect(found[1], params=options, origin=server.place) as socket:
            yield Page(socket)


async def test_a_browser_sees_the_wizard_and_its_keys_work(serving: Serving) -> None:
    server = serving()
    async with opened(server) as page:
        await page.shows("This computer")
        assert "Step 1 of 9" in page.text
        await page.shows("Help: This machine", press="\x1bOP")
        assert len(server.views()) == 1
        async with opened(server) as other:
            await other.shows("This computer")
            assert "Help" not in other.text.splitlines()[3]
            assert len(server.views()) == 2
    await asyncio.to_thread(_until, lambda: server.views() == [])
    os.kill(server.process.pid, signal.SIGHUP)
    assert await asyncio.to_thread(server.process.wait, LONG) == 0


async def test_only_who_has_the_key_and_comes_from_the_own_page_is_let_in(serving: Serving) -> None:
    server = serving()
    key = server.url.partition("?")[2]
    port = server.place.rpartition(":")[2]
    async with aiohttp.ClientSession() as session:

        async def status(path: str, **headers: str) -> int:
            async with session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer:
                session.cookie_jar.clear()
                return int(answer.status)

        assert await status("/") == 403
        assert await status("/?key=guess") == 403
        assert await status("/ws") == 403
        assert await status("/static/js/textual.js") == 403
        assert await status(f"/?{key}", Host=f"evil.example:{port}") == 403
        assert await status(f"/?{key}", Origin="http://evil.example") == 403
        assert await status(f"/?{key}", Origin=f"http://127.0.0.1:{port}") == 200
        assert await status(f"/?{key}", Host="localhost:9999") == 200, "a tunnel's other port"
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await session.ws_connect(f"ws://127.0.0.1:{port}/ws?{key}", origin="http://evil.example")
    assert server.views() == []


async def test_closing_the_page_ends_the_view_and_never_the_run(
    serving: Serving, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "tiny")
    rows = write_rows(tmp_path / "rows.jsonl", 3000)
    server = serving()
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(server.home))
    WizardState(step=REVIEW, model=str(tmp_path / "tiny"), data=str(rows)).save()
    async with opened(server) as page:
        await page.shows("✓ fits")
        await page.shows("Step 6 of 9", press="\r")
        (signed,) = server.home.glob("data/runs/*/worker.json")
        (view,) = server.views()
    await asyncio.to_thread(view.wait, LONG)
    folder = RunFolder(signed.parent)
    process = folder.process()
    assert folder.alive() and process is not None, "the run goes on"
    server.process.kill()
    await asyncio.to_thread(server.process.wait)
    assert folder.alive(), "without the server too"
    control.request_stop(folder)
    assert await asyncio.to_thread(control.wait_until_free, folder, LONG)


async def test_a_view_ends_with_a_server_that_was_killed(serving: Serving) -> None:
    server = serving()
    with pytest.raises(AssertionError):  # the connection breaks
        async with opened(server) as page:
            await page.shows("This computer")
            (view,) = server.views()
            server.process.kill()
            await page.shows("never painted")
    await asyncio.to_thread(view.wait, LONG)
    assert list(server.home.glob("state/crash-*")) == []


def test_another_address_needs_an_explicit_yes() -> None:
    refused = CliRunner().invoke(serve, ["--host", "0.0.0.0"]).exception
    assert isinstance(refused, UsageError) and "--i-know-the-risk" in refused.fix
    assert opening("0.0.0.0", 8000, "k")[0] == "Open http://0.0.0.0:8000/?key=k"


def test_the_tunnel_is_named_as_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("SSH_CONNECTION", "198.51.100.7 50000 203.0.113.5 22")
    lines = opening("127.0.0.1", 8000, "k")
    assert lines[0] == "Open http://localhost:8000/?key=k"
    assert "  ssh -L 8000:127.0.0.1:8000 ada@203.0.113.5" in lines
    assert any("has your rights" in line for line in lines)
    monkeypatch.setenv("USER", "$(reboot)")
    assert "reboot" not in "".join(opening("127.0.0.1", 8000, "k"))


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_cli, "find_spec", lambda name: None)
    error = CliRunner().invoke(serve, []).exception
    assert isinstance(error, TuneError) and "-m pip install" in error.fix and "textual-serve" in error.fix


def test_a_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "ollama_tune.tui", "serve", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 1 and f"Port {port} of 127.0.0.1 cannot be used" in done.stderr
