"""Every process call of the real Tensorlake SDK, through both of its clients."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import pwd
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import trio
from tensorlake.sandbox import (  # type: ignore[import-untyped]  # It ships no types.
    AsyncSandbox,
    CommandExitReason,
    OutputMode,
    ProcessStatus,
    ProcessUserSpec,
    Sandbox,
    SandboxConnectionError,
    StdinMode,
)

from supervisor import OutputLimits, SupervisorConfig

from .conftest import PATIENCE_SECONDS, Daemon
from .kernel import descriptors, running_with
from .sdk import (
    CALLS,
    FOLLOWS,
    OUTPUTS,
    TREE,
    Sdk,
    hasty,
    refused,
    texts,
    until_followed,
    until_written,
    while_running,
)

PIPE = StdinMode.PIPE
MANY = [str(number) for number in range(1, 100_001)]

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def sockets_are_closed(nothing_is_left_over: None) -> Iterator[None]:
    """The SDK's own threads close its sockets a moment after the daemon has hung up.

    The daemon is gone by then, so nothing that it left open is waited for.
    """
    before = descriptors()
    yield
    deadline = time.monotonic() + 10.0
    while descriptors() != before and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.fixture(params=[Sandbox, AsyncSandbox])
async def sdk(request: pytest.FixtureRequest, daemon: Daemon) -> Sdk:
    return Sdk(request.param(identifier="any", proxy_url=daemon.url, api_key="any"))


@pytest.fixture
def seconds() -> str:
    """An argument for sleep(1) that no other process has: a very long time."""
    return f"98765.{os.getpid()}{next(_numbers):03}"


# --- run ---


async def test_run_returns_both_outputs_and_the_exit_code(sdk: Sdk) -> None:
    script = ["-c", "echo out; echo err >&2; echo end; exit 3"]
    result = await sdk.run("sh", script, timeout=PATIENCE_SECONDS)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\nend", "err", 3)
    assert result.reason == CommandExitReason.EXITED
    assert not result.timed_out


async def test_run_takes_environment_and_working_directory(sdk: Sdk, tmp_path: Path) -> None:
    (directory := tmp_path / "nicht ASCII: é").mkdir()
    script, env = 'echo "$GREETING"; echo "$PATH"; pwd -P', {"GREETING": "grüße 😀 = x"}
    result = await sdk.run("sh", ["-c", script], env=env, working_dir=str(directory))
    assert result.stdout.split("\n") == [env["GREETING"], os.environ["PATH"], str(directory)]


async def test_run_becomes_the_user_in_every_form(sdk: Sdk) -> None:
    nobody = pwd.getpwnam("nobody")
    uid, gid = nobody.pw_uid, nobody.pw_gid
    # Real, effective, saved and filesystem ids, and supplementary groups.
    script = "grep -E '^(Uid|Gid):' /proc/self/status; id -G; echo $USER $HOME"
    login = f"nobody {nobody.pw_dir}"
    for user, ids, environment in (
        ("nobody", (uid, gid), login),
        (str(uid), (uid, gid), login),
        (f"{uid}:4321", (uid, 4321), login),
        ({"name": "nobody", "gid": 4321}, (uid, 4321), login),
        (ProcessUserSpec(name="nobody"), (uid, gid), login),
        (ProcessUserSpec(uid=54321), (54321, 54321), None),
    ):
        result = await sdk.run("sh", ["-c", script], user=user)
        uids, gids, groups, variables = result.stdout.split("\n")
        assert uids.split("\t")[1:] == [str(ids[0])] * 4, user
        assert gids.split("\t")[1:] == [str(ids[1])] * 4, user
        assert groups == str(ids[1]), user
        assert environment in (variables, None), user


async def test_run_reads_end_of_file_from_stdin(sdk: Sdk) -> None:
    result = await sdk.run("cat")
    assert (result.stdout, result.exit_code) == ("", 0)


async def test_run_reports_its_timeout_with_the_output_so_far(sdk: Sdk, seconds: str) -> None:
    result = await sdk.run("sh", ["-c", TREE, seconds], timeout=1.0)
    assert result.timed_out
    assert (result.stdout, result.exit_code) == ("ready", -signal.SIGKILL)
    assert running_with(seconds) == set()


async def test_run_reports_an_exit_by_signal(sdk: Sdk) -> None:
    result = await sdk.run("sh", ["-c", "echo last; kill -TERM $$"])
    assert (result.reason, result.exit_code) == (CommandExitReason.SIGNALED, -signal.SIGTERM)
    assert result.stdout == "last"


async def test_run_ends_with_its_leader_and_leaves_nothing(sdk: Sdk, seconds: str) -> None:
    result = await sdk.run("sh", ["-c", TREE.replace("wait", "exit 7"), seconds])
    assert (result.stdout, result.exit_code) == ("ready", 7)
    assert running_with(seconds) == set()


async def test_run_is_listed_and_can_be_killed(sdk: Sdk, tmp_path: Path) -> None:
    async with while_running(tmp_path / "fifo", sdk, "cat") as (process, _, results):
        assert (process.command, process.status) == ("cat", ProcessStatus.RUNNING)
        await sdk.kill_process(process.pid)
    assert [result.exit_code for result in results] == [-signal.SIGKILL]


async def test_twenty_runs_run_at_once(sdk: Sdk, daemon: Daemon, tmp_path: Path) -> None:
    numbers = [str(number) for number in range(20)]
    results: list[list[Any]] = []
    async with AsyncExitStack() as stack:
        for number in numbers:
            run = while_running(tmp_path / number, sdk, "cat")
            _, writer, result = await stack.enter_async_context(run)
            os.write(writer, number.encode())
            results.append(result)
        assert daemon.supervisor.running == 20  # Each waits for its end of file.
    assert [result.stdout for [result] in results] == numbers


async def test_twenty_runs_share_one_event_loop(daemon: Daemon) -> None:
    async def run_all() -> list[str]:
        sandbox = AsyncSandbox(identifier="any", proxy_url=daemon.url)
        runs = (sandbox.run("echo", [str(number)]) for number in range(20))
        return [result.stdout for result in await asyncio.gather(*runs)]

    with trio.fail_after(PATIENCE_SECONDS):
        outputs = await trio.to_thread.run_sync(asyncio.run, run_all(), abandon_on_cancel=True)
    assert outputs == [str(number) for number in range(20)]


async def test_run_loses_none_of_100_000_lines(sdk: Sdk) -> None:
    assert (await sdk.run("seq", ["100000"])).stdout.split("\n") == MANY


async def test_run_ends_when_its_client_gives_up(sdk: Sdk, daemon: Daemon, seconds: str) -> None:
    with pytest.raises(SandboxConnectionError):
        await hasty(sdk, daemon.url).run("sh", ["-c", TREE, seconds])
    [process] = daemon.supervisor.processes()
    with trio.fail_after(PATIENCE_SECONDS):
        record = await process.wait()
    assert (record.status, record.signal) == ("signaled", signal.SIGKILL)
    assert running_with(seconds) == set()


@pytest.mark.parametrize("config", [SupervisorConfig(output=OutputLimits(unspilled_bytes=1))])
async def test_run_goes_on_after_a_gap(sdk: Sdk, daemon: Daemon, tmp_path: Path) -> None:
    def let_it_end(writer: int, pid: int) -> None:
        """The event loop waits too, so that all output is there before any is read."""
        os.write(writer, b"\n")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    fifo, script = tmp_path / "fifo", 'read x <"$0"; echo lost; echo kept >&2; exit 3'
    async with while_running(fifo, sdk, "sh", "-c", script) as (process, writer, results):
        let_it_end(writer, process.pid)
    [result] = results
    assert (result.stdout, result.stderr, result.exit_code) == ("", "kept", 3)
    assert daemon.supervisor.by_pid(process.pid).log.dropped_bytes == len("lost\n")


# --- start, get, list ---


@pytest.mark.parametrize("call", ["run", "start_process"])
async def test_a_failed_start_says_why_and_starts_nothing(
    sdk: Sdk, daemon: Daemon, call: str
) -> None:
    await refused("COMMAND_NOT_FOUND", 400, sdk, call, "no-such-command")
    await refused("NOT_EXECUTABLE", 400, sdk, call, "/etc/passwd")
    await refused("INVALID_SPEC", 400, sdk, call, "")
    await refused("NUL_BYTE", 400, sdk, call, "echo", ["a\0b"])
    await refused("WORKING_DIR_NOT_FOUND", 400, sdk, call, "true", working_dir="/nowhere")
    await refused("USER_NOT_FOUND", 400, sdk, call, "true", user="no-such-user")
    assert daemon.supervisor.total == 0


async def test_start_returns_the_running_process(sdk: Sdk, seconds: str) -> None:
    started = await sdk.start_process("sleep", [seconds])
    assert running_with(seconds) == {started.pid}
    assert (started.command, started.args) == ("sleep", [seconds])
    assert started.status == ProcessStatus.RUNNING
    assert (started.exit_code, started.signal, started.ended_at) == (None, None, None)
    assert isinstance(started.handle, int)
    assert not started.stdin_writable
    assert (await sdk.get_process(started.pid)).value == started.value
    assert (await sdk.get_process(str(started.pid))).value == started.value


async def test_start_takes_environment_directory_and_user(sdk: Sdk, somewhere: Path) -> None:
    script, env = 'echo "$X"; pwd -P; id -un', {"X": "ä"}
    started = await sdk.start_process(
        "sh", ["-c", script], env=env, working_dir=str(somewhere), user="nobody"
    )
    assert texts(await sdk.follow_stdout(started.pid)) == ["ä", str(somewhere), "nobody"]


async def test_start_can_discard_either_output(sdk: Sdk) -> None:
    for mode, kept in (("stdout_mode", "err"), ("stderr_mode", "out")):
        modes = {mode: OutputMode.DISCARD}
        started = await sdk.start_process("sh", ["-c", "echo out; echo err >&2"], **modes)
        assert texts(await sdk.follow_output(started.pid)) == [kept]


async def test_list_has_running_and_finished_processes(sdk: Sdk, seconds: str) -> None:
    assert list(await sdk.list_processes()) == []
    first = await sdk.start_process("sleep", [seconds])
    second = await sdk.start_process("sh", ["-c", "exit 4"])
    await sdk.follow_output(second.pid)
    listed = {process.handle: process for process in await sdk.list_processes()}
    assert listed.keys() == {first.handle, second.handle}
    assert listed[first.handle] == first.value
    ended = listed[second.handle]
    assert (ended.status, ended.exit_code, ended.signal) == (ProcessStatus.EXITED, 4, None)
    assert ended.started_at <= ended.ended_at


async def test_health_and_info_count_the_processes(sdk: Sdk, seconds: str) -> None:
    assert (await sdk.health()).healthy is True
    await sdk.run("true")
    await sdk.start_process("sleep", [seconds])
    info = await sdk.daemon_info()
    assert (info.running_processes, info.total_processes) == (1, 2)
    assert info.version == version("creche")
    assert 0 <= info.uptime_secs < PATIENCE_SECONDS


async def test_connect_needs_no_other_server(sdk: Sdk, daemon: Daemon) -> None:
    connected = Sdk(await sdk.connect("any", proxy_url=daemon.url))
    assert (await connected.run("echo", ["hi"])).stdout == "hi"


async def test_every_call_for_an_unknown_process_is_not_found(sdk: Sdk) -> None:
    # The first one is there, but not the daemon's to touch.
    for process in (os.getpid(), 2**31 - 1, "web é 1"):
        for call, args in CALLS.items():
            await refused("NOT_FOUND", 404, sdk, call, process, *args)


# --- signal and kill ---


async def test_a_signal_reaches_the_whole_group(sdk: Sdk, daemon: Daemon, seconds: str) -> None:
    child = f"trap 'echo child; exit' USR1; sleep {seconds} & echo ready; wait"
    script = 'trap "echo leader; wait; exit 5" USR1; sh -c "$0" & echo ready; wait'
    pid = (await sdk.start_process("sh", ["-c", script, child])).pid
    await until_written(daemon.supervisor.by_pid(pid), "ready", "ready")
    assert (await sdk.send_signal(pid, signal.SIGUSR1)).success is True
    lines = texts(await sdk.follow_output(pid))
    assert sorted(lines) == ["child", "leader", "ready", "ready"]
    ended = await sdk.get_process(pid)
    assert (ended.status, ended.exit_code) == (ProcessStatus.EXITED, 5)


async def test_a_stopped_process_runs_and_can_be_continued(sdk: Sdk) -> None:
    script = "trap 'echo continued; exit' CONT; kill -STOP $$; read x"
    pid = (await sdk.start_process("sh", ["-c", script], stdin_mode=PIPE)).pid
    flags = os.WSTOPPED | os.WNOWAIT
    with trio.fail_after(PATIENCE_SECONDS):
        await trio.to_thread.run_sync(os.waitid, os.P_PID, pid, flags, abandon_on_cancel=True)
    assert (await sdk.get_process(pid)).status == ProcessStatus.RUNNING
    await sdk.send_signal(pid, signal.SIGCONT)
    assert texts(await sdk.follow_output(pid)) == ["continued"]


async def test_a_signal_that_cannot_be_sent_is_refused(sdk: Sdk, seconds: str) -> None:
    pid = (await sdk.start_process("sleep", [seconds])).pid
    await refused("INVALID_SIGNAL", 400, sdk, "send_signal", pid, 4000)
    await sdk.kill_process(pid)
    await refused("NOT_RUNNING", 400, sdk, "send_signal", pid, signal.SIGTERM)


@pytest.mark.parametrize("kill", [("kill_process",), ("send_signal", signal.SIGKILL)], ids=str)
async def test_kill_leaves_nothing_of_the_tree(
    sdk: Sdk, daemon: Daemon, seconds: str, kill: tuple[str, *tuple[object, ...]]
) -> None:
    pid = (await sdk.start_process("sh", ["-c", TREE, seconds])).pid
    await until_written(daemon.supervisor.by_pid(pid), "ready")
    with trio.fail_after(PATIENCE_SECONDS):
        while len(running_with(seconds)) < 4:
            await trio.lowlevel.checkpoint()  # "ready" may be there before the last has forked.
    call, *args = kill
    await getattr(sdk, call)(pid, *args)
    assert texts(await sdk.follow_output(pid)) == ["ready"]
    assert running_with(seconds) == set()
    ended = await sdk.get_process(pid)
    assert (ended.status, ended.signal) == (ProcessStatus.SIGNALED, signal.SIGKILL)
    assert ended.exit_code is None


async def test_kill_of_a_finished_process_changes_nothing(sdk: Sdk) -> None:
    pid = (await sdk.start_process("sh", ["-c", "exit 6"])).pid
    await sdk.follow_output(pid)
    ended = await sdk.get_process(pid)
    await sdk.kill_process(pid)
    assert (await sdk.get_process(pid)).value == ended.value
    assert (ended.status, ended.exit_code) == (ProcessStatus.EXITED, 6)


# --- stdin ---


async def test_stdin_is_echoed_until_it_is_closed(sdk: Sdk, daemon: Daemon) -> None:
    started = await sdk.start_process("cat", stdin_mode=PIPE)
    pid = started.pid
    assert started.stdin_writable
    await sdk.write_stdin(pid, b"first\nsec")
    await until_written(daemon.supervisor.by_pid(pid), "first")
    await sdk.write_stdin(pid, b"ond")
    await sdk.write_stdin(pid, b"")
    await sdk.close_stdin(pid)
    assert texts(await sdk.follow_stdout(pid)) == ["first", "second"]
    assert not (await sdk.get_process(pid)).stdin_writable
    await refused("STDIN_NOT_WRITABLE", 400, sdk, "write_stdin", pid, b"x")
    await sdk.close_stdin(pid)  # Once more is fine.


async def test_closed_stdin_takes_nothing(sdk: Sdk, seconds: str) -> None:
    pid = (await sdk.start_process("sleep", [seconds])).pid
    await refused("STDIN_NOT_WRITABLE", 400, sdk, "write_stdin", pid, b"x")
    await refused("STDIN_NOT_WRITABLE", 400, sdk, "close_stdin", pid)


async def test_a_large_stdin_arrives_whole(sdk: Sdk) -> None:
    data = os.urandom(5_000_000)
    pid = (await sdk.start_process("sha256sum", stdin_mode=PIPE)).pid
    await sdk.write_stdin(pid, data)
    await sdk.close_stdin(pid)
    assert texts(await sdk.follow_stdout(pid)) == [f"{hashlib.sha256(data).hexdigest()}  -"]


async def test_a_write_that_nobody_reads_ends_with_the_process(sdk: Sdk, seconds: str) -> None:
    pid = (await sdk.start_process("sleep", [seconds], stdin_mode=PIPE)).pid
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def write() -> None:
            data = bytes(1_000_000)
            await refused("STDIN_NOT_WRITABLE", 400, sdk, "write_stdin", pid, data)

        assert (await sdk.get_process(pid)).stdin_writable
        await sdk.kill_process(pid)


# --- outputs and follows ---


async def test_the_outputs_are_what_was_captured_so_far(sdk: Sdk, daemon: Daemon) -> None:
    script = 'echo out; echo err >&2; printf half; read x; echo " and half"'
    pid = (await sdk.start_process("sh", ["-c", script], stdin_mode=PIPE)).pid
    async for chunk in daemon.supervisor.by_pid(pid).output(stream="stdout"):
        if chunk.data.endswith(b"half"):
            break

    async def outputs() -> list[list[str]]:
        answers = [await getattr(sdk, call)(pid) for call in OUTPUTS]
        assert [(answer.pid, answer.line_count) for answer in answers] == [
            (pid, len(answer.lines)) for answer in answers
        ]
        return [answer.lines for answer in answers]

    assert await outputs() == [["out", "half"], ["err"], ["out", "err", "half"]]
    await sdk.close_stdin(pid)
    await sdk.follow_output(pid)
    whole = "half and half"
    assert await outputs() == [["out", whole], ["err"], ["out", "err", whole]]


async def test_follows_replay_then_go_live_and_replay_after_the_end(
    sdk: Sdk, daemon: Daemon
) -> None:
    script = 'while read line; do echo "$line"; echo "$line" >&2; done'
    started = await sdk.start_process("sh", ["-c", script], stdin_mode=PIPE)
    pid, process = started.pid, daemon.supervisor.by_pid(started.pid)
    followed: dict[str, list[Any]] = {}

    async def follow(call: str) -> None:
        followed[call] = list(await getattr(sdk, call)(pid))
        # By the end of its output the end of the process can be seen.
        assert (await sdk.get_process(pid)).status == ProcessStatus.EXITED

    await sdk.write_stdin(pid, b"early\n")
    await until_written(process, "early", "early")
    async with trio.open_nursery() as nursery:
        for call in FOLLOWS:
            nursery.start_soon(follow, call)
        await until_followed(process, len(FOLLOWS))
        await sdk.write_stdin(pid, b"live\n")
        await until_written(process, "live", "live")
        await until_followed(process, len(FOLLOWS))
        assert not followed
        await sdk.close_stdin(pid)
    for call in ("follow_stdout", "follow_stderr"):
        events = followed[call]
        assert [(event.line, event.stream) for event in events] == [("early", None), ("live", None)]
    events = followed["follow_output"]
    assert [(event.line, event.stream) for event in events] == [
        (line, stream) for line in ("early", "live") for stream in ("stdout", "stderr")
    ]
    times = [started.started_at, *(event.timestamp for event in events)]
    assert times == sorted(times)
    for call in FOLLOWS:
        assert list(await getattr(sdk, call)(pid)) == followed[call]


async def test_a_follow_that_is_given_up_leaves_the_process_alone(
    sdk: Sdk, daemon: Daemon, seconds: str
) -> None:
    started = await sdk.start_process("sleep", [seconds])
    with pytest.raises(SandboxConnectionError):
        await hasty(sdk, daemon.url).follow_output(started.pid)
    assert running_with(seconds) == {started.pid}


async def test_follow_loses_none_of_100_000_lines(sdk: Sdk) -> None:
    pid = (await sdk.start_process("seq", ["100000"])).pid
    assert texts(await sdk.follow_output(pid)) == MANY
    assert (await sdk.get_stdout(pid)).lines == MANY


@pytest.mark.parametrize("config", [SupervisorConfig(output=OutputLimits(unspilled_bytes=100_000))])
async def test_follow_goes_on_after_a_gap(sdk: Sdk, daemon: Daemon) -> None:
    pid = (await sdk.start_process("seq", ["100000"])).pid
    with trio.fail_after(PATIENCE_SECONDS):
        await daemon.supervisor.by_pid(pid).wait()
    lines = texts(await sdk.follow_stdout(pid))
    assert 1 < len(lines) < len(MANY)
    assert lines[1:] == MANY[1 - len(lines) :]  # The gap may have cut the first line.
    frames = await daemon.client.get(f"/processes/{pid}/stdout/follow")
    assert frames.text.partition("\n")[2].startswith("event: gap\n")


# --- bytes and characters ---


async def test_a_character_that_comes_in_two_reads_is_whole(
    sdk: Sdk, daemon: Daemon, tmp_path: Path
) -> None:
    script = r"""printf 'a\342\202'; read x <"$0"; printf '\254b\n'"""
    async with while_running(tmp_path / "fifo", sdk, "sh", "-c", script) as (process, _, results):
        async for chunk in daemon.supervisor.by_pid(process.pid).output():
            assert chunk.data == b"a\xe2\x82"
            break
    assert [result.stdout for result in results] == ["a€b"]
    assert (await sdk.get_stdout(process.pid)).lines == ["a€b"]
    assert texts(await sdk.follow_stdout(process.pid)) == ["a€b"]


async def test_binary_output_comes_with_replacement_characters(sdk: Sdk) -> None:
    script = r"printf '\377\000\033\n\303(\n\355\240\200\n\342\202'"
    lines = ["\ufffd\0\x1b", "\ufffd(", "\ufffd\ufffd\ufffd", "\ufffd"]
    assert (await sdk.run("sh", ["-c", script])).stdout == "\n".join(lines)
    [process] = await sdk.list_processes()
    assert (await sdk.get_output(process.pid)).lines == lines
    assert texts(await sdk.follow_output(process.pid)) == lines


async def test_only_a_newline_ends_a_line(sdk: Sdk) -> None:
    text = "a\r\n\nb\rc\x0c\x85d\u2028e\r\r\n\n\nno end"
    lines = ["a", "", "b\rc\x0c\x85d\u2028e\r", "", "", "no end"]
    assert (await sdk.run("printf", ["%s", text])).stdout == "\n".join(lines)
    [process] = await sdk.list_processes()
    assert (await sdk.get_stdout(process.pid)).lines == lines
    assert texts(await sdk.follow_stdout(process.pid)) == lines
