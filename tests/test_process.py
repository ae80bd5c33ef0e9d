"""What a process object promises, from its start to after its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from supervisor import (
    InvalidSignal,
    Line,
    OutputLimits,
    Process,
    ProcessNotRunning,
    ProcessSpec,
    StdinNotWritable,
    Supervisor,
    SupervisorConfig,
    open_supervisor,
)

from .conftest import PATIENCE_SECONDS
from .kernel import running_with


def sh(script: str, **options: object) -> ProcessSpec:
    return ProcessSpec(command="sh", args=("-c", script), **options)  # type: ignore[arg-type]


@pytest.fixture(params=["cgroups", "sessions", "parked"])
def config(request: pytest.FixtureRequest) -> SupervisorConfig:
    """Everything here holds with cgroups and without, and with parked launchers."""
    return SupervisorConfig(
        use_cgroups=request.param != "sessions",
        parked_launchers=4 if request.param == "parked" else 0,
    )


async def first_line(process: Process) -> str:
    with trio.fail_after(PATIENCE_SECONDS):
        async for item in process.lines():
            assert isinstance(item, Line)
            return item.text
    raise AssertionError("no output")


async def test_a_process_tells_what_it_is(supervisor: Supervisor) -> None:
    before = time.time_ns() // 1_000_000
    process = await supervisor.start(sh("read line; exit 3", stdin_mode="pipe"))
    assert process.status == "running"
    assert (process.exit_code, process.signal, process.ended_at) == (None, None, None)
    assert process.reason is None
    assert process.stdin_writable
    assert (process.command, process.args) == ("sh", ("-c", "read line; exit 3"))
    assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid
    await process.write_stdin(b"go\n")
    record = await process.wait()
    after = time.time_ns() // 1_000_000
    assert record == process.record
    assert (record.status, record.exit_code, record.signal) == ("exited", 3, None)
    assert record.ended_at is not None
    assert before <= record.started_at <= record.ended_at <= after
    assert record.duration_us is not None
    assert 0 < record.duration_us <= (after - before + 1) * 1000
    assert not record.stdin_writable


async def test_every_exit_code_is_reported(supervisor: Supervisor) -> None:
    for code in (0, 1, 2, 126, 127, 128, 137, 255):
        result = await supervisor.run(sh(f"exit {code}"))
        assert (result.reason, result.exit_code, result.signal) == ("exited", code, None)


async def test_every_deadly_signal_is_reported(supervisor: Supervisor) -> None:
    for signum in (1, 2, 6, 9, 11, 15, 34, 64):
        result = await supervisor.run(sh(f"ulimit -c 0; kill -{signum} $$"))
        assert (result.reason, result.exit_code, result.signal) == ("signaled", None, signum)


async def test_wait_after_the_end_returns_at_once(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("exit 4"))
    assert await process.wait() == await process.wait()


async def test_any_number_of_tasks_may_wait(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("read line; exit 5", stdin_mode="pipe"))
    codes: list[int | None] = []

    async def wait() -> None:
        codes.append((await process.wait()).exit_code)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await process.close_stdin()
    assert codes == [5] * 10


# --- output ---


async def test_both_streams_come_in_arrival_order(supervisor: Supervisor) -> None:
    for first, second in (("", ">&2"), (">&2", "")):
        for _ in range(100):
            process = await supervisor.start(sh(f"echo a {first}; echo b {second}"))
            await process.wait()
            lines = [item async for item in process.lines()]
            assert [line.text for line in lines if isinstance(line, Line)] == ["a", "b"]


async def test_a_discarded_stream_is_not_captured(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("echo a; echo b >&2", stdout_mode="discard"))
    await process.wait()
    assert (await process.log.read_all("stdout"), await process.log.read_all("stderr")) == (
        b"",
        b"b\n",
    )


async def test_the_output_can_be_read_live_again_and_from_any_point(
    supervisor: Supervisor,
) -> None:
    process = await supervisor.start(sh("printf 12345; read line; printf 6789", stdin_mode="pipe"))
    live = process.output()
    with trio.fail_after(PATIENCE_SECONDS):
        async for chunk in live:
            assert chunk.data == b"12345"
            break
        assert live.position == 5
        await process.close_stdin()
        assert b"".join([chunk.data async for chunk in live]) == b"6789"
    for position in range(10):
        rest = b"".join([chunk.data async for chunk in process.output(position)])
        assert rest == b"123456789"[position:]


async def test_the_status_is_final_when_the_output_ends(supervisor: Supervisor) -> None:
    for _ in range(50):
        process = await supervisor.start(sh("echo x; exit 9"))
        async for _line in process.lines():
            pass
        assert process.exit_code == 9


async def test_wait_means_that_the_output_is_complete(supervisor: Supervisor) -> None:
    for _ in range(20):
        process = await supervisor.start(
            sh("head -c 300000 /dev/zero; head -c 70000 /dev/zero >&2")
        )
        await process.wait()
        assert len(await process.log.read_all("stdout")) == 300_000
        assert len(await process.log.read_all("stderr")) == 70_000


# --- descendants ---


async def test_a_background_child_does_not_hold_up_the_end_and_does_not_survive_it(
    supervisor: Supervisor,
) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    with trio.fail_after(10):
        result = await supervisor.run(sh(f"sleep {unique} & echo hi"))
    assert (result.exit_code, result.stdout) == (0, b"hi\n")
    assert running_with(unique) == set()


@pytest.mark.parametrize(
    "escape",
    [
        "setsid sleep {} &",
        "setsid setsid sleep {} >/dev/null 2>&1 &",
        "(setsid sh -c 'sleep {} >/dev/null 2>&1 & exit' &) ; true",
    ],
)
async def test_whoever_left_the_session_is_killed_too(supervisor: Supervisor, escape: str) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    await supervisor.run(sh(escape.format(unique)))
    assert running_with(unique) == set()


async def test_a_kill_also_finds_who_left_the_session_and_its_environment(
    supervisor: Supervisor,
) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    process = await supervisor.start(
        sh(
            f"setsid env -i PATH=$PATH sh -c 'echo ready; exec sleep {unique}' & read wait",
            stdin_mode="pipe",
        )
    )
    assert await first_line(process) == "ready"
    await process.kill()
    assert running_with(unique) == set()


async def test_descendants_may_finish_what_they_are_writing() -> None:
    # A shell does not wait for its process substitutions.
    async with open_supervisor(SupervisorConfig(drain_seconds=PATIENCE_SECONDS)) as supervisor:
        for _ in range(30):
            result = await supervisor.run(
                ProcessSpec(command="bash", args=("-c", "echo through > >(cat)"))
            )
            assert result.stdout == b"through\n"


async def test_a_descendant_that_never_stops_writing_does_not_hold_up_the_end(
    supervisor: Supervisor,
) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        result = await supervisor.run(sh("yes & exit 6"))
    assert result.exit_code == 6


async def test_kept_descendants_go_on_until_they_are_killed(supervisor: Supervisor) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    process = await supervisor.start(sh(f"sleep {unique} & echo hi", descendants="keep"))
    record = await process.wait()
    assert (record.exit_code, record.members_killed) == (0, 0)
    assert await process.log.read_all("stdout") == b"hi\n"
    assert len(running_with(unique)) == 1
    assert await process.kill() == 1
    assert running_with(unique) == set()
    assert await process.kill() == 0


async def test_kept_descendants_are_not_stopped_by_what_they_write(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # More than a pipe holds, and after it a sign of life.
    script = f"(head -c 300000 /dev/zero; echo written > {fifo}) & exit 3"
    process = await supervisor.start(sh(script, descendants="keep"))
    assert (await process.wait()).exit_code == 3
    with trio.fail_after(PATIENCE_SECONDS):
        assert await trio.Path(fifo).read_text() == "written\n"


async def test_kept_descendants_are_killed_also_while_the_last_output_is_spilled(
    tmp_path: Path,
) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    # Just too much for memory, in one last turn.
    script = f"sleep {unique} >/dev/null 2>&1 & exec head -c 65536 /dev/zero"
    async with open_supervisor(SupervisorConfig(state_dir=tmp_path)) as supervisor:
        for _ in range(5):
            process = await supervisor.start(sh(script, descendants="keep"))
            await process.wait()
            assert await process.kill() == 1
            assert running_with(unique) == set()
        process = await supervisor.start(sh(script, descendants="keep"))
        with trio.fail_after(PATIENCE_SECONDS):
            await process.wait()
            await supervisor.stop()
            assert running_with(unique) == set()


async def test_a_writer_does_not_wait_for_kept_descendants(supervisor: Supervisor) -> None:
    script = "exec 3<&0; sleep 1000 <&3 >/dev/null 2>&1 & exit 3"
    with trio.fail_after(PATIENCE_SECONDS):
        result = await supervisor.run(sh(script, descendants="keep"), input=b"x" * 1_000_000)
        assert result.exit_code == 3
        process = await supervisor.start(sh(script, descendants="keep", stdin_mode="pipe"))
        with pytest.raises(StdinNotWritable):
            await process.write_stdin(b"x" * 1_000_000)
    assert not process.stdin_writable


async def test_kept_descendants_end_with_the_supervisor() -> None:
    unique = f"30.{uuid4().int % 10**9}"
    async with open_supervisor() as supervisor:
        await supervisor.run(sh(f"sleep {unique} & :", descendants="keep"))
        assert len(running_with(unique)) == 1
    assert running_with(unique) == set()


async def test_an_exit_that_its_tracer_has_not_seen_yet_keeps_nobody_busy(
    supervisor: Supervisor,
) -> None:
    process = await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
    arguments = [sys.executable, "-c", _TRACER, str(process.pid)]
    tracer = await trio.lowlevel.open_process(arguments, stdin=-1, stdout=-1)
    assert tracer.stdin is not None
    assert tracer.stdout is not None
    async with tracer.stdin, tracer.stdout:
        with trio.fail_after(PATIENCE_SECONDS):
            assert await tracer.stdout.receive_some() == b"0\n"
            os.kill(process.pid, signal.SIGKILL)
            pidfd = os.pidfd_open(process.pid)
            await trio.lowlevel.wait_readable(pidfd)
            os.close(pidfd)
            await wait_all_tasks_blocked(0.002)
            assert process.status == "running"
            await tracer.stdin.aclose()
            assert (await process.wait()).signal == signal.SIGKILL
            await tracer.wait()


# Seizes it, and never waits for it.
_TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.write(1, b"%d\\n" % libc.ptrace(0x4206, int(sys.argv[1]), None, None))
sys.stdin.read()
"""


