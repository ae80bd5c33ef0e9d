"""The keeper, as a supervisor sees it: across deaths of either, stops, and shortages."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import resource
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.errors import StateDirUnusable
from supervisor.exit_status import wait_exit_status
from supervisor.keeper import Keeper, open_keeper
from supervisor.record import ExitStatus

from .conftest import PATIENCE_SECONDS
from .kernel import running_with
from .test_exit_status import kernel_keeps_status

PIDFD, STDOUT, STDIN = range(3)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A net under the whole test: SIGALRM is deadly."""
    signal.alarm(int(2 * PATIENCE_SECONDS))
    yield
    signal.alarm(0)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A state directory; whatever keeper is left is killed."""
    path = tmp_path.resolve() / "state"
    path.mkdir(mode=0o700)
    yield path
    for pid in running_with(str(path)):
        _kill(pid)


def _kill(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    _wait(pidfd)


def _wait(pidfd: int) -> None:
    assert select.select([pidfd], [], [], PATIENCE_SECONDS)[0] == [pidfd]
    os.close(pidfd)


class Kept:
    """Pipes by key, of which the keeper is to hold the read ends; and which of them it should."""

    def __init__(self, count: int = 0) -> None:
        self.pipes = {key: os.pipe() for key in range(count)}
        self.now = set(self.pipes)
        self.asked = trio.Event()

    def current(self) -> list[tuple[int, dict[int, int]]]:
        self.asked.set()
        return [(key, {STDOUT: self.pipes[key][0]}) for key in self.now]

    def put_all(self, keeper: Keeper) -> None:
        for key, descriptors in self.current():
            keeper.put(key, descriptors)

    def put(self, keeper: Keeper, key: int) -> None:
        self.pipes[key] = os.pipe()
        self.now.add(key)
        keeper.put(key, {STDOUT: self.pipes[key][0]})

    def drop(self, keeper: Keeper, *keys: int) -> None:
        keeper.drop(*keys)
        self.now.difference_update(keys)

    def check(self, held: dict[int, dict[int, int]]) -> None:
        """What is held must be all of it, and the very same."""
        found = {key: os.fstat(ends[STDOUT]).st_ino for key, ends in held.items()}
        assert found == {key: os.fstat(self.pipes[key][0]).st_ino for key in self.now}
        close_all(held)

    def close(self) -> None:
        for ends in self.pipes.values():
            for end in ends:
                os.close(end)


@contextmanager
def _kept(count: int = 0) -> Iterator[Kept]:
    kept = Kept(count)
    try:
        yield kept
    finally:
        kept.close()


def close_all(held: dict[int, dict[int, int]]) -> None:
    for descriptors in held.values():
        for descriptor in descriptors.values():
            os.close(descriptor)


# --- The supervisor dies

# Starts a child, puts what there is of it, and says so. `current` is never asked.
_SUPERVISOR = """
import os, subprocess, sys, trio
from pathlib import Path
from supervisor.keeper import open_keeper
async def main():
    async with open_keeper(Path(sys.argv[1])) as keeper:
        child = subprocess.Popen(
            ["/bin/sh", "-c", sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        pidfd = os.pidfd_open(child.pid)
        descriptors = {0: pidfd, 1: child.stdout.fileno(), 2: child.stdin.fileno()}
        print(os.read(child.stdout.fileno(), 6).decode(), end="", flush=True)
        keeper.put(child.pid, descriptors)
        print("put", child.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@contextmanager
def _program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.kill()


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().rstrip("\n")


async def test_a_living_process_outlives_its_killed_supervisor(directory: Path) -> None:
    script = "echo first; echo second; read word; echo $word; exit 23"
    with _program(sys.executable, "-c", _SUPERVISOR, str(directory), script) as program:
        assert _line(program) == "first"
        pid = int(_line(program).removeprefix("put "))
        program.kill()
    async with open_keeper(directory) as keeper:
        assert set(keeper.held) == {pid}
        held = keeper.held[pid]
        assert not any(os.get_inheritable(descriptor) for descriptor in held.values())
        os.write(held[STDIN], b"third\n")
        with open(held[STDOUT], "rb", closefd=False) as stdout:
            assert stdout.read() == b"second\nthird\n"
        with trio.fail_after(PATIENCE_SECONDS):
            assert await wait_exit_status(held[PIDFD]) == ExitStatus(23, None)
        close_all(keeper.held)
        keeper.drop(pid)


async def test_what_ends_while_there_is_no_supervisor_is_found_whole(directory: Path) -> None:
    """All that it wrote, and its exit status, though it has been reaped by somebody else."""
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    script = f"echo first; echo second; cat {fifo}; exit 23"
    with _program(sys.executable, "-c", _SUPERVISOR, str(directory), script) as program:
        assert _line(program) == "first"
        pid = int(_line(program).removeprefix("put "))
        ours = os.pidfd_open(pid)
        program.kill()
    fifo.write_bytes(b"third\n" * 5000)
    with select.epoll() as reaped:
        reaped.register(ours, 0)
        if kernel_keeps_status():
            assert reaped.poll(PATIENCE_SECONDS) == [(ours, select.EPOLLHUP)]
    os.close(ours)
    async with open_keeper(directory) as keeper:
        held = keeper.held[pid]
        with open(held[STDOUT], "rb", closefd=False) as stdout:
            assert stdout.read() == b"second\n" + b"third\n" * 5000
        with trio.fail_after(PATIENCE_SECONDS):
            status = await wait_exit_status(held[PIDFD])
        if kernel_keeps_status():
            assert status == ExitStatus(23, None)
        close_all(keeper.held)
        keeper.drop(pid)


# Puts and drops as fast as it can, and says after each what it has done.
_BUSY_SUPERVISOR = """
import os, random, sys, trio
from pathlib import Path
from supervisor.keeper import open_keeper
async def main():
    choose = random.Random(int(sys.argv[2]))
    read, write = os.pipe()
    async with open_keeper(Path(sys.argv[1])) as keeper, trio.open_nursery() as nursery:
        kept = list(keeper.held)
        nursery.start_soon(keeper.run, lambda: [(key, {1: read}) for key in kept])
        for key in range(int(sys.argv[3]), 10**6):
            kept.append(key)
            keeper.put(key, {1: read})
            await keeper.settle()
            os.write(1, b"put %d\\n" % key)
            if choose.random() < 0.9:
                dropped = kept.pop(choose.randrange(len(kept)))
                os.write(1, b"dropping %d\\n" % dropped)
                keeper.drop(dropped)
                await keeper.settle()
                os.write(1, b"dropped %d\\n" % dropped)
trio.run(main)
"""


async def test_a_supervisor_can_be_killed_at_any_instant(directory: Path) -> None:
    """What it had put before is held, and what it had dropped is not."""
    choose = random.Random(41)
    certain: set[int] = set()
    for attempt in range(6):
        doubtful: set[int] = set()
        command = [sys.executable, "-c", _BUSY_SUPERVISOR, str(directory), str(attempt)]
        with _program(*command, str(attempt * 10**5)) as program:
            for number, line in enumerate(iter(lambda: _line(program), "")):
                if number == choose.randint(50, 500) or number == 500:
                    program.kill()
                what, key = line.split()
                if what == "put":
                    certain.add(int(key))
                    newest = int(key)
                else:
                    certain.discard(int(key))
                    (doubtful.add if what == "dropping" else doubtful.discard)(int(key))
        async with open_keeper(directory) as keeper:
            held = set(keeper.held)
            close_all(keeper.held)
        # One more may have been put, of which it could not tell us any more.
        assert certain <= held <= certain | doubtful | {newest + 1, attempt * 10**5}
        certain = held


async def test_closing_the_connection_leaves_the_keeper_alive_with_what_it_holds(
    directory: Path,
) -> None:
    with _kept(3) as kept:
        async with open_keeper(directory) as keeper:
            first = keeper.pid
            kept.put_all(keeper)
        async with open_keeper(directory) as keeper:
            assert keeper.pid == first
            kept.check(keeper.held)
            kept.drop(keeper, 0, 2)
        async with open_keeper(directory) as keeper:
            assert keeper.pid == first
            kept.check(keeper.held)


# --- The keeper ends


async def test_a_keeper_that_holds_nothing_ends_with_the_connection(directory: Path) -> None:
    with _kept(1) as kept:
        async with open_keeper(directory) as keeper:
            pidfd = os.pidfd_open(keeper.pid)
            kept.put_all(keeper)
            keeper.drop(0)
        _wait(pidfd)
        # Its socket is still there, and no harm.
        async with open_keeper(directory) as keeper:
            assert keeper.held == {}


async def test_end_ends_it_with_all_that_it_holds(directory: Path) -> None:
    with _kept(3) as kept:
        async with open_keeper(directory) as keeper:
            pidfd = os.pidfd_open(keeper.pid)
            kept.put_all(keeper)
            await keeper.end()
            assert list(directory.iterdir()) == []
        _wait(pidfd)


async def test_a_keeper_that_is_killed_is_replaced_by_one_that_gets_everything(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _kept(500) as kept:
        async with open_keeper(directory) as keeper, trio.open_nursery() as nursery:
            kept.put_all(keeper)
            nursery.start_soon(keeper.run, kept.current)
            await keeper.settle()
            pids = [keeper.pid]
            for _ in range(2):
                kept.asked = trio.Event()
                os.kill(keeper.pid, signal.SIGKILL)
                # In between, too, things begin and end.
                kept.put(keeper, 500 + len(pids))
                kept.drop(keeper, len(pids))
                with trio.fail_after(PATIENCE_SECONDS):
                    await kept.asked.wait()
                    await keeper.settle()
                kept.put(keeper, 600 + len(pids))
                kept.drop(keeper, 10 + len(pids))
                pids.append(keeper.pid)
            nursery.cancel_scope.cancel()
        assert len(set(pids)) == 3
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
        async with open_keeper(directory) as keeper:
            assert keeper.pid == pids[-1]
            kept.check(keeper.held)
            await keeper.end()


async def test_a_keeper_that_has_hung_up_gets_what_is_current_and_nothing_else(
    directory: Path,
) -> None:
    """As it does when it does not understand. It has not died, and holds what is not current any more."""
    with _kept(5) as kept:
        async with open_keeper(directory) as keeper, trio.open_nursery() as nursery:
            kept.put_all(keeper)
            pid = keeper.pid
            keeper._connection.send(b"?")
            kept.now -= {1, 3}
            kept.asked = trio.Event()
            nursery.start_soon(keeper.run, kept.current)
            with trio.fail_after(PATIENCE_SECONDS):
                await kept.asked.wait()
                await keeper.settle()
            assert keeper.pid == pid
            nursery.cancel_scope.cancel()
        async with open_keeper(directory) as keeper:
            kept.check(keeper.held)


# --- The keeper is stopped


async def test_nothing_waits_for_a_keeper_that_is_stopped_and_nothing_is_lost(
    directory: Path,
) -> None:
    with _kept(1000) as kept:
        async with open_keeper(directory) as keeper, trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run, kept.current)
            await trio.testing.wait_all_tasks_blocked()
            pid = keeper.pid
            os.kill(pid, signal.SIGSTOP)
            kept.put_all(keeper)
            assert keeper._late
            # Of what it has been told and of what it has not; one by one and many.
            for key in (0, 999):
                kept.drop(keeper, key)
            kept.drop(keeper, *range(100, 110), *range(900, 910))
            kept.put(keeper, 1000)
            # Comes and goes, and it never hears of it.
            late = set(keeper._late)
            kept.put(keeper, 1001)
            kept.drop(keeper, 1001)
            assert keeper._late == late
            os.kill(pid, signal.SIGCONT)
            with trio.fail_after(PATIENCE_SECONDS):
                await keeper.settle()
            kept.drop(keeper, 5)
            nursery.cancel_scope.cancel()
        async with open_keeper(directory) as keeper:
            assert keeper.pid == pid
            kept.check(keeper.held)
            await keeper.end()


async def test_a_stopped_keeper_that_is_killed_is_replaced_too(directory: Path) -> None:
    with _kept(1000) as kept:
        async with open_keeper(directory) as keeper, trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run, kept.current)
            os.kill(keeper.pid, signal.SIGSTOP)
            kept.put_all(keeper)
            kept.drop(keeper, *range(10), *range(990, 1000))
            kept.asked = trio.Event()
            os.kill(keeper.pid, signal.SIGKILL)
            with trio.fail_after(PATIENCE_SECONDS):
                await kept.asked.wait()
                await keeper.settle()
            nursery.cancel_scope.cancel()
        async with open_keeper(directory) as keeper:
            kept.check(keeper.held)
            await keeper.end()


# --- Who may connect, and where


async def test_a_second_supervisor_is_refused_while_the_first_lives(directory: Path) -> None:
    with _kept(2) as kept:
        async with open_keeper(directory) as keeper:
            kept.put_all(keeper)
            with pytest.raises(StateDirUnusable, match="another supervisor is connected"):
                async with open_keeper(directory):
                    pass
        async with open_keeper(directory) as keeper:
            kept.check(keeper.held)


async def test_the_socket_is_its_users_alone_and_may_be_anywhere(directory: Path) -> None:
    deep = directory
    while len(str(deep)) < 200:
        deep = deep / "a directory with a long name"
    deep.mkdir(parents=True)
    descriptor = os.open(deep, os.O_RDONLY)
    old_mask = os.umask(0)
    try:
        with _kept(1) as kept:
            async with open_keeper(descriptor) as keeper:
                mode = (deep / "keeper").stat().st_mode
                kept.put_all(keeper)
            async with open_keeper(deep) as keeper:
                kept.check(keeper.held)
                keeper.drop(0)
    finally:
        os.umask(old_mask)
        os.close(descriptor)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
async def test_a_strangers_keeper_is_not_used(directory: Path, somewhere: Path) -> None:
    program = (
        "import os, sys, trio\n"
        "from supervisor.errors import StateDirUnusable\n"
        "from supervisor.keeper import open_keeper\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "async def main():\n"
        "    try:\n"
        "        async with open_keeper(int(sys.argv[1])): print('connected')\n"
        "    except StateDirUnusable as error: print(error)\n"
        "trio.run(main)\n"
    )
    directory.chmod(0o755)
    descriptor = os.open(directory, os.O_RDONLY)
    with _kept(1) as kept:
        async with open_keeper(directory) as keeper:
            kept.put_all(keeper)
        for mode, reason in ((0o600, "Permission denied"), (0o666, "it is another user's")):
            (directory / "keeper").chmod(mode)
            result = subprocess.run(
                [sys.executable, "-c", program, str(descriptor)],
                pass_fds=[descriptor],
                capture_output=True,
                text=True,
                check=True,
            )
            assert reason in result.stdout
        async with open_keeper(directory) as keeper:
            kept.check(keeper.held)
    os.close(descriptor)


async def test_a_directory_that_cannot_hold_a_socket_is_unusable(directory: Path) -> None:
    for unusable in (directory / "missing", Path("/proc/self")):
        with pytest.raises(StateDirUnusable):
            async with open_keeper(unusable):
                pass


async def test_locks_of_files_are_held_too(directory: Path) -> None:
    """flock(2) belongs to what was opened, whoever holds a copy of it."""
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    async with open_keeper(directory) as keeper:
        keeper.put(2**40, {7: lock})
    os.close(lock)
    other = os.open(directory / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    async with open_keeper(directory) as keeper:
        fcntl.flock(keeper.held[2**40][7], fcntl.LOCK_EX | fcntl.LOCK_NB)
        keeper.drop(2**40)
        close_all(keeper.held)
        await keeper.end()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


# --- Running short


async def test_what_cannot_be_taken_for_lack_of_descriptors_is_still_held(directory: Path) -> None:
    with _kept(100) as kept:
        async with open_keeper(directory) as keeper:
            kept.put_all(keeper)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        newest = os.dup(0)
        os.close(newest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (newest + 30, hard))
        try:
            async with open_keeper(directory) as keeper:
                assert 0 < len(keeper.held) < 100
                assert keeper.withheld == set(range(100)) - set(keeper.held)
                close_all(keeper.held)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with open_keeper(directory) as keeper:
            assert keeper.withheld == set()
            kept.check(keeper.held)
            await keeper.end()


class _Refusals(logging.Handler):
    """What has been logged; `last` is set by what is logged of that key."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = last
        self.keys: list[int] = []
        self.reasons: set[str] = set()
        self.last = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        key, reason = list(record.args or ())[-2:]
        assert isinstance(key, int)
        self.keys.append(key)
        self.reasons.add(str(reason))
        if key == self._last:
            self.last.set()


@contextmanager
def _refusals(last: int) -> Iterator[_Refusals]:
    logger = logging.getLogger("supervisor.keeper")
    handler = _Refusals(last)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


async def test_what_the_keeper_refuses_is_logged_and_not_kept(directory: Path) -> None:
    with _kept(100) as kept, _refusals(last=99) as refusals:
        async with open_keeper(directory) as keeper, trio.open_nursery() as nursery:
            _, hard = resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (30, hard))
            nursery.start_soon(keeper.run, kept.current)
            kept.put_all(keeper)
            with trio.fail_after(PATIENCE_SECONDS):
                await refusals.last.wait()
            resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (hard, hard))
            nursery.cancel_scope.cancel()
        assert refusals.reasons == {os.strerror(errno.EMFILE)}
        kept.now -= set(refusals.keys)
        assert 10 < len(kept.now) < 30
        async with open_keeper(directory) as keeper:
            kept.check(keeper.held)
            await keeper.end()


# As a user without privileges and with a low limit, puts more than may be on their way to a keeper that is stopped.
_TOO_MANY = """
import logging, os, resource, signal, sys, trio
from supervisor.keeper import open_keeper
os.setgroups([]); os.setresgid(65532, 65532, 65532); os.setresuid(65532, 65532, 65532)
logging.basicConfig(stream=sys.stdout, format="%(message)s")
async def main():
    read, write = os.pipe()
    async with open_keeper(int(sys.argv[1])) as keeper, trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, list)
        os.kill(keeper.pid, signal.SIGSTOP)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (30, hard))
        for key in range(12):
            keeper.put(key, {1: read, 2: read, 3: read, 4: read})
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.kill(keeper.pid, signal.SIGCONT)
        nursery.cancel_scope.cancel()
    async with open_keeper(int(sys.argv[1])) as keeper:
        print("kept", *sorted(keeper.held | dict.fromkeys(keeper.withheld)))
        await keeper.end()
trio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming a user without privileges needs root")
async def test_what_is_too_much_to_be_on_its_way_is_logged_and_not_kept(somewhere: Path) -> None:
    """ETOOMANYREFS; the rest is kept as ever."""
    state = somewhere / "state"
    state.mkdir()
    os.chown(state, 65532, 65532)
    descriptor = os.open(state, os.O_RDONLY)
    result = subprocess.run(
        [sys.executable, "-c", _TOO_MANY, str(descriptor)],
        pass_fds=[descriptor],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    os.close(descriptor)
    *logged, kept = result.stdout.splitlines()
    assert kept == "kept 0 1 2 3 4 5 6 7"
    assert len(logged) == 4
    assert all(line.endswith(os.strerror(errno.ETOOMANYREFS)) for line in logged)


# --- Many


async def test_thousands_are_kept_and_taken(directory: Path) -> None:
    free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1000
    count = min(5000, free // 4)
    with _kept(count) as kept:
        async with open_keeper(directory) as keeper, trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run, kept.current)
            kept.put_all(keeper)
            with trio.fail_after(PATIENCE_SECONDS):
                await keeper.settle()
            nursery.cancel_scope.cancel()
        async with open_keeper(directory) as keeper:
            kept.check(keeper.held)
            kept.drop(keeper, *range(0, count, 2))
            kept.drop(keeper, *range(-5, 0), *range(count, count + 5))
        async with open_keeper(directory) as keeper:
            kept.check(keeper.held)
            await keeper.end()
