"""What a process keeps when the daemon is killed: time limits, limits, stdin, descendants, records; and what if the keeper dies too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from supervisor.cgroups.mounts import find_own_cgroups

from ..conftest import PATIENCE_SECONDS
from ..spilling import small_disk
from ..test_exit_status import kernel_keeps_status
from ..test_server import Command
from .lives import GONE, WITHOUT_CGROUPS, Lives, is_dead, lives, wrote

_ROOT = Path(__file__).parent.parent.parent


async def _feed(daemon: Lives, record: dict[str, Any], data: bytes, *, close: bool = False) -> None:
    async with daemon.connection() as connection:
        path = f"/processes/{record['pid']}/stdin?handle={record['handle']}"
        await connection.request("POST", path, raw=data)
        assert connection.status == 204
        if close:
            await connection.request("POST", f"/processes/{record['pid']}/stdin/close")
            assert connection.status == 204


async def _kill_keeper(daemon: Lives) -> None:
    (pid,) = daemon.keepers()
    os.kill(pid, signal.SIGKILL)
    await is_dead(pid)


async def _stop(daemon: Lives) -> Command:
    """An orderly end."""
    daemon.command.process.send_signal(signal.SIGTERM)
    assert await daemon.command.exited() == 0
    return daemon.command


async def test_an_exit_status_is_right_or_said_to_be_unknown(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        away = await daemon.launch("echo x; sleep 0.2; exit 3")
        here = await daemon.launch("cat; exit 4", stdin_mode="pipe")
        await daemon.kill()
        await is_dead(away["pid"])
        await daemon.start()
        await _feed(daemon, here, b"x\n", close=True)
        for record, code in ((away, 3), (here, 4)):
            record = await daemon.ended(record)
            assert record["status"] == "exited"
            known = (code, "exited")
            # Before Linux 6.15 only the zombie tells, for as long as init leaves it.
            told = [known] if kernel_keeps_status() else [known, (None, "unknown")]
            assert (record["exit_code"], record["reason"]) in told
            assert await daemon.raw(record, "stdout") == b"x\n"


async def test_a_timeout_stays_in_force(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()

        async def run(
            script: str,
            timeout: float,
            *,
            task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
        ) -> None:
            body = {"command": "sh", "args": ["-c", script], "timeout": timeout}
            async with (
                daemon.connection() as connection,
                connection.stream_body("POST", "/processes/run", body) as stream,
            ):
                with suppress(*GONE):
                    async for _ in stream:
                        task_status.started()

        async with trio.open_nursery() as clients:
            await clients.start(run, "sleep 1000", 1.2)
            await clients.start(run, "exec sleep 1000", 0.5)
            await clients.start(run, "sleep 0.1; exit 7", 0.5)
            long, short, quick = await daemon.records()
            await daemon.kill()
        await is_dead(quick["pid"])
        await daemon.start()
        long, short, quick = [await daemon.ended(record) for record in (long, short, quick)]
        assert [record["reason"] for record in (long, short)] == ["timed_out", "timed_out"]
        assert long["duration_us"] > 1_100_000
        assert (quick["reason"], quick["exit_code"]) == ("exited", 7)
        assert daemon.marked() == set()


async def test_stdin_stays_open_or_closed_and_counted(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        open_ = await daemon.launch("exec cat", stdin_mode="pipe")
        closed = await daemon.launch("cat; sleep 1000", stdin_mode="pipe")
        ended = await daemon.launch("exec cat", stdin_mode="pipe")
        full = await daemon.launch("exec sleep 1000", stdin_mode="pipe")
        await _feed(daemon, open_, b"before\n")
        await _feed(daemon, closed, b"all\n", close=True)
        await _feed(daemon, ended, b"abc", close=True)
        await daemon.ended(ended)
        await wrote(daemon, closed, b"all\n")
        async with daemon.connection() as connection:
            with trio.move_on_after(0.5):  # Nobody reads it.
                path = f"/processes/{full['pid']}/stdin"
                await connection.request("POST", path, raw=bytes(200_000))
        before = await daemon.records()
        assert [record["stdin_accepted_bytes"] for record in before[:3]] == [7, 4, 3]
        assert before[3]["stdin_accepted_bytes"] > 60_000
        await daemon.restart()
        after = await daemon.records()
        for record in (*before, *after):
            record.pop("usage")
        assert after == before
        await _feed(daemon, open_, b"after\n", close=True)
        record = await daemon.ended(open_)
        assert (record["exit_code"], record["stdin_accepted_bytes"]) == (0, 13)
        assert await daemon.raw(open_, "stdout") == b"before\nafter\n"


@pytest.mark.parametrize("under", [(), WITHOUT_CGROUPS], ids=["cgroups", "no cgroups"])
async def test_a_keeper_that_is_killed_is_replaced_in_time(
    tmp_path: Path, under: Sequence[str]
) -> None:
    async with lives(tmp_path / "state", under=under) as daemon:
        await daemon.start()
        cat = await daemon.launch("cat; exit 3", stdin_mode="pipe")
        await _kill_keeper(daemon)
        await daemon.command.logged("the keeper is process")
        later = await daemon.launch("cat; exit 4", stdin_mode="pipe")
        await daemon.kill()
        await daemon.start()
        for record, code in ((cat, 3), (later, 4)):
            await _feed(daemon, record, b"x", close=True)
            assert (await daemon.ended(record))["exit_code"] == code
            assert await daemon.raw(record, "stdout") == b"x"


@pytest.mark.parametrize("under", [(), WITHOUT_CGROUPS], ids=["cgroups", "no cgroups"])
async def test_with_its_keeper_a_process_is_lost_and_nothing_of_it_is_left(
    tmp_path: Path, under: Sequence[str]
) -> None:
    async with lives(tmp_path / "state", under=under) as daemon:
        await daemon.start()
        ended = await daemon.launch("echo ended; exit 5")
        await daemon.ended(ended)
        lost = await daemon.launch("echo lost; setsid sleep 1000 & sleep 1000")
        await wrote(daemon, lost, b"lost\n")
        for pid in (daemon.command.process.pid, *daemon.keepers()):
            os.kill(pid, signal.SIGKILL)
        await daemon.command.process.wait()
        await daemon.start()
        record = await daemon.record(lost["handle"])
        assert (record["status"], record["reason"]) == ("exited", "unknown")
        assert (record["exit_code"], record["signal"], record["ended_at"]) == (None, None, None)
        assert await daemon.raw(lost, "stdout") == b"lost\n"
        record = await daemon.record(ended["handle"])
        assert (record["exit_code"], await daemon.raw(ended, "stdout")) == (5, b"ended\n")
        for pid in daemon.marked():
            await is_dead(pid)
        assert daemon.marked() == set()
        # Now and for ever.
        await daemon.restart()
        assert (await daemon.record(lost["handle"]))["reason"] == "unknown"


async def test_a_keeper_that_is_stopped_holds_up_nobody_and_loses_nothing(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        (keeper,) = daemon.keepers()
        os.kill(keeper, signal.SIGSTOP)
        cat = await daemon.launch("cat; exit 3", stdin_mode="pipe")
        await _feed(daemon, cat, b"x")
        for _ in range(20):
            await daemon.ended(await daemon.launch("echo a"))
        await daemon.kill()
        os.kill(keeper, signal.SIGCONT)
        await daemon.start()
        await _feed(daemon, cat, b"y", close=True)
        assert (await daemon.ended(cat))["exit_code"] == 3
        assert await daemon.raw(cat, "stdout") == b"xy"
        assert len(await daemon.records()) == 21
        os.kill(keeper, signal.SIGSTOP)
        await _stop(daemon)
        assert daemon.keepers() == set()


async def test_what_a_full_disk_did_not_take_is_written_later(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with small_disk(state_dir):
        filler = state_dir / "filler"
        async with lives(state_dir, "--parked-launchers", "0") as daemon:
            await daemon.start()
            cat = await daemon.launch("cat; exit 3", stdin_mode="pipe")
            await _feed(daemon, cat, b"before ")
            subprocess.run(f"cat /dev/zero > {filler}", shell=True, stderr=subprocess.DEVNULL)
            started = await daemon.launch("echo $$; exec cat", stdin_mode="pipe")
            ended = await daemon.launch("seq 20000; exit 6")
            await daemon.ended(ended)
            expected = await daemon.raw(ended, "stdout")
            await _feed(daemon, cat, b"during ")
            await wrote(daemon, cat, b"before during ")
            # Of what is not written the keeper knows how it ended.
            filler.unlink()
            await daemon.command.logged("what should outlive the supervisor can be")
            await _feed(daemon, cat, b"after ")
            await daemon.restart()
            await _feed(daemon, cat, b"all", close=True)
            assert (await daemon.ended(cat))["exit_code"] == 3
            assert await daemon.raw(cat, "stdout") == b"before during after all"
            assert (await daemon.record(ended["handle"]))["exit_code"] == 6
            assert await daemon.raw(ended, "stdout") == expected
            await _feed(daemon, started, b"", close=True)
            assert (await daemon.ended(started))["exit_code"] == 0


async def test_pipes_that_are_closed_or_held_by_others(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        closed = await daemon.launch("echo a; exec >&- 2>&-; read x; exit 3", stdin_mode="pipe")
        await wrote(daemon, closed, b"a\n")
        held = await daemon.launch(
            "(sleep 0.2; echo held; exec sleep 1000) & echo leader; read x; exit 4",
            stdin_mode="pipe",
        )
        await wrote(daemon, held, b"leader\nheld\n")
        away = await daemon.launch("(echo child; exec sleep 1000) & sleep 0.1; exit 5")
        await daemon.kill()
        await is_dead(away["pid"])
        await daemon.start()
        for record, code in ((closed, 3), (held, 4)):
            assert (await daemon.record(record["handle"]))["status"] == "running"
            await _feed(daemon, record, b"x\n")
            record = await daemon.ended(record)
            assert record["exit_code"] == code
        assert (await daemon.ended(away))["exit_code"] == 5
        assert await daemon.raw(away, "stdout") == b"child\n"
        assert daemon.marked() == set()


@pytest.mark.parametrize("under", [(), WITHOUT_CGROUPS], ids=["cgroups", "no cgroups"])
async def test_descendants_that_are_kept_go_on_and_are_ours_to_end(
    tmp_path: Path, under: Sequence[str]
) -> None:
    async with lives(tmp_path / "state", under=under) as daemon:
        await daemon.start()
        # It still writes, to nobody.
        script = "(while echo x; do sleep 0.05; done) & exit 3"
        kept = await daemon.launch(script, descendants="keep")
        assert (await daemon.ended(kept))["exit_code"] == 3
        brief = await daemon.launch("(read x) & exit 4", descendants="keep", stdin_mode="pipe")
        away = await daemon.launch("sleep 0.2; sleep 1000 & exit 5", descendants="keep")
        other = await daemon.launch("sleep 1000 & exit 6", descendants="kill")
        await daemon.ended(other)
        await daemon.kill()
        await is_dead(away["pid"])
        await daemon.start()
        assert (await daemon.ended(away))["exit_code"] == 5
        assert (await daemon.record(brief["handle"]))["exit_code"] == 4
        await daemon.restart()
        left = daemon.marked()
        assert len(left) >= 2
        async with daemon.connection() as connection:
            for record in (kept, away):
                path = f"/processes/{record['pid']}?handle={record['handle']}"
                await connection.request("DELETE", path)
                assert connection.status == 204
        assert daemon.marked() == set()


async def test_a_frozen_tree_stays_frozen_and_thaws(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        cat = await daemon.launch("exec cat", stdin_mode="pipe")
        deleted = await daemon.launch("exec cat", stdin_mode="pipe")
        for record in (cat, deleted):
            await daemon.json("POST", f"/processes/{record['pid']}/freeze")
        await _feed(daemon, cat, b"x", close=True)
        await daemon.restart()
        assert await daemon.raw(cat, "stdout") == b""
        await daemon.json("POST", f"/processes/{cat['pid']}/thaw")
        await daemon.ended(cat)
        assert await daemon.raw(cat, "stdout") == b"x"
        async with daemon.connection() as connection:
            await connection.request("DELETE", f"/processes/{deleted['pid']}")
            assert connection.status == 204


async def test_limits_stay_in_force_and_a_kill_for_memory_is_told(tmp_path: Path) -> None:
    limits = {"memory_bytes": 16 * 2**20, "pids": 20}
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        later = await daemon.launch("read x; exec tail /dev/zero", stdin_mode="pipe", limits=limits)
        away = await daemon.launch("sleep 0.2; exec tail /dev/zero", limits=limits)
        below = await daemon.launch(
            "sleep 0.2; tail /dev/zero; read x; exit 7", stdin_mode="pipe", limits=limits
        )
        await daemon.kill()
        await is_dead(away["pid"])
        await daemon.start()
        await _feed(daemon, later, b"x\n")
        for record in (later, away):
            record = await daemon.ended(record)
            assert record["status"] == "oom_killed", record
            assert record["oom_kills"] == 1
            assert record["usage"]["memory_peak_bytes"] <= limits["memory_bytes"]
        await _feed(daemon, below, b"x\n")
        record = await daemon.ended(below)
        assert (record["status"], record["exit_code"], record["oom_kills"]) == ("exited", 7, 1)


async def test_a_daemon_that_starts_elsewhere_finds_the_cgroups_of_the_one_before(
    tmp_path: Path,
) -> None:
    limits = {"memory_bytes": 16 * 2**20}
    own = find_own_cgroups().unified
    assert own is not None
    elsewhere = Path(own, f"elsewhere-{uuid4().hex[:8]}")
    elsewhere.mkdir()
    enter = f'echo $$ > {elsewhere}/cgroup.procs && exec "$@"'
    try:
        async with lives(tmp_path / "state") as daemon:
            await daemon.start(under=("sh", "-c", enter, "sh"))
            script = "(setsid env -i sleep 1000 &); read x; exec tail /dev/zero"
            process = await daemon.launch(script, stdin_mode="pipe", limits=limits)
            await daemon.restart()
            await _feed(daemon, process, b"x\n")
            record = await daemon.ended(process)
            assert (record["status"], record["members_killed"]) == ("oom_killed", 1)
            await daemon.ended(await daemon.launch("exit 0"))
            await _stop(daemon)
    finally:
        elsewhere.rmdir()


async def test_records_stay_and_what_is_forgotten_stays_forgotten(tmp_path: Path) -> None:
    async with lives(tmp_path / "state", "--retain-count", "3") as daemon:
        await daemon.start()
        handles = set()
        for number in range(6):
            record = await daemon.launch(f"echo {number}; exit {number}")
            await daemon.ended(record)
            assert record["handle"] not in handles
            handles.add(record["handle"])
        before = await daemon.records()
        assert [record["exit_code"] for record in before] == [3, 4, 5]
        await daemon.restart()
        assert await daemon.records() == before
        await _stop(daemon)
        await daemon.start()
        assert await daemon.records() == before
        for record in before:
            assert await daemon.raw(record, "stdout") == b"%d\n" % record["exit_code"]
        running = await daemon.launch("sleep 1000")
        new = await daemon.launch("exit 0")
        await daemon.ended(new)
        assert handles.isdisjoint((running["handle"], new["handle"]))
        await _stop(daemon)
        await daemon.start()
        records = await daemon.records()
        assert [record["exit_code"] for record in records] == [5, None, 0]
        assert (records[1]["signal"], records[1]["signaled_by"]) == (15, "supervisor")
        assert daemon.marked() == set()


async def test_a_reader_that_a_process_waits_for_comes_back_and_it_goes_on(tmp_path: Path) -> None:
    """`block`: how far it has been read is known to the next daemon, which else would wait for ever."""
    options = ("--output-limit-bytes", "1000000", "--output-memory-bytes", "65536")
    async with lives(tmp_path / "state", *options) as daemon:
        await daemon.start()
        script = "for part in 1 2 3; do seq 300000; read x; done; exit 3"
        process = await daemon.launch(script, output_policy="block", stdin_mode="pipe")
        part = b"".join([b"%d\n" % number for number in range(1, 300_001)])
        path = f"/processes/{process['pid']}/stdout/raw?follow=true"
        for number in range(3):
            headers = {"Range": f"bytes={number * len(part)}-"}
            seen = b""
            with trio.fail_after(PATIENCE_SECONDS):
                async with (
                    daemon.connection() as connection,
                    connection.stream_body("GET", path, headers=headers) as body,
                ):
                    async for data in body:
                        seen += data
                        if len(seen) >= len(part):
                            break
            assert seen == part
            await daemon.restart()
            await _feed(daemon, process, b"x\n")
        assert (await daemon.ended(process, from_=3 * len(part)))["exit_code"] == 3


async def _first(daemon: Lives, record: dict[str, Any], count: int) -> bytes:
    path = f"/processes/{record['pid']}/stdout/raw"
    async with daemon.connection() as connection:
        return await connection.request("GET", path, headers={"Range": f"bytes=0-{count - 1}"})


async def test_what_drop_newest_keeps_is_the_same_afterwards(tmp_path: Path) -> None:
    options = ("--output-limit-bytes", "300000", "--output-memory-bytes", "65536")
    async with lives(tmp_path / "state", *options) as daemon:
        await daemon.start()
        script = "seq 200000; read x; seq 1000; exit 3"
        process = await daemon.launch(script, output_policy="drop_newest", stdin_mode="pipe")
        expected = b"".join([b"%d\n" % number for number in range(1, 200_001)])
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                record = await daemon.record(process["handle"])
                if record["output_kept_bytes"] + record["output_dropped_bytes"] == len(expected):
                    break
        kept = record["output_kept_bytes"]
        assert kept < len(expected)
        await daemon.restart()
        assert await _first(daemon, process, kept) == expected[:kept]
        await _feed(daemon, process, b"x\n")
        record = await daemon.ended(process)
        assert (record["exit_code"], record["output_kept_bytes"]) == (3, kept)
        await daemon.restart()
        assert await _first(daemon, process, kept) == expected[:kept]
        assert await daemon.record(process["handle"]) == record


async def test_what_is_told_of_dropped_output_is_the_same_afterwards(tmp_path: Path) -> None:
    """All of a stream has gone: what is kept does not say how many lines that were."""
    options = ("--output-limit-bytes", "300000", "--output-memory-bytes", "65536")
    async with lives(tmp_path / "state", *options) as daemon:
        await daemon.start()
        script = "seq 500 >&2; read x; seq 200000"
        process = await daemon.launch(script, stdin_mode="pipe")
        errors = b"".join([b"%d\n" % number for number in range(1, 501)])
        await wrote(daemon, process, errors, "stderr")
        await _feed(daemon, process, b"x\n")
        record = await daemon.ended(process)
        path = f"/processes/{process['pid']}/stderr"
        answer = await daemon.json("GET", path)
        assert (answer["missing_bytes"], answer["missing_lines"]) == (len(errors), 500)
        await daemon.restart()
        assert await daemon.json("GET", path) == answer
        assert await daemon.record(process["handle"]) == record


_FILLS_ITS_BOUND = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.write(1, b"a" * 40_000)
signal.sigwait([signal.SIGUSR1])
os.write(1, b"b" * 59_800)
os.write(2, b"c" * 1000)
open(sys.argv[1], "wb").close()
sys.stdin.readline()
os.write(1, b"d" * 50)
sys.exit(3)
"""


