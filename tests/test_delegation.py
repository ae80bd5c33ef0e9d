"""Supervisors that have only a part of the cgroup tree: as another user, and in a container."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from supervisor.cgroups.mounts import find_own_cgroups

_NOBODY = 65534

_PROGRAM = """
import os, sys, trio
from supervisor import *
uid = int(sys.argv[1])
if uid:
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
async def main():
    async with open_supervisor() as supervisor:
        capabilities = supervisor.capabilities
        print(capabilities.cgroups, "memory" in capabilities.controllers, capabilities.other_users)
        hog = ProcessSpec(command="tail", args=("/dev/zero",), limits=Limits(memory_bytes=2**24))
        print((await supervisor.run(hog)).reason)
        escape = ProcessSpec(command="sh", args=("-c", "env -i setsid sleep 1000 >/dev/null 2>&1 &"))
        print((await supervisor.run(escape)).record.members_killed)
trio.run(main)
"""


@pytest.fixture
def delegated() -> Iterator[list[str]]:
    """Cgroups of our own below ours, in every hierarchy that matters, which belong to nobody."""
    own = find_own_cgroups()
    assert own.unified is not None
    parents = {own.unified, *(own.by_controller.get(name, own.unified) for name in ("memory",))}
    directories = [f"{parent}/delegated-{uuid4().hex[:8]}" for parent in parents]
    if "memory" not in own.by_controller:
        # Version 2: the controller must be passed on to what is delegated.
        Path(own.unified, "cgroup.subtree_control").write_text("+memory")
    for directory in directories:
        os.mkdir(directory)
        for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            if os.path.exists(f"{directory}/{name}"):
                os.chown(f"{directory}/{name}", _NOBODY, _NOBODY)
    yield directories
    for directory in directories:
        for below, _, _ in os.walk(directory, topdown=False):
            os.rmdir(below)


def _joining(directories: list[str], command: str) -> list[str]:
    joins = " && ".join(f"echo $$ > {directory}/cgroup.procs" for directory in directories)
    return ["sh", "-c", f'{joins} && {command} "$@"', "sh"]


async def test_a_delegated_cgroup_is_enough_for_who_is_not_root(delegated: list[str]) -> None:
    arguments = _joining(delegated, f"exec {sys.executable} -c")
    result = await trio.run_process([*arguments, _PROGRAM, str(_NOBODY)], capture_stdout=True)
    version, memory, other_users, reason, members = result.stdout.decode().split()
    assert version in ("1", "2")
    assert (memory, other_users) == ("True", "False")
    assert (reason, members) == ("oom_killed", "1")


async def test_without_a_delegated_cgroup_there_are_none_for_who_is_not_root() -> None:
    program = _PROGRAM.partition("        hog =")[0] + (
        "        print(capabilities.no_cgroups_because)\ntrio.run(main)\n"
    )
    result = await trio.run_process(
        [sys.executable, "-c", program, str(_NOBODY)], capture_stdout=True
    )
    first, reason = result.stdout.decode().splitlines()
    assert first == "None False False"
    assert "Permission denied" in reason


async def test_a_cgroup_namespace_is_no_obstacle(delegated: list[str]) -> None:
    # What a container has: a namespace whose root is its own cgroup, with its
    # processes right in it, and mounts that show nothing above.
    own = find_own_cgroups()
    mounts = {
        own.unified: "-t cgroup2 none",
        own.by_controller.get("memory"): "-t cgroup -o memory none",
    }
    script = "; ".join(
        f"mount {how} {_mount_point(directory)}" for directory, how in mounts.items() if directory
    )
    arguments = _joining(
        delegated, f"exec unshare --cgroup --mount sh -c '{script}; exec \"$@\"' sh"
    )
    result = await trio.run_process(
        [*arguments, sys.executable, "-c", _PROGRAM, "0"], capture_stdout=True
    )
    version, memory, other_users, reason, members = result.stdout.decode().split()
    assert version in ("1", "2")
    assert (memory, other_users) == ("True", "True")
    assert (reason, members) == ("oom_killed", "1")


def _mount_point(directory: str) -> str:
    while not os.path.ismount(directory):
        directory = os.path.dirname(directory)
    return directory
