"""A cgroup of one's own with a limit, for a daemon to be started in, on whatever version this kernel has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from supervisor.cgroups.mounts import find_own_cgroups


class Confinement(NamedTuple):
    """The cgroup.

    Attributes:
      directory: where it is.
      prefix: a command that enters it and becomes what follows.
    """

    directory: Path
    prefix: tuple[str, ...]

    def write(self, name: str, value: int | str) -> None:
        """Set something."""
        (self.directory / name).write_text(str(value))

    def read(self, name: str) -> str:
        """Get something."""
        return (self.directory / name).read_text()


@contextmanager
def confined(controller: str) -> Iterator[Confinement]:
    """Make it, and remove it at the end, when nobody may be in it any more."""
    own = find_own_cgroups()
    assert own.unified is not None
    parent = own.by_controller.get(controller, own.unified)
    if parent == own.unified:
        Path(parent, "cgroup.subtree_control").write_text(f"+{controller}")
    directory = Path(parent, f"confined-{uuid4().hex[:8]}")
    directory.mkdir()
    script = f'echo $$ > {directory}/cgroup.procs && exec "$@"'
    try:
        yield Confinement(directory, ("sh", "-c", script, "sh"))
    finally:
        for below, _, _ in os.walk(directory, topdown=False):
            os.rmdir(below)
