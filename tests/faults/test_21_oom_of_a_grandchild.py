"""A grandchild is killed for memory: the record says so, of the tree and not of the leader, over HTTP too.

`test_cgroups` has every way to be killed, for memory or not; here it is two
generations below, and the leader ends by the signal's number as shells do.
"""

from __future__ import annotations

from ..conftest import Daemon


async def test_an_exit_with_137_is_told_from_the_kill_that_led_to_it(daemon: Daemon) -> None:
    # `exit` is with the status of the grandchild: 128 + SIGKILL.
    script = "sh -c 'tail /dev/zero; exit $?'; exit $?"
    body = {
        "command": "sh",
        "args": ["-c", script],
        "stderr_mode": "discard",  # The shell says that it was killed.
        "limits": {"memory_bytes": 64 * 1024 * 1024},
    }
    pid = (await daemon.client.post("/processes", json=body)).json()["pid"]
    await daemon.supervisor.by_pid(pid).wait()
    record = (await daemon.client.get(f"/processes/{pid}")).json()
    assert (record["status"], record["exit_code"], record["signal"]) == ("exited", 137, None)
    assert (record["oom_kills"], record["oom_killed"], record["reason"]) == (1, False, "exited")
