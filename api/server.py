"""The server: listening sockets, connections, and their end.

The protocol is hypercorn's. The accept loop is ours, for two things that
hypercorn's own leaves open: an error in one connection must not end the
others, and at shutdown a client that does not read must not hold up the end
(writes are shielded from cancellation, so only closing the socket ends one).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import ExitStack, suppress

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework

from .connection import Connection

_logger = logging.getLogger(__name__)

# Longer than HTTP clients keep idle connections (reqwest: 90 s), so that it is
# never us who close one just as a request comes in.
_KEEP_ALIVE_SECONDS = 120.0


class Server:
    """Serves an ASGI app on one address.

    Args:
      app: what to serve.
      bind: `host:port`, `[ipv6]:port` or `unix:path`.
      graceful_seconds: how long requests may go on after `stop`.
    """

    def __init__(self, app: ASGIFramework, bind: str, *, graceful_seconds: float = 3.0) -> None:
        self._config = Config()
        self._config.bind = [bind]
        self._config.backlog = 1024
        self._config.umask = 0o177  # A Unix socket is for its owner alone.
        self._config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
        self._config.keep_alive_max_requests = 2**63
        self._config.h11_max_incomplete_size = 64 * 1024
        self._config.include_server_header = False
        self._config.errorlog = logging.getLogger("hypercorn")
        self._app = ASGIWrapper(app)
        self._context = WorkerContext(None)
        self._graceful_seconds = graceful_seconds
        self._connections: dict[trio.SocketStream, tuple[Connection, trio.CancelScope]] = {}
        self._accepting = trio.CancelScope()

    async def serve(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop`, and then until the last connection has ended.

        Reports the addresses as `host:port` or `unix:path` once it accepts
        connections.

        Raises:
          OSError: the address cannot be bound.
        """
        with ExitStack() as stack:
            listeners = []
            self._refuse_living_socket()
            for sock in self._config.create_sockets().insecure_sockets:
                stack.enter_context(sock)
                sock.listen(self._config.backlog)
                listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
            if (path := self._socket_path) is not None:
                stack.callback(_remove, path, os.stat(path).st_ino)
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as connections:
                    with self._accepting:
                        task_status.started([_address(listener) for listener in listeners])
                        await trio.serve_listeners(
                            self._connection, listeners, handler_nursery=connections
                        )
                    await self._context.terminated.set()
                    for connection, _ in self._connections.values():
                        connection.end_if_idle()
                    nursery.start_soon(self._close_stragglers)
                nursery.cancel_scope.cancel()

    @property
    def _socket_path(self) -> str | None:
        (bind,) = self._config.bind
        return bind.removeprefix("unix:") if bind.startswith("unix:") else None

    def _refuse_living_socket(self) -> None:
        """Raise OSError if somebody serves on our path: hypercorn would take it over."""
        if (path := self._socket_path) is None:
            return
        with socket.socket(socket.AF_UNIX) as other, suppress(ConnectionError, FileNotFoundError):
            other.connect(path)
            raise OSError(errno.EADDRINUSE, "Address already in use", path)

    def stop(self) -> None:
        """Accept no more connections, and end those that are open."""
        self._accepting.cancel()

    async def _connection(self, stream: trio.SocketStream) -> None:
        connection = Connection(self._app, self._config, self._context, stream)
        with trio.CancelScope() as scope:
            self._connections[stream] = (connection, scope)
            try:
                await connection.serve()
            except Exception:
                _logger.exception("a connection failed")
            finally:
                del self._connections[stream]
                await trio.aclose_forcefully(stream)

    async def _close_stragglers(self) -> None:
        await trio.sleep(self._graceful_seconds)
        for stream, (_, scope) in list(self._connections.items()):
            scope.cancel()
            # Ends the writes, which are shielded from cancellation.
            await trio.aclose_forcefully(stream)


def _remove(path: str, inode: int) -> None:
    """Remove our Unix socket, unless somebody else's is there by now."""
    with suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


def _address(listener: trio.SocketListener) -> str:
    name = listener.socket.getsockname()
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{name}"