async def test_a_stranger_is_never_killed(supervisor: Supervisor) -> None:
    # Same parent, same user, born while the other lives.
    unique = f"30.{uuid4().int % 10**9}"
    process = await supervisor.start(sh("read line", stdin_mode="pipe"))
    bystander = await supervisor.start(ProcessSpec(command="sleep", args=(unique,)))
    await process.kill()
    assert bystander.status == "running"
    assert running_with(unique) == {bystander.pid}


# --- signals, kill, stop, timeout ---


async def test_a_signal_reaches_the_group(supervisor: Supervisor) -> None:
    process = await supervisor.start(
        sh(
            "trap 'echo parent; exit 0' USR1; sh -c 'trap \"echo child; exit 0\" USR1;"
            " echo ready; while :; do sleep 0.01; done' & wait; wait"
        )
    )
    assert await first_line(process) == "ready"
    process.send_signal(signal.SIGUSR1)
    with trio.fail_after(PATIENCE_SECONDS):
        await process.wait()
    assert set((await process.log.read_all("stdout")).split()) == {b"ready", b"parent", b"child"}


async def test_a_wrong_signal_is_refused(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("read line", stdin_mode="pipe"))
    for signum in (0, -1, 65, 1000, 2**40):
        with pytest.raises(InvalidSignal):
            process.send_signal(signum)
    assert process.status == "running"


