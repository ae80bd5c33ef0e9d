"""The client for latencies: one blocking socket, requests as ready-made bytes, and no more parsing than it takes to find the end of an answer."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType

Address = tuple[str, int]

_PATIENCE_SECONDS = 30
_LAST_CHUNK = b"0\r\n\r\n"


class HttpError(Exception):
    """A daemon refused, or hung up."""


def encode_request(method: str, path: str, body: object = None) -> bytes:
    """A whole request of HTTP/1.1, with `body` as JSON unless it is None."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    data = json.dumps(body).encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return f"{head}\r\n".encode() + data


class Client:
    """One connection. A context manager that owns it.

    A daemon that says nothing for half a minute is an error. The kernel keeps
    that time: a timeout of Python's would cost another system call per answer.
    """

    def __init__(self, address: Address) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        timeout = struct.pack("ll", _PATIENCE_SECONDS, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> bytes:
        """Send a request and return its whole answer, head included.

        Raises:
          HttpError: the status is no success, or the connection ended early.
        """
        self.send(request)
        return self.receive()

    def send(self, request: bytes) -> None:
        """Send a request whose answer will be received."""
        self._socket.sendall(request)

    def receive(self, is_enough: Callable[[bytearray], bool] | None = None) -> bytes:
        """The whole answer, or as much as `is_enough`; what follows is left in the connection.

        Raises: as `exchange`.
        """
        is_enough = is_enough or _is_whole
        answer = bytearray(self._receive(65536))
        while not is_enough(answer):
            answer += self._receive(1 << 20)
        if answer[9:10] != b"2":
            raise HttpError(answer[:500].decode(errors="replace"))
        return bytes(answer)

    def receive_rest(self) -> None:
        """What is left of an answer in chunks."""
        last = b""
        while not last.endswith(_LAST_CHUNK):
            last = last[-len(_LAST_CHUNK) :] + self._receive(65536)

    def _receive(self, size: int) -> bytes:
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            raise HttpError(f"no answer in {_PATIENCE_SECONDS} s") from None
        if not data:
            raise HttpError("the connection ended in the middle of an answer")
        return data

    def time(self, request: bytes, times: int, *, pause_seconds: float = 0.0) -> list[float]:
        """The seconds that each of some exchanges took, with a pause before each."""
        seconds = []
        for _ in range(times):
            if pause_seconds:
                time.sleep(pause_seconds)
            began = time.perf_counter()
            self.exchange(request)
            seconds.append(time.perf_counter() - began)
        return seconds


def body_of(answer: bytes) -> bytes:
    """The body of an answer that `exchange` returned, chunks put together."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = bytearray()
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole += body[:length]
        body = body[length + 2 :]
    return bytes(whole)


def _is_whole(answer: bytearray) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return len(answer) >= end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
    if b"\r\ntransfer-encoding: chunked" in head:
        return answer.endswith(_LAST_CHUNK)
    return True
