"""A port of this box that nobody listens on, and that nobody else is given meanwhile."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port for a server that is started next.

    A connection that was closed from the server's side keeps its port for a minute: the kernel gives it to
    nobody who asks for any port, but to a server that names it (with `SO_REUSEADDR`, as servers have it).
    """
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        with socket.create_connection(server.getsockname()) as client:
            server.accept()[0].close()
            client.recv(1)
        return int(server.getsockname()[1])
