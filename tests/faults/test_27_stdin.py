"""stdin over HTTP: a full pipe, a reader that closes it, its end; nobody is blocked but the writer.

`test_stdin` has how much was accepted in every case, and `test_process` the
engine's part. Here they come together, and no task is left.
"""

from __future__ import annotations

import httpx
import trio

from supervisor import Process

from ..conftest import PATIENCE_SECONDS, Daemon
from ..kernel import trio_tasks

_MB = 1_000_000
_BODY = b"x" * (10 * _MB)


async def _start(daemon: Daemon, script: str) -> Process:
    body = {"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"}
    answer = await daemon.client.post("/processes", json=body)
    return daemon.supervisor.by_pid(answer.json()["pid"])


async def test_a_full_a_closed_and_an_ended_stdin_leave_no_task_behind(daemon: Daemon) -> None:
    await daemon.client.get("/health")  # Its connection stays open.
    tasks = trio_tasks()
    full = await _start(daemon, "exec sleep 1000")
    closed = await _start(daemon, "head -c1; exec <&-; echo closed; exec sleep 1000")
    counting = await _start(daemon, "wc -c")
    answers: dict[Process, httpx.Response] = {}
    async with httpx.AsyncClient(
        base_url=daemon.client.base_url, timeout=PATIENCE_SECONDS, trust_env=False
    ) as client:

        async def write(process: Process) -> None:
            answers[process] = await client.post(f"/processes/{process.pid}/stdin", content=_BODY)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, full)
            nursery.start_soon(write, closed)
            # While one waits, everything else goes on.
            await write(counting)
            assert (await client.get("/health")).status_code == 200
            with trio.fail_after(PATIENCE_SECONDS):
                while closed not in answers:
                    await trio.lowlevel.checkpoint()
            assert full not in answers
            assert full.status == closed.status == "running"
            assert (await client.delete(f"/processes/{full.pid}")).status_code == 204
        await client.post(f"/processes/{counting.pid}/stdin/close")
        with trio.fail_after(PATIENCE_SECONDS):
            await counting.wait()
        again = await client.post(f"/processes/{closed.pid}/stdin", content=b"x")
        await client.delete(f"/processes/{closed.pid}")
    assert answers[counting].is_success
    assert await counting.log.read_all("stdout") == b"%d\n" % len(_BODY)
    for process in (full, closed):
        answer = answers[process]
        assert (answer.status_code, answer.json()["code"]) == (400, "STDIN_NOT_WRITABLE")
        assert answer.json()["accepted_bytes"] == process.stdin_accepted_bytes < len(_BODY)
    assert again.status_code == 400
    assert await closed.log.read_all("stdout") == b"xclosed\n"
    with trio.fail_after(PATIENCE_SECONDS):
        while trio_tasks() > tasks:
            await trio.lowlevel.checkpoint()
