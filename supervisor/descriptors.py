"""Descriptors for what must not fail for want of one: ending processes, and knowing how they ended.

The soft limit of descriptors (RLIMIT_NOFILE) is what the program keeps to, and
it may go beyond that up to the hard limit. So the room between the two is a
reserve that costs no descriptor and that nothing else uses up: whoever has been
refused a descriptor, and must have it, raises the soft limit for that moment.
A program whose soft limit is its hard one has no reserve.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

_MOST = 64


def reserve_of(hard: int) -> int:
    """How many descriptors a program with this hard limit should hold in reserve."""
    return min(_MOST, hard // 8)


def reserve() -> int:
    """How many this program holds in reserve."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_MOST, hard - soft)


@contextmanager
def beyond_the_limit() -> Iterator[None]:
    """A block that may open a few descriptors more than everything else. Not for awaiting in it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft + _MOST, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_in_any_case(path: str, flags: int) -> int:
    """As os.open, close-on-exec, out of the reserve if need be; to be closed again at once.

    Raises:
      OSError: as os.open.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    with beyond_the_limit():
        return os.open(path, flags | os.O_CLOEXEC)