async def test_an_ended_process_takes_no_signal(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("exit 0"))
    await process.wait()
    with pytest.raises(ProcessNotRunning):
        process.send_signal(signal.SIGTERM)
    await process.kill()
    assert process.status == "exited"


async def test_kill_tells_how_many_it_killed(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("sleep 1000 & setsid sleep 1000 & echo ready; wait"))
    assert await first_line(process) == "ready"
    assert await process.kill() == 3
    assert process.record.members_killed == 2
    assert await process.kill() == 0


async def test_kill_ends_stopped_and_deaf_processes(supervisor: Supervisor) -> None:
    for script in (
        "trap '' TERM INT HUP; echo ready; while :; do sleep 1; done",
        "echo ready; kill -STOP $$",
    ):
        process = await supervisor.start(sh(script))
        assert await first_line(process) == "ready"
        with trio.fail_after(PATIENCE_SECONDS):
            await process.kill()
        assert (process.status, process.signal) == ("signaled", signal.SIGKILL)


async def test_stop_lets_a_process_clean_up(supervisor: Supervisor) -> None:
    process = await supervisor.start(
        sh("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done")
    )
    assert await first_line(process) == "ready"
    with trio.fail_after(PATIENCE_SECONDS):
        await process.stop(PATIENCE_SECONDS)
    assert process.exit_code == 0
    assert await process.log.read_all("stdout") == b"ready\nbye\n"


