"""The plain way and hypercorn's: whoever sends a request cannot tell which of them answered."""

from __future__ import annotations

import re

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.plain import understand

from .conftest import PATIENCE_SECONDS, Daemon

_HEAD = b"Host: localhost\r\n"
_PLAIN = [
    b"GET /api/v1/health HTTP/1.1\r\n" + _HEAD + b"\r\n",
    b"GET /api/v1/processes?limit=1 HTTP/1.1\r\n" + _HEAD + b"Connection: keep-alive\r\n\r\n",
    b"GET /api/v1/processes/9 HTTP/1.1\r\n" + _HEAD + b"\r\n",
    b"GET /nowhere%20at%2Fall HTTP/1.1\r\n" + _HEAD + b"\r\n",
    b"DELETE /api/v1/processes/9 HTTP/1.1\r\n" + _HEAD + b"X-Odd_name!: \t a \t b \t\r\n\r\n",
    b"PUT /api/v1/processes HTTP/1.1\r\n" + _HEAD + b"Content-Length: 2\r\n\r\n{}",
    b"POST /api/v1/processes HTTP/1.1\r\n"
    + _HEAD
    + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /api/v1/processes HTTP/1.1\r\n"
    + _HEAD
    + b"Content-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    + b'{"command":"/"}',
    b"POST /api/v1/processes HTTP/1.1\r\n" + _HEAD + b"content-length: 000\r\n\r\n",
    b"GET /api/v1/health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET /api/v1/health HTTP/1.1\r\n" + _HEAD + b"Origin: http://evil.example\r\n\r\n",
]
_NOT_PLAIN = [
    b"",
    b"GET",
    b"GET /a HTTP/1.1\r\nHost: a\r\n",
    b"GET /a HTTP/1.1\r\n\r\n",  # HTTP/1.1 wants a Host.
    b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /a HTTP/1.0\r\nHost: a\r\n\r\n",
    b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET  /a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a HTTP/1.1\nHost: a\n\n",
    b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET /a HTTP/1.1\r\n Host: a\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nX: \xff\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n0123456789",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nxy",
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 64 + b"\r\n",
]


async def _answers(daemon: Daemon, pieces: list[bytes], count: int) -> list[bytes]:
    """Send the pieces one by one on one connection, and return so many answers, normalised."""
    host, port = daemon.url.removeprefix("http://").split(":")
    with trio.fail_after(PATIENCE_SECONDS):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
            for piece in pieces[:-1]:
                await stream.send_all(piece)
                await trio.testing.wait_all_tasks_blocked(0.002)
            await stream.send_all(pieces[-1])
            data = b""
            answers: list[bytes] = []
            while len(answers) < count:
                head, separator, rest = data.partition(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head)
                size = int(length[1]) if length else 0
                if separator and len(rest) >= size:
                    answers.append(re.sub(rb"date: .*\r\n", b"", head + separator + rest[:size]))
                    data = rest[size:]
                else:
                    more = await stream.receive_some(65536)
                    assert more, (data, answers)
                    data += more
            assert data == b""
            return answers


def _normalised(answer: bytes) -> bytes:
    head, separator, body = answer.partition(b"\r\n\r\n")
    body = re.sub(rb'"(uptime\w*|started_at|pid|handle)":[0-9.]+', rb'"\1":0', body)
    status, *headers = head.split(b"\r\n")
    headers = [header for header in headers if not header.startswith(b"content-length")]
    return b"\r\n".join([status, *sorted(headers)]) + separator + body


@pytest.mark.parametrize("request_", _PLAIN)
async def test_both_ways_give_the_same_answer(daemon: Daemon, request_: bytes) -> None:
    assert understand(request_) is not None
    (whole,) = await _answers(daemon, [request_], 1)
    (in_two,) = await _answers(daemon, [request_[:9], request_[9:]], 1)
    assert _normalised(whole) == _normalised(in_two)


@pytest.mark.parametrize("data", _NOT_PLAIN)
def test_whatever_is_odd_is_left_to_hypercorn(data: bytes) -> None:
    assert understand(data) is None


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_that_are_put_in_change_where_a_request_ends(data: bytes, at: int) -> None:
    request = understand(_PLAIN[6][:at] + data + _PLAIN[6][at:])
    if request is not None:
        head = request.head
        names = [name for name, _ in head.headers]
        lengths = [int(value) for name, value in head.headers if name == b"content-length"]
        assert lengths in ([], [len(request.body)])
        assert names.count(b"host") == 1
        assert b"transfer-encoding" not in names
        parts = [head.raw_path, head.query, *names, *(value for _, value in head.headers)]
        assert not any(byte < 32 and byte != 9 for part in parts for byte in part)


async def test_a_request_that_began_in_an_odd_one_is_no_request(daemon: Daemon) -> None:
    """The rest of a message that hypercorn holds the beginning of may look like a plain one."""
    inner = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    begin = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner)
    (answer,) = await _answers(daemon, [begin, inner], 1)
    assert answer.startswith(b"HTTP/1.1 404 ")
    # And so do later ones, on a connection that hypercorn has.
    answers = await _answers(daemon, [begin, inner, inner, inner], 3)
    assert [answer[9:12] for answer in answers] == [b"404", b"200", b"200"]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(range(4)), min_size=2, max_size=6))
def test_pipelined_requests_are_answered_in_order(kinds: list[int]) -> None:
    async def main() -> None:
        from api import Server, create_app
        from supervisor import open_supervisor

        async with open_supervisor() as supervisor, trio.open_nursery() as nursery:
            server = Server(create_app(supervisor), "127.0.0.1:0", graceful_seconds=0.1)
            (address,) = await nursery.start(server.serve)
            daemon = Daemon(f"http://{address}", supervisor, None)  # type: ignore[arg-type]
            requests = [_PLAIN[kind] for kind in kinds]
            alone = [(await _answers(daemon, [request], 1))[0] for request in requests]
            together = await _answers(daemon, [b"".join(requests)], len(requests))
            assert list(map(_normalised, together)) == list(map(_normalised, alone))
            after_first = await _answers(
                daemon, [requests[0], b"".join(requests[1:])], len(requests)
            )
            assert list(map(_normalised, after_first)) == list(map(_normalised, alone))
            server.stop()

    trio.run(main)
