"""The server: listening sockets, connections, how many of them, and their end.

The protocol is hypercorn's. The accept loop is ours, for what hypercorn's own
leaves open: an error in one connection must not end the others; at shutdown a
client that does not read must not hold up the end (writes are shielded from
cancellation, so only closing the socket ends one); who connects when there are
no descriptors gets an answer; and whoever opens connections without end must
neither lock others out nor take all memory and descriptors. At the bound those
that are idle give way, the longest idle first. Only where all are answering
requests is a new one refused.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from collections.abc import Container
from contextlib import ExitStack, suppress
from heapq import nsmallest

import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework

from supervisor.descriptors import beyond_the_limit

from .connection import Connection
from .guard import check_peer
from .problems import RequestError, TooManyConnections
from .refusal import Refusals

_logger = logging.getLogger(__name__)

# Longer than HTTP clients keep idle connections (reqwest: 90 s), so that it is
# never us who close one just as a request comes in.
_KEEP_ALIVE_SECONDS = 120.0

_HEAD_BYTES = 32 * 1024

# What accept(2) has run short of.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SHORTAGE_SECONDS = 0.1


class Server:
    """Serves an ASGI app on one address.

    Args:
      app: what to serve.
      bind: `host:port`, `[ipv6]:port` or `unix:path`.
      max_connections: how many there may be, and not more than half the
        descriptors that this process may open, which processes need, too.
      peers: uids that may connect to a Unix socket; None for this process's own
        alone, to whom its mode gives it then.
      graceful_seconds: how long requests may go on after `stop`.
      listener: descriptor of a socket that listens already, instead of a new
        one; owned here from now on.
    """

    def __init__(
        self,
        app: ASGIFramework,
        bind: str,
        *,
        max_connections: int = 10_000,
        peers: Container[int] | None = None,
        graceful_seconds: float = 3.0,
        listener: int | None = None,
    ) -> None:
        self._config = Config()
        self._config.bind = [bind]
        self._config.backlog = 1024
        self._config.umask = 0o177 if peers is None else 0o111
        self._config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
        self._config.keep_alive_max_requests = 2**63
        self._config.h11_max_incomplete_size = _HEAD_BYTES
        self._config.include_server_header = False
        self._config.errorlog = logging.getLogger("hypercorn")
        self._app = app
        self._context = WorkerContext(None)
        self._max_connections = max_connections
        self._peers: Container[int] = (os.geteuid(),) if peers is None else peers
        self._graceful_seconds = graceful_seconds
        self._connections: dict[trio.SocketStream, tuple[Connection, trio.CancelScope]] = {}
        self._accepting = trio.CancelScope()
        self._refusals = Refusals()
        self._one_less = trio.lowlevel.ParkingLot()
        self._listener = listener
        self._sockets: list[socket.socket] = []
        self._is_handed_over = False
        self._ended = trio.Event()

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
            stack.callback(self._ended.set)
            listeners = self._sockets
            for sock in self._open():
                stack.callback(self._close, sock)
                sock.listen(self._config.backlog)
                listeners.append(sock)
            if (path := self._socket_path) is not None:
                stack.callback(self._remove, path, os.stat(path).st_ino)
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as connections:
                    with self._accepting:
                        task_status.started([_address(listener) for listener in listeners])
                        async with trio.open_nursery() as accepting:
                            for listener in listeners:
                                accepting.start_soon(self._accept, listener, connections)
                    await self._context.terminated.set()
                    for connection, _ in self._connections.values():
                        connection.end_if_idle()
                    nursery.start_soon(self._close_stragglers)
                nursery.cancel_scope.cancel()

    def _open(self) -> list[socket.socket]:
        if self._listener is not None:
            return [socket.socket(fileno=self._listener)]
        self._refuse_living_socket()
        return self._config.create_sockets().insecure_sockets

    async def hand_over(self, patience_seconds: float) -> int:
        """Accept no more, and give the answers that are due; returns a listening socket.

        Args:
          patience_seconds: after so long, at most, what has not ended yet is
            left as it is. Less than `graceful_seconds`.

        Returns:
          a descriptor that is the caller's. Whoever connects waits in its queue.
        """
        # Not a copy of it: there may be no descriptor left for one.
        descriptor = self._sockets[0].fileno()
        self._is_handed_over = True
        self.stop()
        with trio.move_on_after(patience_seconds):
            await self._ended.wait()
        return descriptor

    def _close(self, sock: socket.socket) -> None:
        if self._is_handed_over:
            sock.detach()
        else:
            sock.close()

    def _remove(self, path: str, inode: int) -> None:
        if not self._is_handed_over:
            _remove(path, inode)

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

    async def _accept(self, sock: socket.socket, connections: trio.Nursery) -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        while True:
            # accept(2) fails for want of a descriptor even if there is nobody to accept.
            await trio.lowlevel.wait_readable(sock)
            try:
                connections.start_soon(self._connection, await listener.accept())
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                self._refusals.warn(error)
                refused = None
                if error.errno == errno.EMFILE and self._refusals.make_room():
                    refused = _accept_beyond_the_limit(sock)
                if refused is not None:
                    connections.start_soon(self._refuse, refused)
                else:
                    # Trio waits as long, for want of any sign from the kernel
                    # that there is something again.
                    with trio.move_on_after(_SHORTAGE_SECONDS):
                        await self._one_less.park()

    async def _refuse(self, stream: trio.SocketStream, error: RequestError | None = None) -> None:
        await self._refusals.refuse(stream, error)
        self._one_less.unpark_all()

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            check_peer(stream.socket, self._peers)
            self._make_room()
        except RequestError as error:
            await self._refuse(stream, error)
            return
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
                self._one_less.unpark_all()

    def _make_room(self) -> None:
        """End idle connections where there is no room for another.

        Raises:
          TooManyConnections: none is idle.
        """
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        bound = min(self._max_connections, descriptors // 2)
        if len(self._connections) < bound:
            return
        # Some more than one, so that not every newcomer costs a search.
        connections = (connection for connection, _ in self._connections.values())
        first = nsmallest(1 + bound // 64, connections, key=lambda each: each.ends_at)
        if not first or not first[0].is_idle:
            raise TooManyConnections(f"there are {bound} connections already, and none is idle")
        for connection in first:
            connection.end_if_idle()

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


def _accept_beyond_the_limit(listener: socket.socket) -> trio.SocketStream | None:
    """A connection that there is no descriptor for but in the reserve; None if not even there."""
    try:
        with beyond_the_limit():
            accepted, _ = listener.accept()
    except OSError:  # Or the client has gone.
        return None
    return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{name}"
