"""Runs one of our programs, and counts what Trio does in it.

    python -m benchmarks.counted DESCRIPTOR MODULE [ARGUMENT...]

At every SIGUSR1 the counts so far go to the descriptor, as a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from trio.lowlevel import Task


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


def main() -> None:
    """Run the module that the command line names."""
    descriptor, module, *arguments = sys.argv[1:]
    counter = Counter()

    def report(*_: object) -> None:
        os.write(int(descriptor), json.dumps(counter.counts).encode() + b"\n")

    signal.signal(signal.SIGUSR1, report)
    run = trio.run
    trio.run = lambda *args, **options: run(*args, **options, instruments=[counter])
    setattr(trio.to_thread, "run_sync", counter.count_hops(trio.to_thread.run_sync))  # noqa: B010
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(module).main())


if __name__ == "__main__":
    main()
