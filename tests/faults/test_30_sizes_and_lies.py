"""Case 30: bodies and heads that are too large, or not as they say.

Besides, tests/test_requests.py has lengths and chunks that contradict themselves,
and tests/test_stdin.py bodies that are large and wanted.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from supervisor import Supervisor

from ..conftest import PATIENCE_SECONDS, Daemon
from ..heavy import figure
from ..test_server import serving
from .callers import (
    JSON,
    STATUS_OF,
    Answer,
    ask,
    dial,
    memory_bytes,
    others_are_served,
    parse_answer,
    request,
    start,
    to_end,
)

GIB = 2**30
GROWTH_BYTES = 24 * 2**20
TRUE = b'{"command": "true"}'


async def _pour(url: str, head: bytes, piece: bytes) -> tuple[Answer, int]:
    """Send pieces up to a GiB or until that is refused; the answer, and how much was sent."""
    sent = 0
    answer = b""
    async with await dial(url) as stream, trio.open_nursery() as nursery:

        async def receive() -> None:
            nonlocal answer
            answer = await to_end(stream)

        nursery.start_soon(receive)
        with trio.fail_after(PATIENCE_SECONDS), suppress(trio.BrokenResourceError):
            await stream.send_all(head)
            while sent < GIB:
                await stream.send_all(piece)
                sent += len(piece)
    return parse_answer(answer, b"POST"), sent


async def test_a_gigabyte_is_refused_without_being_kept() -> None:
    data = b" " * 2**20
    chunk = b"%x\r\n%b\r\n" % (len(data), data)
    async with serving() as (daemon, url):
        pid = await start(url, "cat", stdin_mode="pipe")
        before = memory_bytes(daemon.process.pid, "VmHWM")
        async with others_are_served(url):
            for path in ("/processes", "/processes/run", f"/processes/{pid}/signal"):
                for how, piece in (
                    (f"Content-Length: {GIB}", data),
                    ("Transfer-Encoding: chunked", chunk),
                ):
                    head = request("POST", path, JSON, how, declare=False, close=False)
                    answer, sent = await _pour(url, head, piece)
                    assert answer.code == "BODY_TOO_LARGE"
                    assert sent < GIB // 4
        growth = memory_bytes(daemon.process.pid, "VmHWM") - before
        figure(f"1 GB, six ways: peak {growth / 2**20:.0f} MiB more")
        assert growth < GROWTH_BYTES
        assert daemon.complaints == []


HEADS = {
    "a long path": b"GET /api/v1/" + b"x" * 100_000,
    "a long method": b"G" * 100_000,
    "a long value": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    "a long name": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X" * 100_000,
    "many": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 20_000,
    "folded": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: x\r\n" + b" x\r\n" * 20_000,
    "a long extension": request(
        "POST", "/processes", JSON, "Transfer-Encoding: chunked", declare=False
    )
    + b"5;"
    + b"x" * 100_000,
    "many trailers": request(
        "POST", "/processes", JSON, "Transfer-Encoding: chunked", declare=False
    )
    + b"0\r\n"
    + b"X: x\r\n" * 20_000,
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_without_end_is_431(daemon: Daemon, name: str) -> None:
    answer = await ask(daemon.url, HEADS[name])
    assert (answer.status, answer.code) == (431, "HEAD_TOO_LARGE")
    assert answer.headers["connection"] == "close"
    assert daemon.supervisor.total == 0


async def test_a_head_of_thousands_of_small_headers_is_nothing(daemon: Daemon) -> None:
    async with others_are_served(daemon.url):
        data = request("GET", "/health", *(f"X-{number}: x" for number in range(2000)))
        assert len(data) < 32_000
        assert (await ask(daemon.url, data)).status == 200


NO_HTTP = [
    b"\r\n\r\n\r\n",
    b"\0" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 500,  # TLS.
    b"hello\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",  # Without a Host.
    b"GET / HTTP/0.9\r\n\r\n",
    b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /\x80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x10\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: \r\n\r\n",
]


@pytest.mark.parametrize("data", NO_HTTP)
async def test_what_is_no_request_is_a_400_with_a_code(daemon: Daemon, data: bytes) -> None:
    answer = await ask(daemon.url, data)
    assert (answer.status, answer.code) == (400, "MALFORMED_HTTP")
    assert answer.headers["connection"] == "close"


CHUNKED = request("POST", "/processes", JSON, "Transfer-Encoding: chunked", declare=False)
BAD_CHUNKS = [
    b"ZZ\r\n",
    b"-1\r\n",
    b"+13\r\n" + TRUE + b"\r\n0\r\n\r\n",
    b"0x13\r\n" + TRUE + b"\r\n0\r\n\r\n",
    b" 13\r\n" + TRUE + b"\r\n0\r\n\r\n",
    b"13 ;\r\n" + TRUE + b"X0\r\n\r\n",
    b"12\r\n" + TRUE + b"\r\n0\r\n\r\n",  # Less than there is.
    b"14\r\n" + TRUE + b"\r\n0\r\n\r\n",  # More.
    b"\r\n" + TRUE + b"\r\n0\r\n\r\n",
    b"13\r\n" + TRUE + b"0\r\n\r\n",
    b"f" * 20 + b"\r\n" + TRUE,
    b"f" * 21 + b"\r\n" + TRUE,
    b"13\r\n" + TRUE + b"\r\n0\r\nBad Trailer: x\r\n\r\n",
]


@pytest.mark.parametrize("chunks", BAD_CHUNKS)
async def test_a_chunk_that_lies_starts_nothing(daemon: Daemon, chunks: bytes) -> None:
    async with await dial(daemon.url) as stream:
        await stream.send_all(CHUNKED + chunks)
        await stream.send_eof()
        answer = await to_end(stream)
    # Who has hung up may get none.
    if answer:
        assert parse_answer(answer, b"POST").code in ("MALFORMED_HTTP", "BODY_INCOMPLETE")
    assert daemon.supervisor.total == 0


@pytest.mark.parametrize("path", ["/processes", "/processes/run"])
@pytest.mark.parametrize(
    ("how", "body"),
    [
        ("Content-Length: 100", TRUE),
        ("Content-Length: 20", TRUE),
        ("Transfer-Encoding: chunked", b"13\r\n" + TRUE + b"\r\n"),
        ("Transfer-Encoding: chunked", b"13\r\n" + TRUE + b"\r\n0\r\n"),
    ],
)
async def test_a_body_that_breaks_off_starts_nothing_though_it_is_json(
    daemon: Daemon, path: str, how: str, body: bytes
) -> None:
    async with await dial(daemon.url) as stream:
        await stream.send_all(request("POST", path, JSON, how, declare=False) + body)
        await stream.send_eof()
        answer = await to_end(stream)
    if answer:
        assert parse_answer(answer, b"POST").code == "BODY_INCOMPLETE"
    assert daemon.supervisor.total == 0


async def test_a_signal_that_breaks_off_is_not_sent(daemon: Daemon, supervisor: Supervisor) -> None:
    process = supervisor.by_pid(await start(daemon.url, "cat", stdin_mode="pipe"))
    path = f"/processes/{process.pid}/signal"
    async with await dial(daemon.url) as stream:
        head = request("POST", path, JSON, "Content-Length: 100", declare=False)
        await stream.send_all(head + b'{"signal": 9}')
        await stream.send_eof()
        await to_end(stream)
    assert process.status == "running"


@pytest.mark.parametrize(
    "names", [("Content-Length", "Transfer-Encoding"), ("transfer-encoding", "content-length")]
)
async def test_a_length_beside_chunks_is_refused_and_nothing_behind_it_is_served(
    daemon: Daemon, names: tuple[str, str]
) -> None:
    values = {"content-length": "4", "transfer-encoding": "chunked"}
    lines = [f"{name}: {values[name.lower()]}" for name in names]
    smuggled = request("POST", "/processes", JSON, body=TRUE)
    for length in (b"0\r\n\r\n", b"13\r\n" + TRUE + b"\r\n0\r\n\r\n"):
        data = request("POST", "/processes", JSON, *lines, declare=False, close=False)
        async with await dial(daemon.url) as stream:
            await stream.send_all(data + length + smuggled)
            answers = await to_end(stream)
        assert answers.count(b"HTTP/1.1 ") == 1
        assert parse_answer(answers, b"POST").code == "AMBIGUOUS_LENGTH"
    assert daemon.supervisor.total == 0
    assert STATUS_OF["AMBIGUOUS_LENGTH"] == 400
