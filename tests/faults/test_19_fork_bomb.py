"""A fork bomb under a limit of processes: it is ended whole, and everybody else is served meanwhile.

`test_cgroups` has the engine's part.
"""

from __future__ import annotations

import time

import trio

from ..conftest import PATIENCE_SECONDS
from ..heavy import amount, figure
from ..kernel import running_with
from ..test_server import serving
from ..wire import connect
from .witness import undisturbed

_PIDS = 200
_SECONDS = amount(0.5, heavy=10.0)


async def test_a_fork_bomb_disturbs_nobody_and_is_killed_whole() -> None:
    # Each fork is a forker, for ever, and tries again where the limit forbids it.
    script = "echo ready; bomb() { while :; do bomb & done; }; bomb"
    name = f"bomb-{time.monotonic_ns()}"
    body = {
        "command": "bash",
        "args": ["-c", script, name],
        "stderr_mode": "discard",
        "limits": {"pids": _PIDS},
    }
    async with serving() as (daemon, url), await connect(url) as connection:
        async with undisturbed(daemon, url):
            pid = (await connection.json("POST", "/processes", body))["pid"]
            with trio.fail_after(PATIENCE_SECONDS):
                # A look at all is none at one time, so this is less than the limit.
                while len(running_with(name)) < _PIDS // 2:
                    await trio.lowlevel.checkpoint()
            await trio.sleep(_SECONDS)  # For so long it goes on.
            assert len(running_with(name)) <= _PIDS
            began = time.perf_counter()
            await connection.request("DELETE", f"/processes/{pid}")
            figure(f"killed in {(time.perf_counter() - began) * 1e3:.0f} ms")
            assert connection.status == 204
            assert running_with(name) == set()
        record = await connection.json("GET", f"/processes/{pid}")
        assert (record["status"], record["signal"]) == ("signaled", 9)
