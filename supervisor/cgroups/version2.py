"""Controllers of version 2: files in the membership's own directory (kernel, cgroup-v2.rst)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress

from ..record import Usage
from . import files
from .events import CgroupEvents
from .leaf import CgroupLimits

_PERIOD_US = 100_000


class Version2Controllers:
    """One unit's limits and counters, as far as the controllers are enabled there."""

    watch_costs_a_descriptor = False

    __slots__ = ("_directory",)

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def needs_directories_for(self, limits: CgroupLimits) -> bool:
        """Never."""
        return False

    def find_directories(self) -> None:
        """There are none."""

    def directories(self) -> list[str]:
        """None besides the membership's."""
        return []

    def set_limits(self, limits: CgroupLimits) -> None:
        """Set what is not None.

        Raises:
          OSError: FileNotFoundError where the controller is missing.
        """
        for name, value in (
            ("memory.max", limits.memory_bytes),
            ("memory.swap.max", limits.memory_swap_bytes),
            ("pids.max", limits.pids),
            ("io.weight", limits.io_weight),
        ):
            if value is not None:
                files.write(f"{self._directory}/{name}", value)
        if limits.cpu_cores is not None:
            quota = max(1000, round(limits.cpu_cores * _PERIOD_US))
            files.write(f"{self._directory}/cpu.max", f"{quota} {_PERIOD_US}")

    def oom_kills(self) -> int:
        """`oom_kill` of memory.events; 0 without the memory controller."""
        try:
            return files.number(files.read(f"{self._directory}/memory.events"), "oom_kill") or 0
        except FileNotFoundError:
            return 0

    def watch_ooms(
        self, stack: ExitStack, events: CgroupEvents, happened: Callable[[], None]
    ) -> None:
        """Watch memory.events, if there is one."""
        with suppress(FileNotFoundError):
            stack.enter_context(events.watch(f"{self._directory}/memory.events", happened))

    def usage(self) -> Usage:
        """From cpu.stat, memory.peak, memory.stat and io.stat."""
        cpu = files.read(f"{self._directory}/cpu.stat")
        peak = reads = writes = faults = major_faults = None
        with suppress(FileNotFoundError):
            statistics = files.read(f"{self._directory}/memory.stat")
            faults = files.number(statistics, "pgfault")
            major_faults = files.number(statistics, "pgmajfault")
            peak = int(files.read(f"{self._directory}/memory.peak"))
        with suppress(FileNotFoundError):
            reads, writes = _io_bytes(files.read(f"{self._directory}/io.stat"))
        return Usage(
            cpu_user_us=files.number(cpu, "user_usec") or 0,
            cpu_system_us=files.number(cpu, "system_usec") or 0,
            memory_peak_bytes=peak,
            read_bytes=reads,
            written_bytes=writes,
            page_faults=faults,
            major_page_faults=major_faults,
        )


def _io_bytes(text: str) -> tuple[int, int]:
    """Sums over all devices of `8:0 rbytes=1 wbytes=2 ...`."""
    fields = [field.partition("=") for line in text.splitlines() for field in line.split()[1:]]
    return (
        sum(int(value) for name, _, value in fields if name == "rbytes"),
        sum(int(value) for name, _, value in fields if name == "wbytes"),
    )
