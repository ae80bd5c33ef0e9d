"""Signals to the daemon, of which none is lost, also where it executes itself anew.

They are blocked, and read from a descriptor (signalfd(2)). So one that nobody has
read yet waits in the kernel, and goes over to the next program together with the
mask (execve(2)): it is read there. A handler would have taken it, in the last
moment and in whatever thread, and what it had noted would be gone.

Who is started has nothing blocked: the launcher sees to that.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Collection

import trio

# sigset_t has room for 1024 signals, in glibc and in musl.
_SET_BYTES = 128
# struct signalfd_siginfo begins with the number.
_INFO = struct.Struct("=I124x")

_libc = ctypes.CDLL(None, use_errno=True)


class Signals:
    """Receives signals. A context manager that blocks them, and at its end no longer.

    Enter it before there are threads: those of before would still take signals.
    One that is unread at the end then has its usual effect.

    Args:
      numbers: of the signals.

    Raises:
      OSError: no descriptors are left.
    """

    def __init__(self, numbers: Collection[int]) -> None:
        self._numbers = numbers
        self._descriptor = _signalfd(numbers)

    def __enter__(self) -> Signals:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        # Also if it was the program before this one that had blocked them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    async def receive(self) -> int:
        """Wait for a signal; its number. Of several, the lowest. If cancelled, none is lost."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            try:
                (number,) = _INFO.unpack(os.read(self._descriptor, _INFO.size))
            except BlockingIOError:
                continue  # For nothing.
            return int(number)


def _signalfd(numbers: Collection[int]) -> int:
    mask = ctypes.create_string_buffer(_SET_BYTES)
    _libc.sigemptyset(mask)
    for number in numbers:
        _libc.sigaddset(mask, number)
    # SFD_NONBLOCK and SFD_CLOEXEC are these.
    descriptor = int(_libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor
