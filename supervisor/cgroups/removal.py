"""Removing cgroups, in a thread: the kernel takes 10 to 20 ms for every tenth or so."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

import trio

from ..threads import in_thread

_logger = logging.getLogger(__name__)

# The way to a thread and back costs 0.1 ms, so that thousands of ends in a
# second should share it. Nobody waits for a removal.
_GATHERING_SECONDS = 0.05


class Removals:
    """Removes the cgroups of units that have ended. A task must `run` it.

    What is left when that task is cancelled is for the owner of the directory
    above to remove.
    """

    def __init__(self) -> None:
        self._directories: list[str] = []
        self._added = trio.lowlevel.ParkingLot()

    def add(self, directories: Iterable[str]) -> None:
        """Remove these soon, in this order."""
        self._directories += directories
        self._added.unpark_all()

    async def run(self) -> None:
        """Remove what is added, until cancelled."""
        while True:
            if not self._directories:
                await self._added.park()
            await trio.sleep(_GATHERING_SECONDS)
            directories, self._directories = self._directories, []
            await in_thread(partial(_remove_all, directories))


def _remove_all(directories: list[str]) -> None:
    for directory in directories:
        remove_tree(directory)


def remove_tree(directory: str) -> None:
    """Remove a cgroup and all below it, bottom up; logs what stays."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EBUSY:
            _logger.error("cgroup %s stays: %s", directory, error.strerror)
            return
        below = [path for path, _, _ in os.walk(directory, topdown=False)]
        for path in below:
            with suppress(FileNotFoundError):
                try:
                    os.rmdir(path)
                except OSError as stays:
                    _logger.error("cgroup %s stays: %s", path, stays.strerror)
