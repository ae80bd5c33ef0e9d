"""Waiting for descriptors whose numbers other files had, which others still hold."""

from __future__ import annotations

import os
import socket

import trio
from trio.testing import wait_all_tasks_blocked

from supervisor.launch import _receive_answer
from supervisor.readiness import wait_until_readable

from .conftest import PATIENCE_SECONDS


async def _leave_a_trap(number: int) -> tuple[int, int]:
    """Have that number closed, and an epoll that tells under it of a pipe that goes on elsewhere: its ends."""
    read_end, write_end = os.pipe()
    elsewhere = os.dup(read_end)
    assert read_end == number
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio.lowlevel.wait_readable(read_end)
    os.close(read_end)
    return elsewhere, write_end


async def test_a_file_that_hangs_up_under_an_old_number_wakes_nobody_who_waits_for_another() -> (
    None
):
    spare = os.dup(0)
    os.close(spare)
    elsewhere, trap = await _leave_a_trap(spare)
    read_end, write_end = os.pipe()
    assert read_end == spare
    is_readable = False

    async def wait() -> None:
        nonlocal is_readable
        await wait_until_readable(read_end)
        is_readable = True

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            os.close(trap)  # Its reader hangs up.
            await wait_all_tasks_blocked(0.01)
            assert not is_readable
            os.write(write_end, b"x")
    assert is_readable
    for descriptor in (read_end, write_end, elsewhere):
        os.close(descriptor)


async def test_an_answer_is_waited_for_though_another_file_had_its_number() -> None:
    spare = os.dup(0)
    os.close(spare)
    elsewhere, trap = await _leave_a_trap(spare)
    ours, the_childs = socket.socketpair()
    assert ours.fileno() == spare
    ours.setblocking(False)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receive_answer, ours)
            await wait_all_tasks_blocked()
            os.close(trap)
            await wait_all_tasks_blocked(0.01)
            the_childs.close()  # The command has been executed.
    ours.close()
    os.close(elsewhere)
