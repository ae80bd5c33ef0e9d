"""What the kernel says, independently of the code under test."""

from __future__ import annotations

import os
from typing import NamedTuple


class Entry(NamedTuple):
    """One process in /proc."""

    pid: int
    state: str
    parent: int
    arguments: tuple[str, ...]


def processes() -> list[Entry]:
    """All processes, zombies included."""
    entries = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().decode("latin-1").rpartition(") ")[2].split()[:2]
            with open(f"/proc/{name}/cmdline", "rb") as file:
                arguments = tuple(os.fsdecode(file.read()).split("\0")[:-1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        entries.append(Entry(int(name), state, int(parent), arguments))
    return entries


def children() -> set[int]:
    """The pids of this process's children, zombies included."""
    return {entry.pid for entry in processes() if entry.parent == os.getpid()}


def running_with(argument: str) -> set[int]:
    """The pids of living processes that have this argument: one that a test made unique."""
    return {
        entry.pid
        for entry in processes()
        if argument in entry.arguments and entry.state not in "ZX" and entry.pid != os.getpid()
    }


def descriptors() -> dict[int, str]:
    """This process's open descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # The descriptor that listed the directory.
    return found
