"""A unit with a cgroup, which holds every descendant whatever it does."""

from __future__ import annotations

import signal
from contextlib import suppress

from ..errors import SignalNotPermitted
from ..unit import Unit
from .leaf import Leaf


class CgroupUnit(Unit):
    """The members of a leaf."""

    __slots__ = ("_leaf",)

    def __init__(self, leader: int, pidfd: int, leaf: Leaf) -> None:
        super().__init__(leader, pidfd)
        self._leaf = leaf

    def __exit__(self, *_: object) -> None:
        pass  # The leaf has its own owner.

    def kill(self) -> int:
        """SIGKILL to everything at once; how many there were besides the leader."""
        try:
            count = self._leaf.member_count()
        finally:  # Whatever has failed.
            try:
                # The group first: a leader that saw its child die alone would
                # exit with a status of its own. Where that is not permitted,
                # the cgroup's is.
                with suppress(SignalNotPermitted):
                    self.signal_group(signal.SIGKILL)
            finally:
                self._leaf.kill()
        return max(0, count - 1)

    def is_alone(self) -> bool:
        """Whether nothing is alive in the leaf."""
        # Read and not waited for: reading is never late, and nearly always
        # nobody is left (kernel notifications may be 10 ms late).
        return self._leaf.is_empty()

    async def kill_descendants(self) -> int:
        """Kill what is alive in the leaf."""
        if self.is_alone():
            return 0
        try:
            count = self._leaf.member_count()
        finally:
            self._leaf.kill()
        await self._leaf.wait_until_empty()
        return count

    async def wait_until_alone(self) -> None:
        """Wait until nothing is alive in the leaf; for a leader that has exited."""
        if not self.is_alone():
            await self._leaf.wait_until_empty()
