"""The write end of one process's stdin pipe."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from .errors import StdinNotWritable


class Stdin:
    """Feeds one process. Writers wait in the order in which they came.

    There is no task and no queue between a writer and the pipe: the caller's
    own task waits for the pipe, so back-pressure reaches whoever caused it.

    Args:
      descriptor: the write end, which does not block; this object owns it from here on.
      accepted_bytes: what the pipe has taken already.

    Attributes:
      accepted_bytes: how many bytes the pipe has taken; also of writes that
        have failed or were cancelled.
    """

    __slots__ = ("_descriptor", "_lock", "accepted_bytes")

    def __init__(self, descriptor: int, accepted_bytes: int = 0) -> None:
        self._descriptor: int | None = descriptor
        self._lock = trio.Lock()
        self.accepted_bytes = accepted_bytes

    @property
    def descriptor(self) -> int | None:
        """The write end; None when it is closed."""
        return self._descriptor

    @property
    def writable(self) -> bool:
        """Whether the pipe is open on this side."""
        return self._descriptor is not None

    async def write(self, data: bytes, wait_begins: Callable[[], None] = lambda: None) -> None:
        """Return once the pipe has taken all of `data`; see `Process.write_stdin`.

        Args:
          wait_begins: is called whenever the pipe has taken a part, and is full.
        """
        async with self._lock:
            if self._descriptor is None:
                raise StdinNotWritable("stdin is closed")
            written = 0
            while written < len(data):
                if self._descriptor is None:
                    # By the process's end, while this was about to go on.
                    raise _no_longer_read(written)
                try:
                    try:
                        count = os.write(self._descriptor, memoryview(data)[written:])
                    except BlockingIOError:
                        wait_begins()
                        await trio.lowlevel.wait_writable(self._descriptor)
                        continue
                except (OSError, trio.ClosedResourceError) as error:
                    self.close_now()
                    raise _no_longer_read(written) from error
                written += count
                self.accepted_bytes += count

    async def close(self) -> None:
        """Close after the writes that came before."""
        async with self._lock:
            self.close_now()

    def close_now(self) -> None:
        """Close at once; a writer that waits for the pipe gets `StdinNotWritable`."""
        if self._descriptor is not None:
            trio.lowlevel.notify_closing(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _no_longer_read(written: int) -> StdinNotWritable:
    return StdinNotWritable("the process no longer reads its stdin", accepted_bytes=written)


def open_stdin() -> tuple[Stdin, int]:
    """A new pipe: the object that writes to it, and the read end that the child is to inherit.

    Raises:
      OSError: no descriptors are left.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # Only ours: the child has the read end, and a description of its own.
    os.set_blocking(write_end, False)
    return Stdin(write_end), read_end
