"""A pid comes to mean a stranger: no signal goes to it, and no old exit is served for a new process.

`test_supervisor` has the look-up of a reused pid, and `test_requests` the
refusals over HTTP. Here the kernel is made to hand out the very pid, in a pid
namespace in which nobody else takes it, and everything is tried that could hit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from ..conftest import PATIENCE_SECONDS

_ROOT = Path(__file__).parent.parent.parent

_PROGRAM = """
import os, signal, subprocess, sys, trio
from supervisor import *

def take(pid):
    '''Let the next process have this pid (proc_sys_kernel(5)).'''
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))

def sh(script, **more):
    return ProcessSpec(command="sh", args=("-c", script), **more)

async def refused(process):
    for call in (process.send_signal, ):
        try:
            call(signal.SIGKILL)
        except ProcessNotRunning:
            continue
        raise AssertionError(call)
    assert await process.kill() == 0
    await process.stop(0)

async def ended(supervisor, **more):
    '''One that has ended, whose pid no thread of this program has taken since.'''
    while True:
        old = await supervisor.start(sh("exit 3", **more))
        await old.wait()
        while os.path.exists(f"/proc/{old.pid}"):
            await trio.lowlevel.checkpoint()  # It is reaped last of all.
        take(old.pid)
        if int(subprocess.run(["sh", "-c", "echo $$"], stdout=-1).stdout) == old.pid:
            return old

async def main(use_cgroups):
    async with open_supervisor(SupervisorConfig(use_cgroups=use_cgroups)) as supervisor:
        for descendants in ("kill", "keep"):
            old = await ended(supervisor, descendants=descendants)
            # A stranger in a group and a session of the same numbers.
            take(old.pid)
            stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            assert stranger.pid == old.pid
            await refused(old)
            assert stranger.poll() is None
            stranger.kill()
            stranger.wait()
            # One of our own.
            while True:
                take(old.pid)
                new = await supervisor.start(sh("read go; exit 5", stdin_mode="pipe"))
                if new.pid == old.pid:
                    break
                await new.kill()  # The thread that started it was a new one.
            await refused(old)
            assert new.status == "running"
            assert supervisor.by_pid(new.pid) is new
            assert (await old.wait()).exit_code == 3
            await new.close_stdin()
            assert (await new.wait()).exit_code == 5
            assert old.exit_code == 3
            assert supervisor.by_handle(old.handle) is old
        # While anything of a process is alive, its pid is not given away.
        kept = await supervisor.start(sh("sleep 1000 & exit 4", descendants="keep"))
        assert (await kept.wait()).exit_code == 4
        take(kept.pid)
        stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        assert stranger.pid != kept.pid
        await kept.kill()
        assert stranger.poll() is None
        stranger.kill()
        stranger.wait()
    print("fine")

trio.run(main, sys.argv[1] == "cgroups")
"""


@pytest.mark.parametrize("units", ["cgroups", "sessions"])
async def test_whoever_gets_an_old_pid_is_left_alone(units: str) -> None:
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with trio.fail_after(PATIENCE_SECONDS):
        result = await trio.run_process(
            [*namespace, sys.executable, "-c", _PROGRAM, units],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=_ROOT,
        )
    assert (result.stdout, result.stderr) == (b"fine\n", b"")
