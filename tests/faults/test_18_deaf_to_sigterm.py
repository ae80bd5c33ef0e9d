"""A tree that ignores SIGTERM, with a grandchild in a session of its own: nobody survives a graceful end.

`test_supervisor` ends such trees by leaving the block; here it is DELETE, with
and without cgroups, and the grandchildren are deaf as well.
"""

from __future__ import annotations

import time
from uuid import uuid4

import pytest
import trio

from supervisor import SupervisorConfig

from ..conftest import PATIENCE_SECONDS, Daemon
from ..heavy import figure
from ..kernel import running_with


@pytest.fixture(params=[True, False], ids=["cgroups", "sessions"])
def config(request: pytest.FixtureRequest) -> SupervisorConfig:
    return SupervisorConfig(use_cgroups=request.param)


async def test_nobody_survives_a_graceful_delete(daemon: Daemon) -> None:
    unique = f"1000.{uuid4().int % 10**9}"
    # An ignored signal stays ignored after an exec (execve(2)).
    script = (
        "trap '' TERM INT HUP QUIT; "
        f"setsid sleep {unique} & setsid setsid sh -c 'sleep {unique} & sleep {unique}; :' & "
        f"(setsid sh -c 'sleep {unique} & exit 0' &); sleep {unique}; sleep {unique}; :"
    )
    body = {"command": "sh", "args": ["-c", script], "stderr_mode": "discard"}
    pid = (await daemon.client.post("/processes", json=body)).json()["pid"]
    with trio.fail_after(PATIENCE_SECONDS):
        while len(running_with(unique)) < 5:
            await trio.lowlevel.checkpoint()
        began = time.perf_counter()
        answer = await daemon.client.delete(f"/processes/{pid}?grace_ms=100")
        figure(f"{(time.perf_counter() - began) * 1e3:.0f} ms to gone, 100 of them grace")
    assert answer.status_code == 204
    assert running_with(unique) == set()
    record = (await daemon.client.get(f"/processes/{pid}")).json()
    assert (record["status"], record["signal"]) == ("signaled", 9)
