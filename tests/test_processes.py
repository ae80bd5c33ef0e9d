"""The handlers that answer at once, over HTTP: what they do, not how requests may be wrong."""

from __future__ import annotations

from uuid import uuid4

import msgspec
import trio

from supervisor import Capabilities, ProcessRecord

from .conftest import PATIENCE_SECONDS, Daemon
from .kernel import processes, running_with
from .test_cgroups import MIB
from .wire import connect


async def test_the_record_of_a_process_is_the_engines(daemon: Daemon) -> None:
    async with await connect(daemon.url) as connection:
        started = await connection.request("POST", "/processes", {"command": "true"})
        process = daemon.supervisor.processes()[0]
        assert msgspec.json.decode(started, type=ProcessRecord).handle == process.handle
        await process.wait()
        got = await connection.request("GET", f"/processes/{process.pid}")
        assert msgspec.json.decode(got, type=ProcessRecord) == process.record
        listed = await connection.json("GET", "/processes")
        assert [record["handle"] for record in listed["processes"]] == [process.handle]


async def test_a_run_killed_for_memory_says_so(daemon: Daemon) -> None:
    body = {
        "command": "tail",
        "args": ["/dev/zero"],
        "limits": {"memory_bytes": 16 * MIB},
    }
    async with await connect(daemon.url) as connection:
        _, exited = await connection.events("POST", "/processes/run", body)
        assert exited.data == {"reason": "oom_killed", "signal": 9, "oom_killed": True}
        pid = daemon.supervisor.processes()[0].pid
        record = await connection.json("GET", f"/processes/{pid}")
    assert (record["status"], record["signal"], record["oom_killed"]) == ("oom_killed", 9, True)
    assert record["oom_kills"] == 1


async def test_a_limit_that_cannot_be_set_is_told(daemon: Daemon) -> None:
    async with await connect(daemon.url) as connection:
        for limits in ({"memory_bytes": 0}, {"cpu": -1}, {"pids": "x"}, {"io_weight": 10_001}):
            body = {"command": "true", "limits": limits}
            answer = await connection.json("POST", "/processes", body)
            assert connection.status == 422
            assert answer["field"] == "limits." + next(iter(limits))


async def test_a_graceful_delete_escalates(daemon: Daemon) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    async with await connect(daemon.url) as connection:
        polite = {
            "command": "sh",
            "args": ["-c", "trap 'exit 5' TERM; while :; do sleep 0.01; done"],
        }
        deaf = {
            "command": "sh",
            "args": ["-c", f"trap '' TERM; setsid sleep {unique} & while :; do sleep 1; done"],
        }
        for body, grace_ms, expected in ((polite, 60_000, (5, None)), (deaf, 50, (None, 9))):
            pid = (await connection.json("POST", "/processes", body))["pid"]
            # The shell must have set its trap: only then does it start anything.
            with trio.fail_after(PATIENCE_SECONDS):
                while not any(entry.parent == pid for entry in processes()):
                    await trio.lowlevel.checkpoint()
            await connection.request("DELETE", f"/processes/{pid}?grace_ms={grace_ms}")
            assert connection.status == 204
            record = await connection.json("GET", f"/processes/{pid}")
            assert (record["exit_code"], record["signal"]) == expected
        assert running_with(unique) == set()
        answer = await connection.json("DELETE", f"/processes/{pid}?grace_ms=x")
        assert (connection.status, answer["code"]) == (400, "INVALID_QUERY")


async def test_freeze_thaw_and_usage(daemon: Daemon) -> None:
    async with await connect(daemon.url) as connection:
        body = {"command": "sh", "args": ["-c", "while :; do :; done"]}
        pid = (await connection.json("POST", "/processes", body))["pid"]

        async def cpu_us() -> int:
            usage = (await connection.json("GET", f"/processes/{pid}/usage"))["usage"]
            return int(usage["cpu_user_us"] + usage["cpu_system_us"])

        assert await connection.json("POST", f"/processes/{pid}/freeze") == {"success": True}
        assert await cpu_us() == await cpu_us()
        assert await connection.json("POST", f"/processes/{pid}/thaw") == {"success": True}
        frozen = await cpu_us()
        while await cpu_us() == frozen:
            pass
        everything = await connection.json("GET", "/usage")
        assert [entry["pid"] for entry in everything["processes"]] == [pid]
        await connection.request("DELETE", f"/processes/{pid}")
        assert (await connection.json("GET", "/usage"))["processes"] == []
        assert await cpu_us() >= frozen
        answer = await connection.json("POST", f"/processes/{pid}/freeze")
        assert (connection.status, answer["code"]) == (400, "NOT_RUNNING")


async def test_info_tells_what_this_host_allows(daemon: Daemon) -> None:
    async with await connect(daemon.url) as connection:
        await connection.events("POST", "/processes/run", {"command": "true"})
        info = await connection.json("GET", "/info")
    assert (info["running_processes"], info["total_processes"]) == (0, 1)
    assert msgspec.convert(info["capabilities"], Capabilities) == daemon.supervisor.capabilities
