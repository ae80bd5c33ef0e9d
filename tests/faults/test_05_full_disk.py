"""A disk that is full while outputs are spilled to it.

That nobody is ended, that the rest is told, and that spilling goes on when there
is room again, is in `test_spill_failures.TestFullDisk`. Here are a daemon that is started
on a full disk, and who else is in it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import trio

from ..conftest import PATIENCE_SECONDS
from ..spilling import numbered, numbered_script, small_disk
from ..test_server import serving
from ..wire import connect
from .bystander import ended, unharmed

_SIZE = 2 * 10**6


async def test_a_daemon_on_a_full_disk_serves_and_uses_it_when_there_is_room(
    tmp_path: Path,
) -> None:
    state_dir = tmp_path / "disk"
    with small_disk(state_dir):
        filler = state_dir / "filler"
        subprocess.run(f"cat /dev/zero > {filler}", shell=True, stderr=subprocess.DEVNULL)
        async with serving("--state-dir", str(state_dir)) as (daemon, url):
            async with unharmed(daemon, url) as bystander, await connect(url) as connection:
                spec = {"command": "sh", "args": ["-c", numbered_script(_SIZE)]}

                async def run() -> dict[str, object]:
                    started = await connection.json("POST", "/processes", spec)
                    assert connection.status == 201
                    record = await ended(connection, started["pid"])
                    assert (record["status"], record["exit_code"]) == ("exited", 0)
                    path = f"/processes/{started['pid']}/stdout/raw"
                    assert await connection.request("GET", path) == numbered(0, _SIZE)
                    return record

                record = await run()
                assert record["output_spill_error"] == "No space left on device"
                assert (record["output_spilled_bytes"], record["output_dropped_bytes"]) == (0, 0)
                await bystander.work()
                filler.unlink()
                with trio.fail_after(PATIENCE_SECONDS):
                    while (record := await run())["output_spilled_bytes"] == 0:
                        pass
                assert record["output_spill_error"] is None
            # Of that alone, and not each time.
            assert [entry["logger"] for entry in daemon.complaints] == ["supervisor.survival"]
