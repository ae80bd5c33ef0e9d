"""Where this process's own cgroups are: from the kernel's tables to directories."""

from __future__ import annotations

import os
from typing import NamedTuple

_PROC = "/proc/self"


class OwnCgroups(NamedTuple):
    """The directories of the cgroups that this process is in.

    Attributes:
      unified: in the version 2 hierarchy, or None where that is not mounted.
      by_controller: in the version 1 hierarchies, by controller.
    """

    unified: str | None
    by_controller: dict[str, str]


def find_own_cgroups() -> OwnCgroups:
    """Read `/proc/self/cgroup` and `/proc/self/mountinfo` (cgroups(7), proc_pid_mountinfo(5))."""
    with open(f"{_PROC}/cgroup") as file:
        # "4:memory:/path", and "0::/path" for version 2.
        paths = {}
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            paths.update(dict.fromkeys(controllers.split(","), path))
    unified = None
    by_controller: dict[str, str] = {}
    with open(f"{_PROC}/mountinfo") as file:
        for line in file:
            mount, _, source = line.partition(" - ")
            root, point = mount.split()[3:5]
            kind, _, options = source.split()[:3]
            if kind == "cgroup2" and "" in paths:
                unified = unified or _directory(point, root, paths[""])
            elif kind == "cgroup":
                for controller in options.split(","):
                    if controller in paths:
                        directory = _directory(point, root, paths[controller])
                        by_controller.setdefault(controller, directory)
    return OwnCgroups(unified, by_controller)


def _directory(point: str, root: str, path: str) -> str:
    """Where a cgroup's path is under a mount, of which `root` is the part that is mounted."""
    relative = os.path.relpath(path, root)
    # From a cgroup namespace, or a mount of something else, nothing of ours
    # can be seen above the mount's own root.
    return point if relative.startswith("..") else os.path.normpath(os.path.join(point, relative))
