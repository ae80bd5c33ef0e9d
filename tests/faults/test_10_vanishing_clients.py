"""Case 10: clients that vanish. Neither a task, a descriptor nor a line in the log stays of them.

Besides, tests/test_server.py has followers that vanish amid a flood, and runs,
which end with their clients.
"""

from __future__ import annotations

import resource
import socket

import pytest
import trio
from trio.testing import MockClock

from ..conftest import Daemon
from .callers import JSON, closed_down_to, dial, open_now, request, reset, start

FOLLOWERS = 1000


async def _follow(daemon: Daemon, pid: int, more: bytes = b"") -> trio.SocketStream:
    """A follow whose answer has begun."""
    stream = await dial(daemon.url)
    await stream.send_all(request("GET", f"/processes/{pid}/output/follow", close=False) + more)
    assert await stream.receive_some(1) == b"H"
    return stream


async def test_a_thousand_followers_that_reset_leave_no_task_and_no_descriptor(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    pid = await start(daemon.url, "cat", stdin_mode="pipe")
    before = await open_now()
    # Both ends are ours, and the server takes half of the descriptors at most.
    at_once = min(FOLLOWERS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 100)
    gone = 0
    while gone < FOLLOWERS:
        followers = [await _follow(daemon, pid) for _ in range(min(at_once, FOLLOWERS - gone))]
        assert (await open_now()).tasks >= before.tasks + len(followers)
        for follower in followers:
            reset(follower.socket)
        gone += len(followers)
        await closed_down_to(before)
    assert daemon.supervisor.by_pid(pid).status == "running"
    assert caplog.records == []


async def test_resets_at_any_moment_of_a_request_are_no_defect(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    before = await open_now()
    whole = request("POST", "/processes", JSON, body=b'{"command": "true"}', close=False)
    for length in range(0, len(whole) + 1, 7):
        # Without a checkpoint in between: it is gone before it is accepted.
        host, _, port = daemon.url.removeprefix("http://").rpartition(":")
        early = socket.create_connection((host, int(port)))
        early.send(whole[:length])
        reset(early)
        stream = await dial(daemon.url)
        await stream.send_all(whole[:length])
        reset(stream.socket)
    async with trio.open_nursery() as nursery:
        for process in daemon.supervisor.processes():
            nursery.start_soon(process.wait)
    await closed_down_to(before)
    assert caplog.records == []


class TestSilence:
    """Time runs 200 times as fast here."""

    @pytest.fixture
    def fast_clock(self) -> MockClock:
        return MockClock(rate=200)

    async def test_followers_that_had_asked_for_more_leave_nothing_either(
        self, fast_clock: MockClock, daemon: Daemon
    ) -> None:
        # Nothing is read behind a request that is being answered, so nobody
        # sees the reset before the next comment is to be sent.
        pid = await start(daemon.url, "cat", stdin_mode="pipe")
        before = await open_now()
        more = request("GET", "/health", close=False)
        followers = [await _follow(daemon, pid, more) for _ in range(50)]
        for follower in followers:
            reset(follower.socket)
        await closed_down_to(before, seconds=2000)
        assert daemon.supervisor.by_pid(pid).status == "running"