def _stand_still(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


async def test_room_that_spilling_has_made_is_not_for_what_comes_after_dropped_output(
    tmp_path: Path,
) -> None:
    """In memory the output takes more than its bound, on disk a little less."""
    options = ("--output-limit-bytes", "100000", "--output-memory-bytes", "16384")
    os.mkfifo(written := tmp_path / "written")
    async with lives(tmp_path / "state", *options) as daemon:
        await daemon.start()
        process = await daemon.launch(
            f"exec {sys.executable} -c '{_FILLS_ITS_BOUND}' {written}",
            output_policy="drop_newest",
            stdin_mode="pipe",
        )
        with trio.fail_after(PATIENCE_SECONDS):
            while (await daemon.record(process["handle"]))["output_spilled_bytes"] < 40_000:
                pass
        # So that it finds both streams readable, and reads both before it spills.
        _stand_still(daemon.command.process.pid)
        os.kill(process["pid"], signal.SIGUSR1)
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.to_thread.run_sync(written.read_bytes, abandon_on_cancel=True)
        daemon.command.process.send_signal(signal.SIGCONT)
        with trio.fail_after(PATIENCE_SECONDS):
            while (await daemon.record(process["handle"]))["output_dropped_bytes"] < 1000:
                pass
        await daemon.restart()
        await _feed(daemon, process, b"x\n")
        record = await daemon.ended(process)
        assert (record["exit_code"], record["output_kept_bytes"]) == (3, 99_800)


async def test_a_start_without_descriptors_for_all_fails_and_costs_nothing(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        cats = [await daemon.launch("cat; exit 3", stdin_mode="pipe") for _ in range(20)]
        for limit in (40, 80):
            await daemon.kill()
            await daemon.spawn(under=("prlimit", f"--nofile={limit}:{limit}"))
            assert await daemon.command.exited() == 1
            assert daemon.command.log[-1]["level"] == "error"
            assert daemon.marked().issuperset(cat["pid"] for cat in cats)
        await daemon.start()
        for cat in cats:
            await _feed(daemon, cat, b"x", close=True)
            assert (await daemon.ended(cat))["exit_code"] == 3
            assert await daemon.raw(cat, "stdout") == b"x"


_WITH_REUSED_PID = """
import os, signal, subprocess, sys, trio
from pathlib import Path
from supervisor import *

config = SupervisorConfig(use_cgroups=False, state_dir=Path(sys.argv[1]), survives=True)
# As long as somebody is in its session, nobody can get its pid.
script = "setsid sleep 1000 & sleep 0.3; exit 3"
spec = ProcessSpec(command="sh", args=("-c", script), stdout_mode="discard", stderr_mode="discard")

async def first():
    async with open_supervisor(config) as supervisor:
        await supervisor.start(spec)
        os.kill(os.getpid(), signal.SIGKILL)

async def second(stranger):
    async with open_supervisor(config) as supervisor:
        (process,) = supervisor.processes()
        assert process.pid == stranger.pid
        with trio.fail_after(20):
            record = await process.wait()
            await process.kill()
        assert record.exit_code == 3, record
        assert record.members_killed == 1, record
        assert stranger.poll() is None
        commands = [Path(f"/proc/{entry}/cmdline").read_bytes()
                    for entry in os.listdir("/proc") if entry.isdecimal()]
        assert [c for c in commands if c.startswith(b"sleep")] == [b"sleep\\0001001\\0"], commands

if len(sys.argv) > 2:
    trio.run(first)
# This is init here, and reaps whatever it inherits.
assert subprocess.Popen([sys.executable, "-c", os.environ["PROGRAM"], sys.argv[1], "first"]).wait() == -9
while True:
    pid, status = os.waitpid(-1, 0)
    if os.waitstatus_to_exitcode(status) == 3:
        break
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(pid - 1))
stranger = subprocess.Popen(
    ["sh", "-c", "sleep 1001 & echo; wait"], start_new_session=True, stdout=subprocess.PIPE
)
stranger.stdout.read(1)
assert stranger.pid == pid
trio.run(second, stranger)
stranger.kill()
"""

_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


async def test_a_stranger_that_has_the_pid_by_now_is_left_alone(tmp_path: Path) -> None:
    """Without cgroups: the leader has ended and was reaped while there was no daemon."""
    with trio.fail_after(PATIENCE_SECONDS):
        await trio.run_process(
            [*_NAMESPACE, sys.executable, "-c", _WITH_REUSED_PID, str(tmp_path)],
            env={**os.environ, "PROGRAM": _WITH_REUSED_PID},
            cwd=_ROOT,
        )
