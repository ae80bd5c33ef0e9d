"""Who may call: the token, a Unix socket's peer, and against web pages the Host and the Origin.

A daemon that runs commands for whoever reaches its port must not be reachable
from a web page. A page can reach a loopback port in two ways: by a request to
another origin, which browsers mark, and by DNS rebinding, where a name of its
own comes to mean 127.0.0.1; such a request names that host. With a token
neither helps a page, since it does not know the token.

On a Unix socket the kernel says as whom the other end has connected. That
holds whatever has become of the socket's mode and of the directories above.
"""

from __future__ import annotations

import hmac
import re
import socket
import struct
from collections.abc import Container
from functools import lru_cache
from ipaddress import ip_address

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from .asgi import send_whole
from .problems import (
    HostRefused,
    OriginRefused,
    PeerRefused,
    RequestError,
    Unauthorized,
    answer,
)

# Names, and addresses of both kinds (RFC 3986, section 3.2.2).
_HOST_NAME = re.compile(r"[a-z0-9._:%-]+")
_REMEMBERED_HOSTS = 64


class Guard:
    """An ASGI app that lets through what is allowed, to another app.

    Args:
      app: the app to protect.
      token: what every request must bear, or None for no authentication.
      any_host: whether the Host header may be anything, as on a Unix socket,
        which no web page can reach.
    """

    def __init__(self, app: ASGIFramework, token: bytes | None, *, any_host: bool) -> None:
        self._app = app
        self._token = token
        self._any_host = any_host

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "http":
            try:
                self._check(list(scope["headers"]))
            except RequestError as error:
                await send_whole(send, *answer(error))
                return
        await self._app(scope, receive, send)

    def _check(self, all_headers: list[tuple[bytes, bytes]]) -> None:
        headers = dict(all_headers)
        if self._token is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                raise Unauthorized("this daemon needs `Authorization: Bearer` with its token")
            return
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._any_host and not _is_safe_host(host):
            raise HostRefused(
                f"Host {host[:100]!r} is neither an address, localhost, nor under .local; "
                "use a token to serve under other names"
            )
        for name, value in all_headers:
            if (name == b"origin" and value.decode("latin-1").partition("://")[2] != host) or (
                name == b"sec-fetch-site" and value in (b"cross-site", b"same-site")
            ):
                raise OriginRefused("requests from web pages of other origins are refused")


def check_peer(sock: trio.socket.SocketType, allowed: Container[int]) -> None:
    """Check who is at the other end, if it is a Unix socket; root always may.

    Raises:
      PeerRefused: it has connected as a user who is not among the `allowed` uids
        (SO_PEERCRED, unix(7)).
    """
    if sock.family != socket.AF_UNIX:
        return
    credentials = struct.Struct("iII")  # pid, uid, gid
    _, uid, _ = credentials.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    )
    if uid != 0 and uid not in allowed:
        raise PeerRefused(f"uid {uid} may not call this daemon")


@lru_cache(_REMEMBERED_HOSTS)
def _is_safe_host(host: str) -> bool:
    """Whether no DNS server of somebody else's could have made this name mean us."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.rstrip(".").lower()
    if not _HOST_NAME.fullmatch(name):
        return False
    if name == "localhost" or name.endswith((".local", ".localhost")):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
