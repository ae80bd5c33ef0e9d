"""A long run at full rate: whether memory stays flat, and the daemon answers all the time.

Clients start short processes as fast as they can, others follow processes that
write all the time, and one asks for the daemon's health. A finished process
takes memory until ten thousand others have pushed it out, so the slope is
measured from a while after the beginning on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import linear_regression, quantiles
from tempfile import TemporaryDirectory

import trio

from .output_client import Client
from .output_daemon import as_shipped, open_daemon
from .tables import Table

_CHATTY = 10
_WRITER = "while :; do echo a line of some forty characters, or so; sleep 0.05; done"
_HEALTH_SECONDS = 0.1
_SAMPLE_SECONDS = 5.0


class Seen:
    """What was seen so far."""

    def __init__(self) -> None:
        self.starts = 0
        self.events = 0
        self.health_ms: list[float] = []
        # When, in minutes, and how much, in KiB.
        self.memory: list[tuple[float, float]] = []


def measure(*, minutes: float, clients: int, followers: int) -> Table:
    """Run for so long."""
    return trio.run(_measure, minutes, clients, followers)


async def _measure(minutes: float, clients: int, followers: int) -> Table:
    seen = Seen()
    with TemporaryDirectory(prefix="creche-benchmark-") as place:
        async with open_daemon(as_shipped(place)) as client:
            with trio.move_on_after(60 * minutes):
                async with trio.open_nursery() as nursery:
                    chatty = [await client.start(["sh", "-c", _WRITER]) for _ in range(_CHATTY)]
                    for number in range(followers):
                        nursery.start_soon(_follow, client, chatty[number % _CHATTY], seen)
                    for _ in range(clients):
                        nursery.start_soon(_start, client, seen)
                    nursery.start_soon(_ask, client, seen)
                    nursery.start_soon(_sample, client, seen)
            for pid in chatty:
                await client.kill(pid)
    steady = seen.memory[len(seen.memory) // 3 :]
    slope, _ = linear_regression([at for at, _ in steady], [size for _, size in steady])
    sizes = [size / 1024 for _, size in steady]
    cuts = quantiles(seen.health_ms, n=100, method="inclusive")
    return Table(
        title=f"{minutes:g} minutes of {clients} clients that start, and {followers} that follow",
        columns=("starts/s", "events/s", "health p50 ms", "p99 ms", "memory MiB", "slope KiB/min"),
        rows=(
            (
                "creche",
                seen.starts / minutes / 60,
                seen.events / minutes / 60,
                cuts[49],
                cuts[98],
                f"{min(sizes):.0f}-{max(sizes):.0f}",
                slope,
            ),
        ),
        notes=("Memory and its slope are of the last two thirds; all clients share one program.",),
    )


async def _start(client: Client, seen: Seen) -> None:
    async with client.kept_alive() as call:
        while True:
            await call("POST", "/processes", {"command": "/bin/echo", "args": ["hello"]})
            seen.starts += 1


async def _follow(client: Client, pid: int, seen: Seen) -> None:
    async with client.body(f"/processes/{pid}/stdout/follow?tail=0") as body:
        async for data in body:
            seen.events += data.count(b"\n\n")


async def _ask(client: Client, seen: Seen) -> None:
    async with client.kept_alive() as call:
        while True:
            began = time.monotonic()
            await call("GET", "/health")
            seen.health_ms.append((time.monotonic() - began) * 1000)
            await trio.sleep(_HEALTH_SECONDS)


async def _sample(client: Client, seen: Seen) -> None:
    began = time.monotonic()
    while True:
        await trio.sleep(_SAMPLE_SECONDS)
        status = Path(f"/proc/{client.pid}/status").read_text()  # noqa: ASYNC240
        size = float(status.split("VmRSS:")[1].split()[0])
        seen.memory.append(((time.monotonic() - began) / 60, size))


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16, help="that start (%(default)s)")
    parser.add_argument("--followers", type=int, default=50)
    options = parser.parse_args()
    table = measure(minutes=options.minutes, clients=options.clients, followers=options.followers)
    print(table.markdown())


if __name__ == "__main__":
    main()
