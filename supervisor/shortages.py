"""What it means to run short of something: it passes, so nothing else may be concluded from it."""

from __future__ import annotations

import errno

from .errors import LaunchError, OutOfDescriptors, OutOfMemory, OutOfProcesses

SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Numbers of the errors of those who cannot open, or keep in memory, what is there."""


def resource_error(error: OSError) -> LaunchError:
    """What running short of something means, for whatever was to be made for a start."""
    match error.errno:
        case errno.EAGAIN:
            return OutOfProcesses("no more processes can be started: limit reached")
        case errno.EMFILE | errno.ENFILE | errno.ETOOMANYREFS:
            return OutOfDescriptors("no more file descriptors can be opened: limit reached")
        case errno.ENOMEM:
            return OutOfMemory("the kernel has no memory for another process")
        case _:
            return LaunchError(f"the process could not be started: {error}")
