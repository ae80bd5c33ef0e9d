"""Another boot: records and outputs are kept, and no pid of before means anything."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from .lives import WITHOUT_CGROUPS, is_dead, lives, wrote


@pytest.mark.parametrize("keeper_lives", [False, True], ids=["keeper dead", "keeper alive"])
async def test_after_a_reboot_nothing_runs_and_nobody_is_signalled(
    tmp_path: Path, keeper_lives: bool
) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text(f"{uuid4()}\n")
    rebooted = (
        *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
        f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"',
        "sh",
    )
    async with lives(tmp_path / "state", under=WITHOUT_CGROUPS) as daemon:
        # What stands for whoever has the pids now must not be in a cgroup that is ours.
        await daemon.start()
        ended = await daemon.launch("echo ended; exit 5")
        await daemon.ended(ended)
        flood = await daemon.launch("seq 100000; exit 6")
        await daemon.ended(flood)
        running = await daemon.launch("echo running; exec sleep 1000")
        await wrote(daemon, running, b"running\n")
        await daemon.kill()
        if not keeper_lives:
            (keeper,) = daemon.keepers()
            os.kill(keeper, signal.SIGKILL)
            await is_dead(keeper)
        await daemon.start(under=(*rebooted, *WITHOUT_CGROUPS))
        records = {record["handle"]: record for record in await daemon.records()}
        assert (records[ended["handle"]]["exit_code"], records[flood["handle"]]["exit_code"]) == (
            5,
            6,
        )
        record = records[running["handle"]]
        assert (record["status"], record["reason"]) == ("exited", "unknown")
        assert await daemon.raw(ended, "stdout") == b"ended\n"
        expected = b"".join([b"%d\n" % number for number in range(1, 100_001)])
        assert await daemon.raw(flood, "stdout") == expected
        # It may be lost with the machine, but none of it is wrong.
        assert b"running\n".startswith(await daemon.raw(running, "stdout"))
        async with daemon.connection() as connection:
            path = f"/processes/{running['pid']}"
            await connection.json("POST", f"{path}/signal", {"signal": 9})
            assert connection.status == 400
            await connection.request("DELETE", path)
            assert connection.status == 204
        assert daemon.marked() == {running["pid"]}
        started = await daemon.launch("exit 0")
        assert started["handle"] > running["handle"]
        await daemon.ended(started)
        # The same boot again.
        await daemon.kill()
        await daemon.start(under=(*rebooted, *WITHOUT_CGROUPS))
        assert (await daemon.record(running["handle"]))["reason"] == "unknown"
        assert daemon.marked() == {running["pid"]}
