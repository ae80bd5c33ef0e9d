"""A server that has one answer ready and gives it to everyone: what a client can do at best."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from .output_client import Client

# The SDK takes longer for an event the larger the chunks are.
_PIECE_BYTES = 4 * 1024
_HEAD = (
    b"HTTP/1.1 200 \r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
)


@asynccontextmanager
async def open_replay(events: Path) -> AsyncIterator[Client]:
    """Serve a file of events, from memory and in a process of its own, until the block ends."""
    command = [sys.executable, "-m", __name__, str(events)]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
        )
        port = b""
        while not port.endswith(b"\n"):
            port += await server.stdout.receive_some()
        yield Client(int(port), server.pid)
        nursery.cancel_scope.cancel()


async def _serve(answer: bytes) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += await stream.receive_some()
            await stream.send_all(answer)
        finally:
            await stream.aclose()

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(handle, [listener])


def main() -> None:
    """Serve the file that the command line names, in chunks."""
    content = Path(sys.argv[1]).read_bytes()
    pieces = [content[at : at + _PIECE_BYTES] for at in range(0, len(content), _PIECE_BYTES)]
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    trio.run(_serve, b"".join([_HEAD, *chunks, b"0\r\n\r\n"]))


if __name__ == "__main__":
    main()