async def test_stop_kills_who_does_not_listen(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("trap '' TERM; echo ready; while :; do sleep 1; done"))
    assert await first_line(process) == "ready"
    await process.stop(0.05)
    assert process.signal == signal.SIGKILL


async def test_a_timeout_kills_the_tree_and_keeps_the_output(supervisor: Supervisor) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    result = await supervisor.run(sh(f"echo early; sleep {unique} & sleep {unique}"), timeout=0.3)
    assert (result.reason, result.signal, result.stdout) == ("timed_out", 9, b"early\n")
    assert result.record.status == "signaled"
    assert running_with(unique) == set()


async def test_a_timeout_that_is_not_reached_changes_nothing(supervisor: Supervisor) -> None:
    result = await supervisor.run(sh("exit 3"), timeout=PATIENCE_SECONDS)
    assert (result.reason, result.exit_code) == ("exited", 3)


async def test_a_cancelled_run_kills_the_tree(supervisor: Supervisor) -> None:
    unique = f"30.{uuid4().int % 10**9}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run, sh(f"sleep {unique} & echo ready; sleep {unique}; :"))
        while not supervisor.processes():
            await trio.lowlevel.checkpoint()
        assert await first_line(supervisor.processes()[0]) == "ready"
        nursery.cancel_scope.cancel()
    assert running_with(unique) == set()
    assert supervisor.running == 0


# --- stdin ---


async def test_stdin_reaches_the_process_and_its_end_too(supervisor: Supervisor) -> None:
    process = await supervisor.start(ProcessSpec(command="cat", stdin_mode="pipe"))
    for data in (b"", b"one\n", bytes(range(256))):
        await process.write_stdin(data)
    await process.close_stdin()
    await process.close_stdin()
    assert not process.stdin_writable
    with pytest.raises(StdinNotWritable):
        await process.write_stdin(b"late")
    await process.wait()
    assert await process.log.read_all("stdout") == b"one\n" + bytes(range(256))
    await process.close_stdin()


async def test_closed_stdin_is_at_its_end(supervisor: Supervisor) -> None:
    process = await supervisor.start(ProcessSpec(command="cat"))
    assert (await process.wait()).exit_code == 0
    for call in (process.write_stdin(b"x"), process.close_stdin()):
        with pytest.raises(StdinNotWritable):
            await call


async def test_a_full_pipe_holds_up_its_writer_alone(supervisor: Supervisor) -> None:
    process = await supervisor.start(
        ProcessSpec(command="sleep", args=("1000",), stdin_mode="pipe")
    )
    refused = []

    async def write() -> None:
        with pytest.raises(StdinNotWritable) as caught:
            await process.write_stdin(b"x" * 1_000_000)
        refused.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(write)
        await wait_all_tasks_blocked()
        assert (await supervisor.run(sh("echo other"))).stdout == b"other\n"
        assert refused == []
        with trio.fail_after(PATIENCE_SECONDS):
            await process.kill()
    assert len(refused) == 3


