"""Controllers of version 1, in a hybrid host: a directory for each (kernel, cgroup-v1/).

memory is always joined, since only a cgroup of one's own tells who was killed
for memory. pids, cpu and blkio are joined where a limit asks for them: every
directory costs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress

from ..record import Usage
from . import files
from .events import CgroupEvents
from .leaf import CgroupLimits

_PERIOD_US = 100_000


class Version1Controllers:
    """One unit's limits and counters.

    Args:
      parents: the directories, by controller, that the unit's are made in. All but
        memory's are made when they are needed.
      name: of the unit's directories.
      membership: the unit's version 2 directory, which counts processor time.

    """

    watch_costs_a_descriptor = True

    __slots__ = ("_by_controller", "_membership", "_name", "_parents")

    def __init__(self, parents: dict[str, str], name: str, membership: str) -> None:
        self._parents = parents
        self._name = name
        self._membership = membership
        self._by_controller: dict[str, str] = {}
        if "memory" in parents:
            self._by_controller["memory"] = f"{parents['memory']}/{name}"

    def needs_directories_for(self, limits: CgroupLimits) -> bool:
        """For all but memory, which is always there."""
        others = (limits.pids, limits.cpu_cores, limits.io_weight)
        return any(limit is not None for limit in others)

    def find_directories(self) -> None:
        """One for each controller that has one for the unit."""
        for controller, parent in self._parents.items():
            directory = f"{parent}/{self._name}"
            if os.path.exists(directory):
                self._by_controller[controller] = directory

    def directories(self) -> list[str]:
        """One for each controller."""
        return list(self._by_controller.values())

    def set_limits(self, limits: CgroupLimits) -> None:
        """Set what is not None, in directories that are made for it.

        Raises:
          OSError: FileNotFoundError where the controller is missing.
        """
        if memory := self._by_controller.get("memory"):
            _make(memory)
        if limits.memory_bytes is not None:
            memory = self._directory("memory")
            files.write(f"{memory}/memory.limit_in_bytes", limits.memory_bytes)
            if limits.memory_swap_bytes is not None:
                # Version 1 limits the sum.
                both = limits.memory_bytes + limits.memory_swap_bytes
                files.write(f"{memory}/memory.memsw.limit_in_bytes", both)
        elif limits.memory_swap_bytes is not None:
            raise FileNotFoundError("version 1 limits swap only together with memory")
        if limits.pids is not None:
            files.write(f"{self._directory('pids')}/pids.max", limits.pids)
        if limits.cpu_cores is not None:
            quota = max(1000, round(limits.cpu_cores * _PERIOD_US))
            files.write(f"{self._directory('cpu')}/cpu.cfs_quota_us", quota)
        if limits.io_weight is not None:
            files.write(f"{self._directory('blkio')}/blkio.bfq.weight", limits.io_weight)

    def _directory(self, controller: str) -> str:
        if controller not in self._by_controller:
            if controller not in self._parents:
                raise FileNotFoundError(controller)
            _make(self._parents[controller])
            directory = f"{self._parents[controller]}/{self._name}"
            self._by_controller[controller] = directory
            _make(directory)
        return self._by_controller[controller]

    def oom_kills(self) -> int:
        """`oom_kill` of memory.oom_control."""
        if "memory" not in self._by_controller:
            return 0
        text = files.read(f"{self._by_controller['memory']}/memory.oom_control")
        return files.number(text, "oom_kill") or 0

    def watch_ooms(
        self, stack: ExitStack, events: CgroupEvents, happened: Callable[[], None]
    ) -> None:
        """Have an eventfd signalled."""
        if memory := self._by_controller.get("memory"):
            stack.enter_context(events.watch_oom_control(memory, happened))

    def usage(self) -> Usage:
        """Processor time from the membership's cpu.stat, memory from the memory controller."""
        cpu = files.read(f"{self._membership}/cpu.stat")
        peak = faults = major_faults = None
        if memory := self._by_controller.get("memory"):
            peak = int(files.read(f"{memory}/memory.max_usage_in_bytes"))
            statistics = files.read(f"{memory}/memory.stat")
            faults = files.number(statistics, "total_pgfault")
            major_faults = files.number(statistics, "total_pgmajfault")
        return Usage(
            cpu_user_us=files.number(cpu, "user_usec") or 0,
            cpu_system_us=files.number(cpu, "system_usec") or 0,
            memory_peak_bytes=peak,
            read_bytes=None,
            written_bytes=None,
            page_faults=faults,
            major_page_faults=major_faults,
        )


def _make(directory: str) -> None:
    # A parked launcher may be about to make it, too.
    with suppress(FileExistsError):
        os.mkdir(directory)
