"""A disk that takes nothing any more, or gives nothing back: read-only, or with errors.

What becomes of outputs is in `test_spill_failures.TestReadOnly` and the tests below it, and
what of a daemon that is started on such a disk in `test_spill`, too. Here is what
they leave open: a start needs nothing of that disk, so none is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor import OutputLimits, SupervisorConfig, open_supervisor

from ..conftest import PATIENCE_SECONDS
from ..injection import injecting
from ..spilling import (
    MIB,
    check_kept,
    files_of,
    numbered,
    numbered_script,
    read_only,
    torn_disk,
)
from ..test_server import serving
from ..wire import Connection, connect
from .bystander import ended, unharmed
from .lives import Lives, lives

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


@pytest.mark.parametrize("size", [300_000, _SIZE])
async def test_what_a_failing_disk_has_cost_is_the_same_in_the_next_life(
    tmp_path: Path, size: int
) -> None:
    async with lives(tmp_path, "--output-unspilled-bytes", "200000") as daemon:
        await daemon.start()
        with read_only(tmp_path):
            process = await daemon.launch(numbered_script(size))
            await daemon.ended(process)
            with trio.fail_after(PATIENCE_SECONDS):
                while True:
                    record = await daemon.record(process["handle"])
                    if record["output_spill_error"] is not None:
                        break
            path = f"/processes/{process['pid']}/stdout"
            answer = await daemon.json("GET", path)
            assert answer["missing_bytes"] == record["output_dropped_bytes"] > 0
        await daemon.restart()
        assert await daemon.record(process["handle"]) == record
        assert await daemon.json("GET", path) == answer


# --- outputs that cannot be read at a start ---------------------------------------

# Files of 1 MiB.
_LIMITS = OutputLimits(log_bytes=16 * MIB)
_OPTIONS = ("--output-limit-bytes", str(_LIMITS.log_bytes))


async def _spilled(daemon: Lives) -> dict[str, Any]:
    """A process that has written half of its output, most of which is in files, and waits for stdin."""
    script = f"{numbered_script(4 * _SIZE)}; read go; {numbered_script(_SIZE, 4 * _SIZE)}"
    process = await daemon.launch(script, stdin_mode="pipe")
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            record = await daemon.record(process["handle"])
            unspilled = record["output_kept_bytes"] - record["output_spilled_bytes"]
            if record["output_kept_bytes"] == 4 * _SIZE and unspilled <= _LIMITS.memory_bytes:
                return process


def _spill_files(state_dir: Path) -> list[Path]:
    return sorted(files_of(state_dir), key=lambda file: int(file.suffix[1:]))


@pytest.mark.parametrize("which", [0, 1, -1])
async def test_a_file_that_cannot_be_read_at_a_start_is_a_gap_and_all_else_is_as_it_was(
    tmp_path: Path, which: int
) -> None:
    async with lives(tmp_path / "state", *_OPTIONS) as daemon:
        await daemon.start()
        await _spilled(daemon)
        await daemon.kill()
        unreadable = _spill_files(daemon.state_dir)[which]
        size = unreadable.stat().st_size
        # What is in the last one may be in the journal as well.
        least = 0 if which == -1 else 1
        unreadable.unlink()
        unreadable.mkdir()  # Which cannot even be removed.
        config = SupervisorConfig(state_dir=daemon.state_dir, survives=True, output=_LIMITS)
        async with open_supervisor(config) as supervisor:
            (process,) = supervisor.processes()
            assert process.log.end == 4 * _SIZE
            assert least <= process.log.dropped_bytes <= size
            await check_kept(process, follow=False)
            await process.write_stdin(b"\n")
            with trio.fail_after(PATIENCE_SECONDS):
                await process.wait()
            assert process.log.end == 5 * _SIZE
            assert least <= process.log.dropped_bytes <= size
            assert process.record.output_spill_error is None
            await check_kept(process)
        unreadable.rmdir()


async def test_a_disk_that_gives_back_only_its_beginning_ends_nobody(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    (state_dir / "output").mkdir(parents=True, mode=0o700)
    with torn_disk(state_dir / "output") as tear:
        async with lives(state_dir, *_OPTIONS) as daemon:
            await daemon.start()
            process = await _spilled(daemon)
            await daemon.kill()
            tear()
            await daemon.start()
            record = await daemon.record(process["handle"])
            kept, dropped = record["output_kept_bytes"], record["output_dropped_bytes"]
            assert kept + dropped == 4 * _SIZE
            assert 0 < dropped < 4 * _SIZE
            async with daemon.connection() as connection:
                path = f"/processes/{process['pid']}/stdin"
                await connection.request("POST", path, raw=b"\n")
                answer = await connection.json("GET", f"/processes/{process['pid']}/stdout")
            assert answer["missing_bytes"] >= dropped
            assert (await daemon.ended(process, from_=4 * _SIZE))["exit_code"] == 0
            await daemon.kill()


async def test_a_start_without_descriptors_for_outputs_fails_and_costs_nothing(
    tmp_path: Path,
) -> None:
    async with lives(tmp_path / "state", *_OPTIONS) as daemon:
        await daemon.start()
        process = await _spilled(daemon)
        await daemon.kill()
        left = _spill_files(daemon.state_dir)
        strace = ("strace", "-D", "-f", "-o", "/dev/null", "-P", str(left[1]))
        await daemon.spawn(under=(*strace, "-e", "inject=openat:error=EMFILE"))
        assert await daemon.command.exited() == 1
        assert daemon.command.log[-1]["level"] == "error"
        assert os.strerror(24) in daemon.command.log[-1]["message"]
        assert _spill_files(daemon.state_dir) == left
        assert daemon.marked() == {process["pid"]}
        await daemon.start()
        assert await daemon.raw(process, "stdout") == numbered(0, 4 * _SIZE)
