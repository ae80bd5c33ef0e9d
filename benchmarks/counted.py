"""Runs one of our programs, and counts what Trio does in it, or what its functions take.

    python -m benchmarks.counted DESCRIPTOR MODULE [ARGUMENT...]

At every SIGUSR1 the counts so far go to the descriptor, as a line of JSON.
SIGRTMIN begins a profile of the main thread, and the next one ends it: then a
line goes there too, a list of functions with their calls and own seconds, all
of them together first. (SIGUSR2 is the daemon's.)
"""

from __future__ import annotations

import cProfile
import importlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from types import CodeType
from typing import Any

import trio
from trio.lowlevel import Task

_MOST_EXPENSIVE = 40


class Counter(trio.abc.Instrument):
    """Counts, by what a reader of the budget calls them."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(
            ["scheduler passes", "task steps", "tasks spawned", "thread hops"], 0
        )

    def before_io_wait(self, timeout: float) -> None:
        """A pass begins with a look at epoll, with or without waiting."""
        self.counts["scheduler passes"] += 1

    def before_task_step(self, task: Task) -> None:
        """A task runs until its next checkpoint."""
        self.counts["task steps"] += 1

    def task_spawned(self, task: Task) -> None:
        """A task comes into being."""
        self.counts["tasks spawned"] += 1

    def count_hops(self, run_sync: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """`trio.to_thread.run_sync`, counted."""

        async def counted(*arguments: Any, **options: Any) -> Any:
            self.counts["thread hops"] += 1
            return await run_sync(*arguments, **options)

        return counted


class Profiler:
    """A profile that signals begin and end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._profile: cProfile.Profile | None = None

    def toggle(self, *_: object) -> None:
        """Begin, or end and report."""
        if self._profile is None:
            self._profile = cProfile.Profile()
            self._profile.enable()
            return
        self._profile.disable()
        entries = [
            (_name(entry.code), entry.callcount, entry.inlinetime)
            for entry in self._profile.getstats()
        ]
        self._profile = None
        entries.sort(key=lambda entry: -entry[2])
        whole = ("all", sum(calls for _, calls, _ in entries), sum(own for _, _, own in entries))
        report = [whole, *entries[:_MOST_EXPENSIVE]]
        os.write(self._descriptor, json.dumps(report).encode() + b"\n")


def _name(code: CodeType | str) -> str:
    if isinstance(code, str):
        return code
    package = "/".join(code.co_filename.split("/")[-2:])
    return f"{package}: {code.co_qualname}"


def main() -> None:
    """Run the module that the command line names."""
    descriptor, module, *arguments = sys.argv[1:]
    counter = Counter()

    def report(*_: object) -> None:
        os.write(int(descriptor), json.dumps(counter.counts).encode() + b"\n")

    signal.signal(signal.SIGUSR1, report)
    signal.signal(signal.SIGRTMIN, Profiler(int(descriptor)).toggle)
    run = trio.run
    trio.run = lambda *args, **options: run(*args, **options, instruments=[counter])
    setattr(trio.to_thread, "run_sync", counter.count_hops(trio.to_thread.run_sync))  # noqa: B010
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(module).main())


if __name__ == "__main__":
    main()
