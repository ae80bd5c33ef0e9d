"""Work for a thread, which is done all the same when there can be no thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

Result = TypeVar("Result")


async def in_thread(
    work: Callable[[], Result], *, limiter: trio.CapacityLimiter | None = None
) -> Result:
    """Do the work in a thread, or here if the system has no thread to give.

    Then it holds up everything else, which is better than not to be done: it is
    output that waits to be written, or a cgroup that would stay.

    Not interrupted by cancellation. Raises what the work raises.
    """
    has_begun = False

    def begin() -> Result:
        nonlocal has_begun
        has_begun = True
        return work()

    try:
        return await trio.to_thread.run_sync(begin, limiter=limiter)
    except RuntimeError:  # "can't start new thread" (EAGAIN in clone(2)).
        if has_begun:
            raise
    return work()
