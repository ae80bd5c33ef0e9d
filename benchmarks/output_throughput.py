"""How fast one process's output goes into the log, against `cat` in the same place, and what memory that takes.

The same producer writes once into `cat` and once into the daemon, in an order
drawn anew in each round: `cat > /dev/null` against a log that keeps a bounded
part in memory, `cat > FILE` against one that spills all of it to the same
file system.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import trio

from .output_daemon import MIB, in_memory, kept_whole, knows, open_daemon
from .output_memory import PeakMemory
from .tables import Cell, Table

_KEPT_IN_MEMORY = 32 * MIB

PRODUCERS = {
    "short lines": "yes | head -c {size}",
    "no newline": "head -c {size} /dev/zero",
}

# A way is given the producer, its size and a fresh directory; it returns the
# seconds, and how much memory that took the daemon.
Way = Callable[[str, int, str], Awaitable[tuple[float, float]]]


def measure(
    *, size_bytes: int = 1_000_000_000, rounds: int = 3, directory: str | None = None
) -> Table:
    """Let every way take the output of every producer, once a round.

    Args:
      directory: on the file system where outputs go; takes twice `size_bytes`.
    """
    return trio.run(_measure, size_bytes, rounds, directory)


async def _measure(size_bytes: int, rounds: int, directory: str | None) -> Table:
    pairs: dict[str, tuple[Way, Way]] = {"/dev/null": (_cat_to_nothing, _daemon_in_memory)}
    if knows("state_dir"):
        pairs["a file"] = (_cat_to_file, _daemon_spilling)
    turns = [
        (producer, target, index)
        for producer in PRODUCERS
        for target in pairs
        for index in range(len(pairs[target]))
    ]
    results: dict[tuple[str, str, int], list[tuple[float, float]]] = {turn: [] for turn in turns}
    for _ in range(rounds):
        random.shuffle(turns)
        for producer, target, index in turns:
            with TemporaryDirectory(dir=directory, prefix="creche-benchmark-") as place:
                command = PRODUCERS[producer].format(size=size_bytes)
                result = await pairs[target][index](command, size_bytes, place)
            results[producer, target, index].append(result)
    rows = []
    for producer in PRODUCERS:
        for target in pairs:
            cat, creche = (results[producer, target, index] for index in (0, 1))
            name = "creche, in memory" if target == "/dev/null" else "creche, spilling"
            rows.append(_row(f"cat to {target}, {producer}", size_bytes, cat, cat))
            rows.append(_row(f"{name}, {producer}", size_bytes, creche, cat))
    return Table(
        title=f"output of {size_bytes / 1e9:g} GB, {rounds} rounds",
        columns=("seconds", "spread", "MB/s", "of cat's throughput", "spread", "peak growth, MiB"),
        rows=tuple(rows),
        notes=(
            "Of cat's throughput: the median of each round's ratio. "
            f"In memory the log keeps {_KEPT_IN_MEMORY // MIB} MiB.",
        ),
    )


def _row(
    name: str, size: int, results: list[tuple[float, float]], cat: list[tuple[float, float]]
) -> tuple[Cell, ...]:
    seconds = [each for each, _ in results]
    middle = median(seconds)
    speed = size / middle / 1e6
    spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
    if results is cat:
        return (name, middle, spread, speed, None, None, None)
    ratios = [base / each for (base, _), each in zip(cat, seconds, strict=True)]
    growth = max(mib for _, mib in results)
    return (
        name,
        middle,
        spread,
        speed,
        median(ratios),
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        growth,
    )


async def _cat_to_nothing(producer: str, size: int, place: str) -> tuple[float, float]:
    return await _cat(producer, Path("/dev/null"))


async def _cat_to_file(producer: str, size: int, place: str) -> tuple[float, float]:
    target = Path(place, "output")
    seconds, growth = await _cat(producer, target)
    assert target.stat().st_size == size  # noqa: ASYNC240  # It disturbs nobody.
    return seconds, growth


async def _cat(producer: str, target: Path) -> tuple[float, float]:
    began = time.perf_counter()
    await trio.run_process(["sh", "-c", f'{producer} | cat > "$0"', str(target)])
    return time.perf_counter() - began, 0.0


async def _daemon_in_memory(producer: str, size: int, place: str) -> tuple[float, float]:
    return await _daemon(producer, size, in_memory(_KEPT_IN_MEMORY))


async def _daemon_spilling(producer: str, size: int, place: str) -> tuple[float, float]:
    return await _daemon(producer, size, kept_whole(size, place), lossless=True)


async def _daemon(
    producer: str, size: int, options: dict[str, object], *, lossless: bool = False
) -> tuple[float, float]:
    """From the request to start until the end can be seen."""
    async with open_daemon(options) as client:
        await client.ended(await client.start(["true"]))
        memory = PeakMemory(client.pid)
        began = time.perf_counter()
        record = await client.ended(await client.start(["sh", "-c", producer]))
        seconds = time.perf_counter() - began
        kept, dropped = record["output_kept_bytes"], record["output_dropped_bytes"]
        assert record["exit_code"] == 0, record
        assert kept + dropped == size, record
        assert not lossless or kept == size, record
        return seconds, memory.growth_mib


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1000, help="millions of bytes (%(default)s)")
    parser.add_argument("--full", action="store_true", help="10 GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="on the file system where outputs go")
    options = parser.parse_args()
    size = 10_000_000_000 if options.full else options.mb * 1_000_000
    table = measure(size_bytes=size, rounds=options.rounds, directory=options.directory)
    print(table.markdown())


if __name__ == "__main__":
    main()
