"""Waiting for a descriptor that others may have, too.

Trio's `wait_readable` can return for nothing. An epoll watches open files under
the numbers that they had, and forgets them when their last descriptor is
closed (epoll(7)). The keeper, and a child between its fork and its execution,
have descriptors of files that we have closed. If a wait for such a file was
cancelled, the epoll still tells when it hangs up, under a number that means
another file by then.
"""

from __future__ import annotations

import select

import trio


async def wait_until_readable(descriptor: int) -> None:
    """Return when it is; at its end it is, too."""
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        if is_readable(descriptor):
            return


def is_readable(descriptor: int) -> bool:
    """Whether it is now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
