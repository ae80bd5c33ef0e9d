"""Case 12: requests that come slowly, or never.

Besides, tests/test_server.py has bodies and heads that stop in the middle, and
connections that stay idle.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from supervisor import Supervisor

from ..conftest import Daemon
from ..heavy import amount, figure
from ..test_guard import served
from ..test_server import serving
from .callers import (
    JSON,
    closed_down_to,
    dial,
    everyone_is_accepted,
    memory_bytes,
    open_now,
    others_are_served,
    parse_answer,
    request,
    start,
)

SLOW = amount(200, heavy=2000)
# Of what half a request may cost: 30 KB of head here, or a body that has not come.
SLOW_BYTES = 130 * 1024
LESS_THAN_THE_HEAD_MAY_HAVE = 30_000

HEAD = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nX: "
BODY = request("POST", "/processes", JSON, "Content-Length: 9999", declare=False) + b"{"
CHUNKS = request("POST", "/processes/run", JSON, "Transfer-Encoding: chunked", declare=False)


class TestDrip:
    """Time runs 200 times as fast here."""

    @pytest.fixture
    def fast_clock(self) -> MockClock:
        return MockClock(rate=200)

    async def _drip(self, url: str, begin: bytes, drop: bytes = b"x") -> tuple[bytes, float]:
        """Send a drop every four seconds until the other side closes; its answer, and when that was."""
        answer = b""
        began = trio.current_time()
        async with await dial(url) as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(begin)
                    while True:
                        await trio.sleep(4)
                        await stream.send_all(drop)

            nursery.start_soon(send)
            with trio.fail_after(2000), suppress(trio.BrokenResourceError):
                async for data in stream:
                    answer += data
            nursery.cancel_scope.cancel()
        return answer, trio.current_time() - began

    async def test_a_head_that_drips_has_no_longer_than_one_that_stops(
        self, fast_clock: MockClock, daemon: Daemon
    ) -> None:
        before = await open_now()
        answer, seconds = await self._drip(daemon.url, HEAD)
        assert answer == b""
        assert seconds < 100
        await closed_down_to(before, seconds=1000)

    @pytest.mark.parametrize(("begin", "drop"), [(BODY, b" "), (CHUNKS, b"1\r\n \r\n")])
    async def test_a_body_that_drips_has_no_longer_than_one_that_stops(
        self, fast_clock: MockClock, daemon: Daemon, begin: bytes, drop: bytes
    ) -> None:
        before = await open_now()
        answer, seconds = await self._drip(daemon.url, begin, drop)
        assert parse_answer(answer, b"POST").code == "BODY_TIMEOUT"
        assert seconds < 500
        assert daemon.supervisor.total == 0
        await closed_down_to(before, seconds=1000)

    async def test_a_stranger_has_ten_seconds_for_his_body(
        self, fast_clock: MockClock, supervisor: Supervisor
    ) -> None:
        async with served(supervisor, token=b"secret") as port:
            before = await open_now()
            answer, seconds = await self._drip(f"http://127.0.0.1:{port}", BODY, b" ")
            assert parse_answer(answer, b"POST").code == "UNAUTHORIZED"
            assert seconds < 55
            await closed_down_to(before, seconds=1000)


async def test_slow_heads_and_bodies_take_little_and_hold_up_nobody() -> None:
    async with serving() as (daemon, url):
        pid = await start(url, "cat", stdin_mode="pipe")
        stdin = request("POST", f"/processes/{pid}/stdin", "Content-Length: 9999", declare=False)
        peaks = []
        before = memory_bytes(daemon.process.pid)
        for _ in range(3):
            async with others_are_served(url) as answers:
                streams = []
                for _ in range(SLOW // 4):
                    for part in (HEAD + b"x" * LESS_THAN_THE_HEAD_MAY_HAVE, BODY, CHUNKS, stdin):
                        streams.append(await dial(url))
                        await streams[-1].send_all(part)
                await everyone_is_accepted(url)
            assert answers() > 0
            peaks.append(memory_bytes(daemon.process.pid) - before)
            for stream in streams:
                await stream.aclose()
        figure(f"{SLOW} slow requests: {[round(peak / SLOW / 1024) for peak in peaks]} KiB each")
        assert peaks[0] < SLOW * SLOW_BYTES + 8 * 2**20
        # It takes no more each time.
        assert peaks[2] < peaks[0] * 1.5 + 4 * 2**20
        assert daemon.complaints == []
