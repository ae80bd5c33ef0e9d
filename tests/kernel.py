"""What the kernel and Trio say, independently of the code under test."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import trio

from supervisor.cgroups.mounts import find_own_cgroups


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
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        # Without it, the thread has ended, and its children are the first one's now.
        with (
            suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/self/task/{thread}/children", "rb") as file,
        ):
            found.update(map(int, file.read().split()))
    return found


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


def supervisors_cgroups() -> set[Path]:
    """The cgroups for the units of supervisors, below those of this process in all hierarchies."""
    own = find_own_cgroups()
    found = set()
    for directory in {own.unified, *own.by_controller.values()} - {None}:
        base = Path(str(directory))
        if base.name == "creche-daemon":
            base = base.parent
        found |= {base / name for name in os.listdir(base) if name.startswith("creche-")}
    return {cgroup for cgroup in found if cgroup.name != "creche-daemon"}


def end_cgroups_of_the_dead(cgroups: set[Path]) -> None:
    """Kill and remove what killed supervisors have left, as the next one would; waits for a living one."""
    unified = {cgroup for cgroup in cgroups if (cgroup / "cgroup.kill").exists()}
    for cgroup in unified:
        try:
            descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            # A child that is between fork and exec still has the lock.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            (cgroup / "cgroup.kill").write_text("1")
            while "populated 1" in (cgroup / "cgroup.events").read_text():
                os.sched_yield()
        except FileNotFoundError:
            continue  # Another supervisor has done it.
        finally:
            os.close(descriptor)
    for cgroup in cgroups:
        for path, _, _ in os.walk(cgroup, topdown=False):
            with suppress(FileNotFoundError):  # Another supervisor has done it.
                os.rmdir(path)


def trio_tasks() -> int:
    """How many Trio tasks there are."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    todo = [root]
    for task in todo:
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return len(todo)
