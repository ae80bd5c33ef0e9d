"""The daemon, or everything, is stopped for longer than timeouts are, and goes on: nobody is killed who had no time."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack

import trio

from ..conftest import PATIENCE_SECONDS
from ..heavy import amount
from ..test_server import serving
from ..wire import Connection, Event, connect, parse_events

_TIMEOUT = 1.2
_STANDSTILL = amount(_TIMEOUT + 1.3, heavy=60.0)
_RUNS = 10


class _Run:
    """A run over HTTP, whose events are read as they come."""

    def __init__(self, connection: Connection, script: str) -> None:
        self._connection = connection
        self._script = script
        self.pid = 0
        self.events: list[Event] = []

    async def follow(self, *, task_status: trio.TaskStatus[None]) -> None:
        body = {"command": "sh", "args": ["-c", self._script], "timeout": _TIMEOUT}
        text = b""
        async with self._connection.stream_body("POST", "/processes/run", body) as stream:
            async for data in stream:
                text += data
                self.events = parse_events(text[: text.rfind(b"\n\n") + 2])
                if self.pid == 0:
                    self.pid = self.events[0].data["pid"]
                    task_status.started()


async def test_a_timeout_that_passed_in_a_standstill_begins_anew() -> None:
    async with serving() as (daemon, url), AsyncExitStack() as connections:

        async def run(script: str) -> _Run:
            return _Run(await connections.enter_async_context(await connect(url)), script)

        runs: list[_Run] = []
        with trio.fail_after(_STANDSTILL + PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(_RUNS + 1):
                    # All but the last one stand still, too, and then need a moment yet.
                    script = f"kill -STOP $$; exit {number}" if number < _RUNS else "sleep 1000"
                    runs.append(await run(script))
                    await nursery.start(runs[-1].follow)
                # One more ends while the daemon stands still, with the status of its own.
                during = await run(f"sleep {_TIMEOUT - 0.5}; exit 99")
                await nursery.start(during.follow)
                os.kill(daemon.process.pid, signal.SIGSTOP)
                await trio.sleep(_STANDSTILL)
                os.kill(daemon.process.pid, signal.SIGCONT)
                for one in runs[:_RUNS]:
                    os.killpg(one.pid, signal.SIGCONT)
        ends = [one.events[-1].data for one in runs]
        assert ends[:_RUNS] == [
            {"reason": "exited", "exit_code": number} for number in range(_RUNS)
        ]
        assert ends[_RUNS]["reason"] == "timed_out"
        assert during.events[-1].data == {"reason": "exited", "exit_code": 99}
        assert daemon.complaints == []
