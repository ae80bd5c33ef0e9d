"""What Trio alone can do: a server that starts the command that it is asked for, and nothing else.

It answers `POST .../processes` once the command has been executed, and
`POST .../processes/run` once it has ended and its pipes are empty. There is no
record, no output kept, no limit, no cgroup, no user, no second look at the
request, and nothing outlives it. Its launchers are parked as ours are, each
spawned by `trio.lowlevel.open_process`. So a daemon that starts processes that
way cannot be expected to be quicker, nor an aim to be reached that this misses.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from supervisor import ProcessSpec
from supervisor.environment import BaseEnvironment, Environment
from supervisor.launch import Launcher, Launchers, orders_for
from supervisor.leader import Leader
from supervisor.reaper import Children

_PARKED = 8
_READ_BYTES = 64 * 1024
_RUN = b"/run "

_decoder = msgspec.json.Decoder(ProcessSpec)
_environment = Environment(BaseEnvironment({"PATH": "/usr/bin:/bin"}), {})


class Parked(NamedTuple):
    """A launcher that waits for orders, and our ends of its pipes."""

    launcher: Launcher
    stdout: int
    stderr: int

    async def execute(self, orders: bytes, spec: ProcessSpec, stdin: int) -> Leader:
        """Have it carry out its orders, and return what it has become."""
        self.launcher.order(orders, stdin)
        await self.launcher.executed(spec)
        return self.launcher.leader

    async def see_it_end(self, leader: Leader) -> None:
        """Wait for what it has become, read its pipes to their ends and close them."""
        with leader:
            await leader.wait()
            for descriptor in (self.stdout, self.stderr):
                while os.read(descriptor, _READ_BYTES):
                    pass
            for descriptor in (self.stdout, self.stderr):
                os.close(descriptor)


class Floor:
    """The server. Its nursery owns the connections and what is started."""

    def __init__(self, nursery: trio.Nursery, launchers: Launchers) -> None:
        self._nursery = nursery
        self._launchers = launchers
        self._parked: deque[Parked] = deque()
        self._refill = trio.lowlevel.ParkingLot()
        self._waiting = trio.lowlevel.ParkingLot()

    async def park(self) -> None:
        """Keep launchers ready, as many as the daemon does."""
        while True:
            while len(self._parked) < _PARKED:
                self._parked.append(await park(self._launchers))
                self._waiting.unpark()
            await self._refill.park()

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection. Every piece that comes is taken for one whole request."""
        # A client may leave amid an answer.
        with suppress(trio.BrokenResourceError):
            async with stream:
                while request := await stream.receive_some(_READ_BYTES):
                    head, _, body = request.partition(b"\r\n\r\n")
                    if not body:
                        await _answer(stream, b'{"healthy":true}')
                        continue
                    spec = _decoder.decode(body)
                    parked = await self._take()
                    leader = await parked.execute(orders_of(spec), spec, self._launchers.null)
                    ends = partial(parked.see_it_end, leader)
                    if _RUN in head.partition(b"\r\n")[0]:
                        await ends()
                    else:
                        self._nursery.start_soon(ends)
                    await _answer(stream, b'{"handle":1,"pid":%d,"status":"running"}' % leader.pid)
                    self._refill.unpark_all()

    async def _take(self) -> Parked:
        while not self._parked:
            self._refill.unpark_all()
            await self._waiting.park()
        return self._parked.popleft()


async def park(launchers: Launchers) -> Parked:
    """Spawn a launcher that waits."""
    ours_of_stdout, stdout = os.pipe()
    ours_of_stderr, stderr = os.pipe()
    try:
        launcher = await launchers.spawn(cgroups=(), stdout=stdout, stderr=stderr)
    finally:
        for descriptor in (stdout, stderr):
            os.close(descriptor)
    return Parked(launcher, ours_of_stdout, ours_of_stderr)


def orders_of(spec: ProcessSpec) -> bytes:
    """What it is to do for this spec, as its own user."""
    return orders_for(
        spec,
        account=None,
        environment=_environment,
        attributes=b"",
        no_new_privs=False,
        null_unused_pipes=True,
    )


async def _answer(stream: trio.SocketStream, body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    await stream.send_all(head % len(body) + body)


async def main(port: int) -> None:
    """Serve on the loopback until killed."""
    with Launchers(Children()) as launchers:
        async with trio.open_nursery() as nursery:
            floor = Floor(nursery, launchers)
            nursery.start_soon(floor.park)
            await trio.serve_tcp(floor.serve, port, host="127.0.0.1")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
