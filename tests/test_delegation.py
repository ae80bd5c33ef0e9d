"""Supervisors that have only a part of the cgroup tree: as another user, and in a container."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from supervisor.cgroups.mounts import find_own_cgroups

from .conftest import PATIENCE_SECONDS
from .kernel import running_with

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


# Of a supervisor that is not root, and of processes that have become root, as with sudo.
_AMONG_ROOTS = """
import os, signal, sys, trio
from supervisor import *
become_root, unique, use_cgroups = sys.argv[1], sys.argv[2], sys.argv[3] == "cgroups"
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
root = f"{become_root} --reuid 0 sh -c 'echo ready; exec sleep {unique}'"
def sh(script):
    return ProcessSpec(command="sh", args=("-c", script), stdin_mode="pipe")
async def started(supervisor, script):
    process = await supervisor.start(sh(script))
    async for _ in process.lines():
        return process
async def main():
    async with open_supervisor(SupervisorConfig(use_cgroups=use_cgroups, grace_seconds=0.1)) as supervisor:
        assert (supervisor.capabilities.cgroups is not None) == use_cgroups
        async def report(name, process, act, *arguments):
            await act(*arguments)
            record = await process.wait()
            alive = os.path.exists(f"/proc/{process.pid}")
            print(name, record.reason, record.exit_code, record.signal, "alive" if alive else "gone", flush=True)
        killed, stopped = [await started(supervisor, f"exec {root}") for _ in range(2)]
        left = await started(supervisor, f"sleep {unique}1 & exec {root}")
        parent = await started(supervisor, f"{root} & setsid sleep {unique}1 & read line; exit 3")
        try:
            killed.send_signal(signal.SIGTERM)
        except SignalNotPermitted as error:
            print(error.code)
        await parent.close_stdin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report, "killed", killed, killed.kill)
            nursery.start_soon(report, "stopped", stopped, stopped.stop, 0.1)
            nursery.start_soon(report, "parent", parent, parent.wait)
            print("run", (await supervisor.run(sh(f"exec {root}"), timeout=0.1)).reason, flush=True)
    print("left", left.reason)
trio.run(main)
"""


@pytest.fixture
def become_root(somewhere: Path) -> str:
    """A setpriv(1) that whoever executes it may become root by."""
    if os.statvfs(somewhere).f_flag & os.ST_NOSUID:
        pytest.skip("set-user-ID programs do nothing here")
    program = somewhere / "become-root"
    shutil.copy(shutil.which("setpriv") or "", program)
    program.chmod(0o4755)
    return str(program)


@pytest.mark.parametrize("how", ["cgroups", "sessions"])
async def test_processes_that_have_become_root_are_ended_or_said_to_live(
    delegated: list[str], become_root: str, how: str
) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    arguments = _joining(delegated, f"exec {sys.executable} -c")
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            result = await trio.run_process(
                [*arguments, _AMONG_ROOTS, become_root, unique, how], capture_stdout=True
            )
        said = set(result.stdout.decode().splitlines())
        if how == "cgroups":
            assert said == {
                "SIGNAL_NOT_PERMITTED",
                "killed signaled None 9 gone",
                "stopped signaled None 9 gone",
                "parent exited 3 None gone",
                "run timed_out",
                "left signaled",
            }
            assert running_with(unique) == set()
        else:
            # Nobody may kill them, but neither does anybody say that they are dead.
            assert said == {
                "SIGNAL_NOT_PERMITTED",
                "killed unknown None None alive",
                "stopped unknown None None alive",
                "parent exited 3 None gone",
                "run unknown",
                "left unknown",
            }
        assert running_with(f"{unique}1") == set()
    finally:
        with trio.fail_after(PATIENCE_SECONDS):
            while left := running_with(unique) | running_with(f"{unique}1"):
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await trio.lowlevel.checkpoint()  # They are not our children.


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
