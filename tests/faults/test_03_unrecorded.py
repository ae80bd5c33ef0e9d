"""The daemon is killed between the fork of a process and its record, at each system call of a start.

Whatever then runs is known to the next daemon, what it lists has run, and a
client that got no answer and asks again, with the same key, gets one process.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from ..heavy import amount, figure
from ..injection import injecting
from .lives import GONE, lives, wrote

# strace follows the launcher and the command too: none of these is one of their calls.
_INSTANTS = amount(
    [
        ("pwrite64", 1),
        ("pwrite64", 2),
        ("sendmsg", 1),
        ("sendto", 1),
        ("splice", 1),
    ],
    heavy=[
        (call, number)
        for call in ("pwrite64", "sendmsg", "sendto", "splice", "recvfrom", "epoll_wait")
        for number in range(1, 9)
    ]
    + [("shutdown", 1), ("vfork", 1), ("pidfd_open", 1), ("socketpair", 1), ("ftruncate", 1)],
)
# strace counts by thread: enough that the one that spills gets to some fifty calls
# before the one that reads what there is until then.
_FLOOD_LINES = 3_000_000
_SCRIPT = 'echo $$ >> "$RAN"; echo out; exec sleep 1000'


@pytest.mark.parametrize("parked", [0, 2], ids=["spawned", "parked"])
async def test_nothing_runs_unknown_and_nothing_runs_twice(tmp_path: Path, parked: int) -> None:
    killed = executed = again = 0
    async with lives(tmp_path / "state", "--parked-launchers", str(parked)) as daemon:
        await daemon.start()
        for number, (call, when) in enumerate(_INSTANTS):
            ran = tmp_path / f"ran{number}"
            key = f"key-{number}"
            before = {record["handle"] for record in await daemon.records()}
            async with injecting(daemon.command.process.pid, f"{call}:signal=KILL:when={when}"):
                with suppress(*GONE):
                    await daemon.launch(_SCRIPT, key=key, env={"RAN": str(ran)})
                with trio.move_on_after(0.1):  # Some calls come after the answer.
                    await daemon.command.process.wait()
            killed += daemon.command.process.poll() is not None
            await daemon.kill()
            await daemon.start()
            found = [record for record in await daemon.records() if record["handle"] not in before]
            assert len(found) <= 1, found
            for record in found:
                executed += 1
                assert record["status"] == "running", record
            record = await daemon.launch(_SCRIPT, key=key, env={"RAN": str(ran)})
            again += not found
            assert [entry["handle"] for entry in found] in ([], [record["handle"]])
            await wrote(daemon, record, b"out\n")
            assert ran.read_text() == f"{record['pid']}\n"
            assert record["handle"] not in before
            records = await daemon.records()
            assert {entry["handle"] for entry in records} == {*before, record["handle"]}
            assert daemon.marked() == {entry["pid"] for entry in records}
        assert killed >= 4
        figure(
            f"{killed} kills at {len(_INSTANTS)} calls: {executed} found running, {again} "
            "started by the retry, 0 orphans, 0 twice"
        )


async def test_a_flood_that_is_killed_while_it_is_spilled_is_whole(tmp_path: Path) -> None:
    """In a thread, from the pipe into a file: at any call of it."""
    expected = b"".join([b"%d\n" % number for number in range(1, _FLOOD_LINES + 1)])
    instants = amount(
        [("splice", 50), ("pread64", 50)],
        heavy=[
            (call, number)
            for call in ("splice", "pwrite64", "pread64", "pwritev", "openat", "unlink")
            for number in (*range(1, 8), *range(40, 60, 3))
        ],
    )
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        for call, when in instants:
            process = await daemon.launch(f"read x; seq {_FLOOD_LINES}; exit 3", stdin_mode="pipe")
            async with injecting(daemon.command.process.pid, f"{call}:signal=KILL:when={when}"):
                with suppress(*GONE):
                    async with daemon.connection() as connection:
                        path = f"/processes/{process['pid']}/stdin"
                        await connection.request("POST", path, raw=b"x\n")
                with trio.move_on_after(1.0):
                    await daemon.command.process.wait()
            await daemon.kill()
            await daemon.start()
            if (await daemon.record(process["handle"]))["stdin_accepted_bytes"] == 0:
                with suppress(*GONE):
                    async with daemon.connection() as connection:
                        path = f"/processes/{process['pid']}/stdin"
                        await connection.request("POST", path, raw=b"x\n")
            assert (await daemon.ended(process))["exit_code"] == 3
            assert await daemon.raw(process, "stdout") == expected, (call, when)
