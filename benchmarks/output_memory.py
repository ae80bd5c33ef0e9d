"""How much memory a process takes at most, from a moment on."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

_MIB = 1024 * 1024


class PeakMemory:
    """The growth of a process's resident memory from now on, as the kernel counts it.

    The kernel keeps the peak, so nothing between two looks is missed; it is
    set to the present value first (`man 5 proc`, `clear_refs`).
    """

    def __init__(self, pid: int) -> None:
        self._directory = Path(f"/proc/{pid}")
        with suppress(OSError):  # Not in every kernel. Then earlier peaks count too.
            (self._directory / "clear_refs").write_text("5")
        self._base = self._kib("VmRSS")

    @property
    def growth_mib(self) -> float:
        """The peak minus what it was in the beginning."""
        return (self._kib("VmHWM") - self._base) * 1024 / _MIB

    def _kib(self, name: str) -> int:
        status = (self._directory / "status").read_text()
        match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
        assert match is not None
        return int(match[1])
