"""What the figures were taken on: the machine, its kernel, and the versions of everything."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import load
from .setting import Setting

_PACKAGES = ("creche", "trio", "hypercorn", "quart", "quart-trio", "msgspec")
_SAMPLE_SECONDS = 1.0


def describe(setting: Setting) -> dict[str, str]:
    """Names and values, in the order of their importance."""
    described = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{_memory_gib():.0f} GiB",
        "kernel": platform.release(),
        "cgroups": _cgroups(),
        "user": "root" if os.geteuid() == 0 else "not root",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            described[package] = "not installed"
    if commit := _commit():
        described["commit"] = commit
    for other in setting.versions:
        described[other.name] = _commit(other.checkout) or "?"
    if load.is_installed():
        described["wrk"] = load.version()
    if setting.sandbox_agent is not None:
        said = subprocess.run(
            [setting.sandbox_agent.program, "--version"], capture_output=True, text=True, check=True
        )
        described["sandbox-agent"] = said.stdout.split()[-1]
    return described


def busy_percent() -> float:
    """How much of all processors is in use now, while we do nothing."""
    busy, total = _ticks()
    time.sleep(_SAMPLE_SECONDS)
    busy_then, total_then = _ticks()
    return 100 * (busy_then - busy) / max(1, total_then - total)


def _ticks() -> tuple[int, int]:
    """Of all processors: in use, and all (`man 5 proc`, stat)."""
    numbers = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = numbers[3] + numbers[4]
    return sum(numbers) - idle, sum(numbers)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _cgroups() -> str:
    mounts = Path("/proc/self/mounts").read_text()
    # With it no join waits for a grace period. Linux 6.18 stays so until a reboot when the
    # option is taken off, which nothing shows.
    favored = " (favordynmods)" if "favordynmods" in mounts else ""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return f"version 2{favored}"
    return f"hybrid{favored}" if " cgroup2 " in mounts else "version 1 or none"


def _commit(directory: Path | None = None) -> str:
    """Of the checkout that is measured, or another one; with a mark if it has been changed."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=directory,
        )
    except FileNotFoundError:
        return ""
    return said.stdout.strip()
