"""A disk that takes nothing any more: read-only, or with errors.

What becomes of outputs is in `test_spill_failures.TestReadOnly` and the tests below it, and
what of a daemon that is started on such a disk in `test_spill`, too. Here is what
they leave open: a start needs nothing of that disk, so none is refused.
"""

from __future__ import annotations

from pathlib import Path

from ..injection import injecting
from ..spilling import numbered, numbered_script, read_only
from ..test_server import serving
from ..wire import Connection, connect
from .bystander import ended, unharmed

_SIZE = 2 * 10**6


async def _check_a_run(connection: Connection, error: str) -> None:
    spec = {"command": "sh", "args": ["-c", numbered_script(_SIZE)]}
    started = await connection.json("POST", "/processes", spec)
    assert connection.status == 201
    record = await ended(connection, started["pid"])
    assert (record["status"], record["exit_code"]) == ("exited", 0)
    assert record["output_spill_error"] == error
    data = await connection.request("GET", f"/processes/{started['pid']}/stdout/raw")
    assert data == numbered(0, _SIZE)


async def test_starts_and_outputs_go_on_when_the_disk_becomes_read_only(tmp_path: Path) -> None:
    async with serving("--state-dir", str(tmp_path)) as (daemon, url):
        async with unharmed(daemon, url) as bystander, await connect(url) as connection:
            with read_only(tmp_path):
                await _check_a_run(connection, "Read-only file system")
                await bystander.work()
        assert daemon.complaints == []


async def test_starts_and_outputs_go_on_when_every_write_to_the_disk_fails(tmp_path: Path) -> None:
    async with serving("--state-dir", str(tmp_path)) as (daemon, url):
        async with (
            unharmed(daemon, url) as bystander,
            await connect(url) as connection,
            injecting(daemon.process.pid, "pwritev2:error=EIO"),
        ):
            await _check_a_run(connection, "Input/output error")
            await bystander.work()
        assert daemon.complaints == []
