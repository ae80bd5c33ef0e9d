"""Out of descriptors: who asks is told, who is there is served, everything ends, and at once all is well again."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import secrets
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from supervisor import OutOfDescriptors, ProcessSpec, SupervisorConfig, open_supervisor
from supervisor.cgroups import CgroupEvents, CgroupTree, units_name
from supervisor.cgroups.mounts import find_own_cgroups

from ..conftest import PATIENCE_SECONDS
from ..injection import injecting
from ..kernel import children, running_with
from ..spilling import without_descriptors
from ..test_server import Command, serving
from ..wire import connect
from .bystander import ended, open_descriptors, unharmed
from .lives import lives

_LIMIT = 128
_SILENT = 500
_PARKED = 4
_MEASURED_SECONDS = 0.5
# An accept loop that spins takes all of a processor.
_IDLE_SHARE = 0.25
_TAKEN_OVER = 30


def _limited(limit: int = _LIMIT) -> tuple[str, ...]:
    return ("prlimit", f"--nofile={limit}:{limit}")


def _silent_connections(url: str, count: int, stack: ExitStack) -> None:
    """Connections that never ask for anything."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    for _ in range(count):
        sock = stack.enter_context(socket.socket())
        sock.connect((host, int(port)))


def _processor_seconds(daemon: Command) -> float:
    with open(f"/proc/{daemon.process.pid}/stat", "rb") as file:
        user, system = file.read().rpartition(b") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def _check_that_it_does_not_spin(daemon: Command) -> None:
    before = _processor_seconds(daemon)
    await trio.sleep(_MEASURED_SECONDS)
    assert _processor_seconds(daemon) - before < _IDLE_SHARE * _MEASURED_SECONDS


async def _starved(daemon: Command) -> None:
    """Wait until the shortage is in the log."""
    await daemon.logged("connections are refused: " + os.strerror(errno.EMFILE))


async def _ask(url: str, path: str = "/health", body: object = None) -> tuple[int, str | None]:
    """Status and Retry-After of a new connection's request."""
    async with await connect(url) as connection:
        with trio.fail_after(PATIENCE_SECONDS):
            await connection.request("GET" if body is None else "POST", path, body)
        return connection.status, connection.headers.get("retry-after")


async def test_500_silent_connections_starve_only_those_who_come_later() -> None:
    async with serving("--parked-launchers", str(_PARKED), under=_limited()) as (daemon, url):
        mark = f"1000.{daemon.process.pid}"
        async with unharmed(daemon, url) as bystander:
            kept = bystander.connection
            # A tree that has to be killed, and an exit that has to be known.
            script = f"setsid sleep {mark} & sleep {mark} & read go; exit 7"
            spec = {"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"}
            # And some more, so that connections are not bounded before descriptors run out.
            killed, exits, *more = [
                (await kept.json("POST", "/processes", spec))["pid"] for _ in range(4)
            ]
            await daemon.has_parked(_PARKED)  # Which takes descriptors.
            with ExitStack() as silent:
                _silent_connections(url, _SILENT, silent)
                await _starved(daemon)
                # Told at once, also behind hundreds that say nothing.
                for _ in range(20):
                    assert await _ask(url) == (503, "1")
                assert await _ask(url, "/processes", {"command": "true"}) == (503, "1")

                await _check_that_it_does_not_spin(daemon)
                await bystander.work()
                # What was parked is used up first.
                sleep = {"command": "sleep", "args": [mark]}
                last = [killed, *more]
                while "pid" in (answer := await kept.json("POST", "/processes", sleep)):
                    last.append(answer["pid"])
                    assert len(last) < _LIMIT
                assert (kept.status, answer["code"]) == (503, "OUT_OF_DESCRIPTORS")
                assert kept.headers["retry-after"] == "1"
                for pid in last:
                    await kept.request("DELETE", f"/processes/{pid}")
                    assert kept.status == 204
                await kept.request("POST", f"/processes/{exits}/stdin", raw=b"\n")
                record = await ended(kept, exits)
                assert (record["status"], record["exit_code"]) == ("exited", 7)
                assert running_with(mark) == set()
                assert await kept.json("GET", "/health") == {"healthy": True}
            began = time.monotonic()
            while await _ask(url) != (200, None):
                assert time.monotonic() - began < PATIENCE_SECONDS
            assert (await _ask(url, "/processes", {"command": "true"}))[0] == 201
        assert [entry["level"] for entry in daemon.complaints] == ["warning"] * len(
            daemon.complaints
        )


async def test_a_shortage_of_the_whole_system_is_waited_for() -> None:
    async with serving() as (daemon, url), unharmed(daemon, url) as bystander:
        statuses = []

        async def ask() -> None:
            statuses.append(await _ask(url))

        async with (
            trio.open_nursery() as nursery,
            injecting(daemon.process.pid, "accept4:error=ENFILE"),
        ):
            nursery.start_soon(ask)
            await daemon.logged("connections are refused")
            await _check_that_it_does_not_spin(daemon)
            await bystander.work()
            assert statuses == []
        assert statuses == [(200, None)]


async def test_a_shortage_is_not_taken_for_a_user_that_is_not_there() -> None:
    # The C library finds neither accounts nor groups without descriptors, and a
    # parked launcher needs none to be given its orders.
    async with open_supervisor(SupervisorConfig(parked_launchers=2)) as supervisor:
        with trio.fail_after(PATIENCE_SECONDS):
            while len(children()) < 2:
                await trio.lowlevel.checkpoint()
        for user in ("games", str(pwd.getpwnam("games").pw_uid)):
            spec = ProcessSpec(command="id", args=("-G",), user=user)
            with without_descriptors(), pytest.raises(OutOfDescriptors):
                await supervisor.start(spec)
            groups = os.getgrouplist("games", pwd.getpwnam("games").pw_gid)
            assert [*map(int, (await supervisor.run(spec)).stdout.split())] == groups


async def test_a_daemon_that_was_given_64_descriptors_still_serves() -> None:
    async with serving(under=_limited(64)) as (daemon, url):
        assert len(open_descriptors(daemon)) < 64
        async with unharmed(daemon, url) as bystander:
            await bystander.work()


async def test_a_process_is_held_by_a_pidfd_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Trio goes on without a pidfd, and waits in a thread: one for each process.
    pidfd_open = os.pidfd_open
    held = 0

    def only_beyond_the_limit(pid: int, flags: int = 0) -> int:
        nonlocal held
        if resource.getrlimit(resource.RLIMIT_NOFILE) == limits:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        held += 1
        return pidfd_open(pid, flags)

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = (hard - 64, hard)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    try:
        async with open_supervisor(SupervisorConfig(use_cgroups=False)) as supervisor:
            monkeypatch.setattr(trio._subprocess, "pidfd_open", only_beyond_the_limit)
            monkeypatch.setattr(os, "pidfd_open", only_beyond_the_limit)
            result = await supervisor.run(ProcessSpec(command="sh", args=("-c", "exit 3")))
            assert (result.exit_code, held) == (3, 1)
    finally:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_what_earlier_supervisors_have_left_is_looked_for_out_of_the_reserve() -> None:
    own = find_own_cgroups().unified
    assert own is not None
    name = secrets.token_hex(8)
    stranger = Path(own, units_name(name), "stranger")
    stranger.mkdir(parents=True)
    process = await trio.lowlevel.open_process(["sleep", "1000"])
    try:
        Path(stranger, "cgroup.procs").write_text(str(process.pid))
        with CgroupEvents() as events, CgroupTree(name, events) as tree:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(events.run)
                with without_descriptors(), trio.fail_after(PATIENCE_SECONDS):
                    await tree.sweep()
                    await tree.kill_strangers(())
                nursery.cancel_scope.cancel()
        assert await process.wait() == -signal.SIGKILL
    finally:
        process.kill()


async def test_a_supervisor_has_all_that_the_host_gives_or_is_not_there() -> None:
    config = SupervisorConfig(parked_launchers=0)
    async with open_supervisor(config) as supervisor:
        capabilities = supervisor.capabilities
    before = set(os.listdir("/proc/self/fd"))
    refused = 0
    for spare in range(64):
        with without_descriptors(spare):
            try:
                async with open_supervisor(config) as supervisor:
                    assert supervisor.capabilities == capabilities, spare
                break
            except OutOfDescriptors:
                refused += 1
        assert set(os.listdir("/proc/self/fd")) <= before
    else:
        pytest.fail("it was refused, however many there were")
    assert refused > 5


async def test_too_few_to_take_all_over_means_no_start_and_no_harm(tmp_path: Path) -> None:
    nothing_parked = {"CRECHE_PARKED_LAUNCHERS": "0"}
    async with lives(tmp_path / "state") as daemon:
        await daemon.start(environment=nothing_parked)
        started = [await daemon.launch("exec sleep 1000") for _ in range(_TAKEN_OVER)]
        capabilities = (await daemon.json("GET", "/info"))["capabilities"]
        await daemon.kill()
        # A pidfd and two pipes of each can be had, but for the last.
        limit = first = 3 * _TAKEN_OVER + 26
        command = await daemon.spawn(under=_limited(limit), environment=nothing_parked)
        while not await _serves(command):
            assert command.process.returncode == 1
            message = command.complaints[-1]["message"]
            if "(ulimit -n)" not in message:
                # Then what the host gives, and at last a socket to serve on.
                assert limit > first
                told = ("cannot start: no more file descriptors", os.strerror(errno.EMFILE))
                assert any(text in message for text in told)
            limit += 1
            command = await daemon.spawn(under=_limited(limit), environment=nothing_parked)
        assert limit > first + 1
        await daemon.kill()
        # With a few to be asked: nothing is done without for want of descriptors.
        await daemon.start(under=_limited(limit + 3), environment=nothing_parked)
        assert (await daemon.json("GET", "/info"))["capabilities"] == capabilities
        await daemon.kill()
        # What could be parked has to wait for it.
        await daemon.start(under=_limited(limit))
        await daemon.restart()  # With enough to be asked, too.
        for record in started:
            assert (await daemon.record(record["handle"]))["status"] == "running"


async def _serves(daemon: Command) -> bool:
    """Wait until it serves or has exited."""
    async with trio.open_nursery() as nursery:

        async def give_up() -> None:
            await daemon.process.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(give_up)
        await daemon.logged("serving")
        nursery.cancel_scope.cancel()
        return True
    return False


async def test_many_starts_at_the_limit_are_done_or_have_not_happened() -> None:
    # Whoever is told of a shortage must not have run: it will ask again.
    async with open_supervisor(SupervisorConfig(parked_launchers=0)) as supervisor:
        read_end, write_end = os.pipe()
        told = done = 0
        before = resource.getrlimit(resource.RLIMIT_NOFILE)

        async def start() -> None:
            nonlocal told, done
            spec = ProcessSpec(
                command="sh", args=("-c", f"echo x > /proc/{os.getpid()}/fd/{write_end}")
            )
            try:
                process = await supervisor.start(spec)
            except OutOfDescriptors:
                told += 1
            else:
                done += 1
                await process.wait()

        try:
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 40, before[1]))
            for _ in range(5):
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(start)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            os.close(write_end)
        with open(read_end, "rb") as file:
            ran = file.read().count(b"x")
        assert told + done == 100
        assert told > 0
        assert done > 0
        assert ran == done
