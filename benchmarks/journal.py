"""The journal alone: what a call takes, next to reading a pipe without one, and how quickly it is read."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from supervisor.journal import Journal, State, read_journal

from .tables import Table

_HEAD = b"0123456789abcdef"
_READ_BYTES = 64 * 1024
_ALIVE = 100


def calls(*, rounds: int) -> Table:
    """Microseconds of one call, while 100 small keys are alive."""
    rows = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        live: dict[int, State] = {}
        journal = stack.enter_context(_opened(directory, live.get))
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, read_end)
        stack.callback(os.close, write_end)

        payload = os.urandom(300)
        times = []
        for key in range(rounds):
            live[key] = [(1, payload)]
            times.append(
                _microseconds(lambda key=key: journal.append(key, 1, payload, begins=True))
            )
            if key >= _ALIVE:
                del live[key - _ALIVE]
                journal.end(key - _ALIVE)
        rows.append(_row("append, 300 B", times))

        live[rounds] = []
        ways: dict[str, Callable[[], object]] = {
            "splice": lambda: journal.splice(rounds, 2, _HEAD, read_end, _READ_BYTES),
            "os.read": lambda: os.read(read_end, _READ_BYTES),
            "os.read, append": lambda: journal.append(
                rounds, 2, _HEAD + os.read(read_end, _READ_BYTES)
            ),
        }
        for size in (64, 4096, 65536):
            data = os.urandom(size)
            measured: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, call in ways.items():
                    os.write(write_end, data)
                    measured[way].append(_microseconds(call))
            rows += [_row(f"{way}, {size:,} B", times) for way, times in measured.items()]
    return Table(
        title="Journal: one call",
        columns=("median µs", "mean µs", "p99 µs"),
        rows=tuple(rows),
        notes=("The mean has compaction and removal of segments in it.",),
    )


def reading(*, processes: int) -> Table:
    """Reading many small keys of three entries each, and large entries."""
    rows = []
    for name, keys, payloads in (
        (f"{processes:,} keys of 3 entries", processes, [bytes(300), bytes(80), bytes(120)]),
        ("1 key of 2,000 entries of 64 KiB", 1, [os.urandom(65536)] * 2000),
    ):
        with tempfile.TemporaryDirectory() as path:
            directory = Path(path)
            live: dict[int, list[tuple[int, bytes]]] = {}
            with _opened(directory, live.get) as journal:
                for key in range(keys):
                    for payload in payloads:
                        journal.append(key, 1, payload)
                        live.setdefault(key, []).append((1, payload))
                size = journal.size
            times = [_microseconds(partial(read_journal, directory, "")) for _ in range(9)]
        rows.append((name, median(times) / 1000, size / median(times)))
    return Table(title="Journal: reading", columns=("ms", "MB/s"), rows=tuple(rows))


def _opened(directory: Path, state_of: Callable[[int], State | None]) -> Journal:
    return Journal(directory, state_of, read_journal(directory, ""))


def _microseconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begun) / 1000


def _row(name: str, times: list[float]) -> tuple[str, float, float, float]:
    return name, median(times), sum(times) / len(times), quantiles(times, n=100)[-1]


if __name__ == "__main__":
    print(calls(rounds=8000).markdown(), reading(processes=10_000).markdown(), sep="\n\n")
