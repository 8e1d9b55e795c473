"""The web server of `ollama-tune serve`: textual-serve with a key, and closed to other pages.

A browser lets every page connect to every local port, so the server itself must know who asks: the address
must be this box', the page must be its own, and the key must have been given once. The packages of the
optional extra `web` are imported at use.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from ollama_tune.core.errors import TuneError

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
PRIVATE = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data: blob:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""The page asks nobody else for anything, not even for a font, and stands in no other page."""

FOCUS = """<script>
  const typed = ".xterm-helper-textarea";
  const waiting = setInterval(() => {
    document.querySelector(typed)?.focus();
    if (document.activeElement?.matches(typed)) clearInterval(waiting);
  }, 100);
</script>
"""
"""Gives the keyboard to the wizard as soon as it is painted; textual-serve's page waits for a click."""

Handler = Callable[[Any], Awaitable[Any]]


class WebServer:
    """Starts `command` for each visitor and shows what it paints."""

    def __init__(self, command: str, host: str, port: int, key: str) -> None:
        self._web: Any = import_module("aiohttp.web")
        self._server: Any = import_module("textual_serve.server").Server(
            command, host=host, port=port, title="ollama-tune"
        )
        self._key = key
        self._hosts = LOCAL | {host}
        self._cookie = f"ollama-tune-{port}"
        self._views: set[asyncio.Task[Any]] = set()
        self._make_app, self._index, self._socket = (
            getattr(self._server, name) for name in ("_make_app", "handle_index", "handle_websocket")
        )
        for name, method in {
            "_make_app": self._guarded_app,
            "handle_index": self._page,
            "handle_websocket": self._view,
            "initialize_logging": self._log_warnings,
            "on_startup": self._say_nothing,
            "on_shutdown": self._end_views,
        }.items():
            setattr(self._server, name, method)

    def run(self) -> int:
        """Serve until Ctrl+C, SIGTERM or SIGHUP; the views end with it, runs go on."""
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.add_signal_handler(signal.SIGHUP, self._server.request_exit)
        try:
            self._server.serve()
        except OSError as error:
            raise TuneError(
                f"Port {self._server.port} of {self._server.host} cannot be used: {error.strerror}.",
                "Choose another one with --port.",
            ) from error
        return 0

    async def _guarded_app(self) -> Any:
        app = await self._make_app()
        app.middlewares.append(self._web.middleware(lambda request, handler: self._guard(request, handler)))
        return app

    async def _guard(self, request: Any, handler: Handler) -> Any:
        """Let in who names this box, comes from its own page and has the key, which becomes a cookie."""
        if not self._is_own(request) or not self._has_key(request):
            raise self._web.HTTPForbidden(text="Open the whole address that `ollama-tune serve` printed.")
        response = await handler(request)
        if not response.prepared:
            response.headers.update(PRIVATE)
            response.set_cookie(self._cookie, self._key, httponly=True, samesite="Strict")
        return response

    def _is_own(self, request: Any) -> bool:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return False
        return urlsplit(f"//{request.host}").hostname in self._hosts

    def _has_key(self, request: Any) -> bool:
        given = request.query.get("key") or request.cookies.get(self._cookie, "")
        return hmac.compare_digest(given.encode(), self._key.encode())

    async def _page(self, request: Any) -> Any:
        """The page; its links lead to where it was asked for, since a tunnel's port may be another."""
        self._server.public_url = f"{request.scheme}://{request.host}"
        response = await self._index(request)
        response.text = response.text.replace("</body>", f"{FOCUS}</body>")
        return response

    async def _view(self, request: Any) -> Any:
        """One view, until its page is closed or the server ends."""
        task = asyncio.current_task()
        assert task is not None
        self._views.add(task)
        try:
            return await self._socket(request)
        finally:
            self._views.discard(task)

    async def _end_views(self, _app: Any) -> None:
        """End the views, for whose visitors nobody would wait."""
        for view in self._views:
            view.cancel()
        await asyncio.gather(*self._views, return_exceptions=True)

    async def _say_nothing(self, _app: Any) -> None:
        """The command has said all."""

    def _log_warnings(self) -> None:
        """Warnings only, without the values that a visitor sees."""
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
