"""The keeper itself: its promises at the top of keeper.c, over its own protocol."""

import array
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.keeper_process import BUSY, END, FORBIDDEN, HELD, TAKE, WELCOME

from .conftest import as_root, with_resource_capability
from .keepers import NATIVE_KEEPER, SOMEBODY, TIMEOUT, Pipe, Running, close_all, running

# --- What it holds


def test_what_is_put_is_taken_with_its_tags_as_often_as_one_likes(
    keeper: Running, pipe: Pipe
) -> None:
    os.write(pipe.writer, b"written before")
    key = 2**64 - 1
    keeper.first.put(key, [pipe.reader, 0, pipe.reader], (7, 2**32 - 1, 0, 9))
    keeper.first.close()
    pipe.close(pipe.reader)
    os.write(pipe.writer, b" and after")
    for expected in (b"written before", b" and after"):
        with keeper.next() as connection:
            note = connection.take()[key]
            assert (note.kind, note.number, note.tags) == (HELD, 3, (7, 2**32 - 1, 0, 0))
            assert [os.fstat(fd).st_ino for fd in (note.fds[0], note.fds[2])] == [pipe.inode] * 2
            assert os.read(note.fds[0], len(expected)) == expected
            for fd in note.fds:
                os.close(fd)


def test_what_a_dead_supervisor_had_put_is_held_though_it_was_not_read(
    keeper: Running, pipe: Pipe
) -> None:
    keeper.signal(signal.SIGSTOP)
    for key in range(40):
        keeper.first.put(key, [pipe.reader])
    keeper.first.drop(*range(30))
    keeper.first.close()
    keeper.signal(signal.SIGCONT)
    with keeper.next() as connection:
        taken = connection.take()
    close_all(taken)
    assert set(taken) == set(range(30, 40))


def test_answers_that_a_dead_supervisor_has_not_read_cost_nothing(
    keeper: Running, pipe: Pipe
) -> None:
    """Such a death is an ECONNRESET, which the keeper hears of before what was put."""
    keeper.first.put(1, [pipe.reader])
    keeper.first.send(array.array("I", [TAKE, 0]).tobytes())
    # Others are heard only when all has been answered.
    with keeper.connect() as second:
        assert second.hear() is not None
    keeper.signal(signal.SIGSTOP)
    keeper.first.put(2, [pipe.reader])
    keeper.first.close()
    keeper.signal(signal.SIGCONT)
    with keeper.next() as connection:
        taken = connection.take()
    close_all(taken)
    assert set(taken) == {1, 2}


def test_answers_that_cannot_be_given_to_a_dead_supervisor_cost_nothing(
    keeper: Running, pipe: Pipe
) -> None:
    """It is an EPIPE, in the midst of answers that do not fit into the connection."""
    for key in range(1000):
        keeper.first.put(key, [pipe.reader])
    keeper.first.send(array.array("I", [TAKE, 0]).tobytes())
    first = keeper.first.hear()
    assert first is not None
    os.close(first.fds[0])
    keeper.first.put(1000, [pipe.reader])
    keeper.first.close()
    with keeper.next() as connection:
        taken = connection.take()
    close_all(taken)
    assert set(taken) == set(range(1001))


def test_a_later_put_replaces_and_a_drop_closes(keeper: Running) -> None:
    pipes = [Pipe() for _ in range(3)]
    for pipe in pipes:
        keeper.first.put(5, [pipe.reader])
        pipe.close(pipe.reader)
    assert not pipes[0].has_readers(TIMEOUT)
    assert not pipes[1].has_readers(TIMEOUT)
    taken = keeper.first.take()
    assert os.fstat(taken[5].fds[0]).st_ino == pipes[2].inode
    close_all(taken)
    keeper.first.drop(4, 5, 6)
    assert not pipes[2].has_readers(TIMEOUT)
    for pipe in pipes:
        pipe.close(pipe.writer)


def test_it_holds_what_a_table_holds(keeper: Running) -> None:
    """Thousands of puts and drops in any order, of keys near and far, against a dict; and no memory is left over."""
    choose = random.Random(20)
    keys = [*range(400), *(choose.getrandbits(64) for _ in range(400))]
    keys += [key << 32 for key in range(1, 401)]
    pipes = [Pipe() for _ in range(8)]
    expected: dict[int, list[int]] = {}
    before = keeper.status()["VmSize"]
    for number in range(8000):
        key = choose.choice(keys)
        # At first rather more, in the end rather less.
        if choose.random() < 0.8 - 0.6 * (number >= 5000):
            chosen = choose.choices(pipes, k=choose.randint(1, 2))
            keeper.first.put(key, [pipe.reader for pipe in chosen])
            expected[key] = [pipe.inode for pipe in chosen]
        else:
            keeper.first.drop(key)
            expected.pop(key, None)
        if number % 1000 == 999:
            taken = keeper.first.take()
            found = {key: [os.fstat(fd).st_ino for fd in note.fds] for key, note in taken.items()}
            close_all(taken)
            assert found == expected
    left = list(expected)
    for start in range(0, len(left), 256):
        keeper.first.drop(*left[start : start + 256])
    assert keeper.first.take() == {}
    if not Path(f"/proc/{keeper.pid}/exe").readlink().name.startswith("sanitized"):
        assert keeper.status()["VmSize"] == before
    for pipe in pipes:
        pipe.close()


