"""What is read from real pipes, when, and in which order; and who is told of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from supervisor import OutputLog, OutputStore, ProcessSpec, SupervisorConfig, open_supervisor
from supervisor import capture as capture_module
from supervisor.capture import Capture
from supervisor.chunk import Stream
from supervisor.poller import Poller

from .conftest import PATIENCE_SECONDS

# More than a poller tells of at a time.
_MANY = 600


@pytest.fixture
def poller() -> Iterator[Poller]:
    with Poller() as poller:
        yield poller


@pytest.fixture
def log() -> OutputLog:
    return OutputLog(OutputStore())


async def test_what_comes_behind_the_other_streams_is_read_behind_it(
    poller: Poller, log: OutputLog
) -> None:
    with Capture(poller) as capture, ExitStack() as writers:
        stdout, stderr = capture.open("stdout"), capture.open("stderr")
        writers.callback(os.close, stdout)
        writers.callback(os.close, stderr)

        def move(stream: Stream, pipe: int, max_bytes: int, timestamp_ms: int) -> bytes:
            data = os.read(pipe, max_bytes)
            if data == b"a":  # Read, and it is not known yet that this is all.
                os.write(stderr, b"b")
                os.write(stdout, b"c")
                writers.close()
            return data

        async with trio.open_nursery() as nursery:
            nursery.start_soon(capture.run, log, move)
            os.write(stdout, b"a")
            poller.poll()
    assert await log.read_all("stdout") == b"ac"
    assert [(chunk.stream, chunk.data) for chunk in log.unspilled] == [
        ("stdout", b"a"),
        ("stderr", b"b"),
        ("stdout", b"c"),
    ]


async def test_the_first_that_was_written_is_read_first_however_late(
    poller: Poller, log: OutputLog
) -> None:
    with Capture(poller) as capture:
        stdout, stderr = capture.open("stdout"), capture.open("stderr")
        os.write(stderr, b"b")
        poller.poll()
        os.write(stdout, b"a")
        os.write(stderr, b"b")
        poller.poll()  # Of stderr once more.
        os.close(stdout)
        os.close(stderr)
        with trio.fail_after(PATIENCE_SECONDS):
            await capture.run(log)
    assert [(chunk.stream, chunk.data) for chunk in log.unspilled] == [
        ("stderr", b"bb"),
        ("stdout", b"a"),
    ]


async def test_of_many_that_have_something_each_is_drained_to_its_end(poller: Poller) -> None:
    with ExitStack() as stack:
        store = OutputStore()
        captures = []
        for _ in range(_MANY):
            capture = stack.enter_context(Capture(poller))
            end = capture.open("stdout")
            stack.callback(os.close, end)
            os.write(end, b"last words")
            captures.append(capture)
        # Newest first: the poller has told of others when these want theirs.
        for capture in reversed(captures):
            log = OutputLog(store)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(capture.run, log)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            capture.drain()
            assert await log.read_all("stdout") == b"last words"


async def test_all_that_have_something_are_read(poller: Poller) -> None:
    store = OutputStore()
    logs = [OutputLog(store) for _ in range(_MANY)]
    with ExitStack() as stack:
        ends = []
        scope = trio.CancelScope()

        async def poll() -> None:
            with scope:
                await poller.run()

        async with trio.open_nursery() as outer:
            outer.start_soon(poll)
            async with trio.open_nursery() as nursery:
                for log in logs:
                    capture = stack.enter_context(Capture(poller))
                    ends.append(capture.open("stdout"))
                    nursery.start_soon(capture.run, log)
                await wait_all_tasks_blocked()
                for number, end in enumerate(ends):
                    os.write(end, b"%d" % number)
                    os.close(end)
                nursery.cancel_scope.deadline = trio.current_time() + PATIENCE_SECONDS
            scope.cancel()
    for number, log in enumerate(logs):
        assert await log.read_all("stdout") == b"%d" % number


async def test_a_drain_sees_the_end_too(
    poller: Poller, log: OutputLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_READ_BYTES", 100)
    monkeypatch.setattr(capture_module, "_TURN_BYTES", 1)
    size = 10_000
    with Capture(poller) as capture:
        end = capture.open("stdout")
        os.write(end, bytes(size))
        os.close(end)
        poller.poll()
        with trio.CancelScope() as scope:

            def move(stream: Stream, pipe: int, max_bytes: int, timestamp_ms: int) -> bytes:
                scope.cancel()
                return os.read(pipe, max_bytes)

            await capture.run(log, move)
        assert 0 < log.end < size
        capture.drain()
        assert log.end == size
        assert capture.is_over


async def test_what_cannot_be_read_is_the_readers_failure(poller: Poller, log: OutputLog) -> None:
    def move(stream: Stream, pipe: int, max_bytes: int, timestamp_ms: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Capture(poller) as capture, ExitStack() as writers:
        end = capture.open("stdout")
        writers.callback(os.close, end)

        async def read() -> None:
            with pytest.raises(OSError, match="Input/output error"):
                await capture.run(log, move)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            os.write(end, b"x")
            poller.poll()
        # It is still there, for whoever ends the process.
        with trio.move_on_after(0):
            await capture.run(log)
        capture.drain()
    assert await log.read_all("stdout") == b"x"


async def test_nobody_is_forgotten_by_a_ctrl_c(poller: Poller) -> None:
    protected = []

    def told(descriptor: int, event: int) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())

    read_end, write_end = os.pipe()
    poller.add(read_end, told)
    os.write(write_end, b"x")
    assert not trio.lowlevel.currently_ki_protected()
    poller.poll()
    assert protected == [True]
    poller.remove(read_end)
    os.close(read_end)
    os.close(write_end)


async def test_a_capture_may_be_left_after_its_poller() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Poller() as poller:
        capture = Capture(poller)
        os.close(capture.open("stdout"))
    capture.__exit__()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_pipe_is_forgotten_with_its_capture_though_others_have_it(poller: Poller) -> None:
    told = []
    with Capture(poller) as capture:
        end = capture.open("stdout")
        (read_end,) = capture.read_ends.values()
        copy = os.dup(read_end)
    poller.add(os.dup2(copy, read_end), lambda *ready: told.append(ready))
    os.close(copy)
    os.write(end, b"x")
    poller.poll()
    assert [descriptor for descriptor, _ in told] == [read_end]
    poller.remove(read_end)
    os.close(read_end)
    os.close(end)


async def test_a_live_process_takes_three_descriptors() -> None:
    async with open_supervisor(SupervisorConfig(parked_launchers=0)) as supervisor:
        before = set(os.listdir("/proc/self/fd"))
        process = await supervisor.start(ProcessSpec(command="sleep", args=("1000",)))
        new = set(os.listdir("/proc/self/fd")) - before
        assert len(new) == 3, [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in new]
        await process.kill()
        assert set(os.listdir("/proc/self/fd")) == before
