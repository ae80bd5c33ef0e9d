"""The write end of one process's stdin pipe."""

from __future__ import annotations

import os

import trio

from .errors import StdinNotWritable


class Stdin:
    """Feeds one process. Writers wait in the order in which they came.

    There is no task and no queue between a writer and the pipe: the caller's
    own task waits for the pipe, so back-pressure reaches whoever caused it.

    Args:
      descriptor: the write end, which this object owns from here on.
    """

    __slots__ = ("_lock", "_stream")

    def __init__(self, descriptor: int) -> None:
        self._stream: trio.lowlevel.FdStream | None = trio.lowlevel.FdStream(descriptor)
        self._lock = trio.Lock()

    @property
    def writable(self) -> bool:
        """Whether the pipe is open on this side."""
        return self._stream is not None

    async def write(self, data: bytes) -> None:
        """Return once the pipe has taken all of `data`; see `Process.write_stdin`."""
        async with self._lock:
            if self._stream is None:
                raise StdinNotWritable("stdin is closed", field="stdin")
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self.close_now()
                raise StdinNotWritable(
                    "the process no longer reads its stdin", field="stdin"
                ) from error

    async def close(self) -> None:
        """Close after the writes that came before."""
        async with self._lock:
            self.close_now()

    def close_now(self) -> None:
        """Close at once; a writer that waits for the pipe gets `StdinNotWritable`."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def open_stdin() -> tuple[Stdin, int]:
    """A new pipe: the object that writes to it, and the read end that the child is to inherit.

    Raises:
      OSError: no descriptors are left.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    return Stdin(write_end), read_end