# --- Whom it serves


def test_a_second_supervisor_is_told_that_it_is_busy_until_the_first_is_gone(
    keeper: Running, pipe: Pipe
) -> None:
    keeper.first.put(1, [pipe.reader])
    for _ in range(3):
        with keeper.connect() as second:
            note = second.hear()
            assert note is not None
            assert note.kind == BUSY
            assert second.hear() is None
    keeper.first.close()
    with keeper.connect() as second:
        note = second.hear()
        assert note is not None
        assert (note.kind, note.key, note.tags[0]) == (WELCOME, 1, keeper.pid)


@as_root
def test_a_stranger_is_not_served(native_keeper: Running, pipe: Pipe, somewhere: Path) -> None:
    """Not even where the socket's permissions let it in."""
    native_keeper.first.put(1, [pipe.reader])
    native_keeper.first.close()
    native_keeper.address.chmod(0o666)
    program = (
        "import os, socket, struct, sys\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "connection.connect(sys.argv[1])\n"
        "try:\n"
        f"    if sys.argv[2] == 'asks': connection.send(struct.pack('=II', {TAKE}, 0))\n"
        "except ConnectionError: pass\n"
        "def hear():\n"
        "    try: return connection.recv(100)\n"
        "    except ConnectionResetError: return connection.recv(100)\n"
        "print(struct.unpack_from('=I', hear())[0], hear())\n"
    )
    for what in ("asks", "listens"):
        arguments = [sys.executable, "-c", program, str(native_keeper.address), what]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert result.stdout == f"{FORBIDDEN} b''\n", result
    with native_keeper.next() as connection:
        close_all(connection.take())


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(array.array("I", [END, 0]).tobytes(), id="end"),
        pytest.param(b"", id="nothing was held"),
    ],
)
def test_it_ends(keeper: Running, pipe: Pipe, message: bytes) -> None:
    if message:
        keeper.first.put(1, [pipe.reader])
        keeper.first.send(message)
    else:
        keeper.first.put(1, [pipe.reader])
        keeper.first.drop(1)
        keeper.first.close()
    assert keeper.has_ended()
    pipe.close(pipe.reader)
    assert not pipe.has_readers(TIMEOUT)


# --- What it is


def test_nothing_of_its_starter_is_left_in_it(native_keeper: Running) -> None:
    proc = Path(f"/proc/{native_keeper.pid}")
    links = {int(path.name): os.readlink(path) for path in (proc / "fd").iterdir()}
    streams = {links.pop(stream) for stream in (0, 1, 2)}
    assert streams == {"/dev/null"}
    assert sorted(links) == [3, 4]
    assert all(link.startswith("socket:") for link in links.values())
    assert (proc / "cwd").readlink() == Path("/")
    assert os.getsid(native_keeper.pid) == native_keeper.pid
    status = native_keeper.status()
    assert status["Name"] == "creche-keeper"
    assert int(status["PPid"]) != os.getpid()
    assert (proc / "cmdline").read_bytes().split(b"\0")[1:3] == [b"for", b"ps"]
    soft, hard = resource.prlimit(native_keeper.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


def test_the_soft_limit_of_descriptors_becomes_the_hard_one(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard - 1), hard))

    with running((NATIVE_KEEPER,), tmp_path, preexec_fn=lower) as keeper:
        assert resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE) == (hard, hard)


@with_resource_capability
def test_the_kernel_kills_it_last(native_keeper: Running) -> None:
    assert Path(f"/proc/{native_keeper.pid}/oom_score_adj").read_text() == "-1000\n"


@as_root
def test_nobody_looks_into_it(somewhere: Path) -> None:
    """Not even another process of its user: one that is not dumpable is root's in /proc (proc(5))."""
    copied = Path(shutil.copy(NATIVE_KEEPER, somewhere / "program"))
    with running((copied,), somewhere, **SOMEBODY) as keeper:
        assert keeper.status()["Uid"].split() == [str(SOMEBODY["user"])] * 4
        assert Path(f"/proc/{keeper.pid}/environ").stat().st_uid == 0


def test_no_signal_but_kill_ends_it(keeper: Running, pipe: Pipe) -> None:
    keeper.first.put(1, [pipe.reader])
    own_faults = {signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE}
    own_faults |= {signal.SIGSEGV, signal.SIGSYS}
    for number in signal.valid_signals() - own_faults - {signal.SIGKILL, signal.SIGSTOP}:
        keeper.signal(number)
    close_all(keeper.first.take())
    assert not keeper.has_ended(0)


@pytest.mark.parametrize("holding", [0, 20])
def test_it_is_small(native_keeper: Running, pipe: Pipe, holding: int) -> None:
    for key in range(holding):
        native_keeper.first.put(key, [pipe.reader])
    close_all(native_keeper.first.take())
    rollup = Path(f"/proc/{native_keeper.pid}/smaps_rollup").read_text()
    (pss,) = (int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss < 100
