"""Pipes with something in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pipe_with(data: bytes) -> Iterator[int]:
    """The read end of a pipe that holds this and then ends; it fits into a pipe."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        assert os.write(write_end, data) == len(data)
        os.close(write_end)
        yield read_end
    finally:
        os.close(read_end)
