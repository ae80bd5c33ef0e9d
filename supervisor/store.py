"""Where outputs are kept: the bounds, what all logs together hold, and the state directory.

One log's bounds are its own business (`output`). Here is what is common to
all: when they hold more than they may together, the biggest of them that may
lose its oldest output does.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Protocol
from weakref import WeakSet

from msgspec import Meta, Struct

from .errors import StateDirUnusable
from .spec import OutputPolicy
from .spill import Disk, Spill

_Size = Annotated[int, Meta(ge=1)]

# So many threads may wait for the disk at a time.
_THREADS = 8
# What is dropped at a time: this part of the smallest bound, and never more than that.
_FILES_PER_LOG = 16
_LARGEST_FILE_BYTES = 4 * 1024 * 1024


class OutputLimits(Struct, frozen=True, kw_only=True):
    """How much output is kept, in bytes of storage: besides its own bytes a chunk takes some more.

    Attributes:
      memory_bytes: what of one output stays in memory, if the rest can be
        spilled to the state directory.
      unspilled_bytes: what is kept of one output that cannot be spilled.
      log_bytes: what is kept of one output in all.
      total_memory_bytes: what all outputs may hold in memory.
      total_bytes: what all outputs may hold in the state directory.
      policy: what happens past a bound. `drop_oldest`: the process runs on, and
        its oldest output goes. `drop_newest`: it runs on, and what it writes is
        dropped. `block`: it waits until somebody has read its oldest output,
        which goes then.
    """

    memory_bytes: _Size = 64 * 1024
    unspilled_bytes: _Size = 32 * 1024 * 1024
    log_bytes: _Size = 256 * 1024 * 1024
    total_memory_bytes: _Size = 512 * 1024 * 1024
    total_bytes: _Size = 4 * 1024 * 1024 * 1024
    policy: OutputPolicy = "drop_oldest"


class Payer(Protocol):
    """A log that may lose its oldest output."""

    @property
    def memory_to_drop(self) -> int:
        """How many bytes of memory it could give."""

    @property
    def disk_to_drop(self) -> int:
        """How many bytes in the state directory it could give."""

    def drop_memory(self) -> None:
        """Give some."""

    def drop_disk(self) -> None:
        """Give some."""


class OutputStore:
    """The bounds and the place of all outputs of one supervisor. A context manager.

    Args:
      limits: the bounds.
      state_dir: where outputs are spilled to; None to keep them in memory.
        Made if it is not there, and locked: no two supervisors can share it.
      outlives: whether what is there is for a later supervisor as well.

    Attributes:
      limits: as given.
      state_dir: as given.
      disk: what is common to all that is spilled.
      payers: logs that may lose their oldest output for others.
      memory_bytes: what all logs hold in memory.
      unspilled_bytes: what one log may hold in memory that is not on disk.
      trim_above_bytes: up to so much in memory, a log has nothing to let go.
    """

    def __init__(
        self,
        limits: OutputLimits = OutputLimits(),
        state_dir: Path | None = None,
        *,
        outlives: bool = False,
    ) -> None:
        self.limits = limits
        self.payers: WeakSet[Payer] = WeakSet()
        self.memory_bytes = 0
        self.unspilled_bytes = limits.unspilled_bytes
        if state_dir is not None:
            # What waits to be spilled is not what cannot be.
            self.unspilled_bytes = max(limits.unspilled_bytes, 2 * limits.memory_bytes)
        self.trim_above_bytes = min(limits.memory_bytes, self.unspilled_bytes)
        self.disk = Disk(_THREADS)
        self.disk.outlives = outlives
        self.state_dir = state_dir
        self._directory: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> OutputStore:
        """Open the state directory.

        Raises:
          StateDirUnusable: it cannot be made or written, or is another supervisor's.
        """
        if self.state_dir is not None:
            with ExitStack() as stack:
                try:
                    self._directory = _open_directory(
                        self.state_dir, stack, empty=not self.disk.outlives
                    )
                except OSError as error:
                    reason = (
                        "another supervisor uses it"
                        if error.errno == errno.EWOULDBLOCK
                        else error.strerror
                    )
                    raise StateDirUnusable(
                        f"the state directory {self.state_dir} cannot be used: {reason}"
                    ) from error
                self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.disk.is_left = self.disk.outlives
        self._stack.close()

    @property
    def can_spill(self) -> bool:
        """Whether there is a state directory."""
        return self._directory is not None

    @property
    def disk_bytes(self) -> int:
        """What all logs hold in the state directory."""
        return self.disk.used_bytes

    def spill(self, name: str) -> Spill:
        """A place on disk for the log of that name."""
        assert self._directory is not None
        smallest = min(self.limits.log_bytes, self.limits.total_bytes)
        file_bytes = min(smallest // _FILES_PER_LOG, _LARGEST_FILE_BYTES)
        return Spill(self.disk, self._directory / name, file_bytes)

    def found(self) -> dict[str, list[int]]:
        """The names of logs that have files here, and the numbers of those files.

        Raises:
          OSError: the directory cannot be read.
        """
        found: dict[str, list[int]] = {}
        assert self._directory is not None
        for file in os.listdir(self._directory):
            name, _, number = file.rpartition(".")
            if number.isdecimal():
                found.setdefault(name, []).append(int(number))
        return {name: sorted(numbers) for name, numbers in found.items()}

    def remove(self, name: str, numbers: Iterable[int]) -> None:
        """Remove files that no log has."""
        assert self._directory is not None
        for number in numbers:
            with suppress(OSError):
                (self._directory / f"{name}.{number}").unlink()

    def charge(self, memory_bytes: int) -> None:
        """Note that a log holds more in memory, or less; past the bound the biggest pays."""
        self.memory_bytes += memory_bytes
        if memory_bytes > 0 and self.memory_bytes > self.limits.total_memory_bytes:
            self._relieve(
                lambda: self.memory_bytes - self.limits.total_memory_bytes,
                lambda payer: payer.memory_to_drop,
                lambda payer: payer.drop_memory(),
            )

    def make_room(self, disk_bytes: int) -> bool:
        """Have the biggest drop from disk until so much may be added; whether it may."""
        return self._relieve(
            lambda: self.disk_bytes + disk_bytes - self.limits.total_bytes,
            lambda payer: payer.disk_to_drop,
            lambda payer: payer.drop_disk(),
        )

    def _relieve(
        self,
        excess: Callable[[], int],
        has: Callable[[Payer], int],
        drop: Callable[[Payer], None],
    ) -> bool:
        while excess() > 0:
            biggest = max(self.payers, key=has, default=None)
            if biggest is None or not has(biggest):
                return False
            drop(biggest)
        return True


def _open_directory(state_dir: Path, stack: ExitStack, *, empty: bool) -> Path:
    """The directory for outputs, locked, and empty if wanted."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    directory = state_dir / "output"
    directory.mkdir(mode=0o700, exist_ok=True)
    # What a supervisor has left that was killed. Nobody can ask for it any more.
    for path in directory.iterdir() if empty else ():
        path.unlink()
    return directory