async def test_writing_to_who_closed_its_stdin_is_refused(supervisor: Supervisor) -> None:
    process = await supervisor.start(sh("exec <&-; echo closed; sleep 1000", stdin_mode="pipe"))
    assert await first_line(process) == "closed"

    async def write_on() -> None:
        # A launcher that is being spawned just now has a copy of the other end
        # for a moment, between fork and exec: then a byte is still taken.
        while True:
            await process.write_stdin(b"x")

    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(StdinNotWritable):
        await write_on()
    assert not process.stdin_writable
    assert process.status == "running"


async def test_a_run_may_be_given_its_input(supervisor: Supervisor) -> None:
    data = bytes(range(256)) * 4000
    result = await supervisor.run(ProcessSpec(command="cat"), input=data)
    assert result.stdout == data
    # Nobody could feed it, so it does not wait.
    result = await supervisor.run(ProcessSpec(command="cat", stdin_mode="pipe"))
    assert (result.exit_code, result.stdout) == (0, b"")
    # Nor is it an error to leave something unread.
    assert (await supervisor.run(sh("exit 3"), input=data)).exit_code == 3


async def test_concurrent_writes_follow_each_other_whole(supervisor: Supervisor) -> None:
    process = await supervisor.start(ProcessSpec(command="cat", stdin_mode="pipe"))
    async with trio.open_nursery() as nursery:
        for letter in b"abcde":
            nursery.start_soon(process.write_stdin, bytes([letter]) * 200_000)
    await process.close_stdin()
    await process.wait()
    written = await process.log.read_all("stdout")
    assert len(written) == 1_000_000
    assert sum(a != b for a, b in pairwise(written)) == 4


# --- failures of our own ---


class TestAFailureInsideOneProcess:
    """A defect in one process's tasks ends that process and nothing else."""

    async def test_disturbs_no_other(
        self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bystander = await supervisor.start(sh("read line; echo fine", stdin_mode="pipe"))
        process = await supervisor.start(sh("read line; echo x; sleep 1000", stdin_mode="pipe"))
        monkeypatch.setattr(type(process.log), "append", _fail)
        await process.write_stdin(b"\n")
        with trio.fail_after(PATIENCE_SECONDS):
            await process.wait()
        monkeypatch.undo()
        assert process.signal == signal.SIGKILL
        await bystander.write_stdin(b"\n")
        await bystander.wait()
        assert await bystander.log.read_all("stdout") == b"fine\n"


def _fail(*_: object) -> None:
    raise RuntimeError("a defect")


class TestOutputLimit:
    """Past the limit the oldest bytes go, and the record says how many."""

    @pytest.fixture
    def config(self) -> SupervisorConfig:
        # More than one read of a flood: the newest chunk always stays.
        return SupervisorConfig(output=OutputLimits(unspilled_bytes=400_000))

    async def test_keeps_the_newest_and_counts_the_rest(self, supervisor: Supervisor) -> None:
        result = await supervisor.run(sh("seq 1 200000"))
        everything = b"".join(b"%d\n" % number for number in range(1, 200_001))
        assert 100_000 < len(result.stdout) <= 400_000
        assert everything.endswith(result.stdout)
        assert result.record.output_kept_bytes == len(result.stdout)
        assert result.record.output_dropped_bytes == len(everything) - len(result.stdout)

    @pytest.mark.parametrize("is_default", [False, True])
    async def test_a_run_waits_for_no_reader(self, is_default: bool) -> None:
        limits = OutputLimits(
            unspilled_bytes=400_000, policy="block" if is_default else "drop_newest"
        )
        spec = sh("cat; seq 1 200000", output_policy=None if is_default else "block")
        async with open_supervisor(SupervisorConfig(output=limits)) as supervisor:
            with trio.fail_after(PATIENCE_SECONDS):
                result = await supervisor.run(spec, input=bytes(2_000_000))
        assert result.record.exit_code == 0
        assert 100_000 < len(result.stdout) <= 400_000
        assert result.stdout.endswith(b"\n199999\n200000\n")
