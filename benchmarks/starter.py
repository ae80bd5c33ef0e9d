"""A contender without HTTP: for each number on stdin it starts `/bin/true` so many times, one after the other, and prints what each took.

Wall-clock seconds until the start returns; or, with `--cpu`, the processor
seconds of this program alone (its children's are not counted) from a start to
the reaped process, at a moment when nothing is left to do for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import trio
import trio.testing

from supervisor import ProcessSpec, SupervisorConfig, open_supervisor
from supervisor.launch import Launchers
from supervisor.reaper import Children

from .floor import orders_of, park

_MIB = 1024 * 1024
_COMMAND = "/bin/true"
# Until a launcher that was spawned waits for its orders.
_PARKING_SECONDS = 0.01


async def creche(user: str | None, *, use_cgroups: bool, parked: int, cpu: bool) -> None:
    """`Supervisor.start` until it returns: the command has been executed."""
    spec = ProcessSpec(command=_COMMAND, user=user)
    config = SupervisorConfig(use_cgroups=use_cgroups, parked_launchers=parked)
    async with open_supervisor(config) as supervisor:

        async def once() -> float:
            began = time.perf_counter()
            process = await supervisor.start(spec)
            seconds = time.perf_counter() - began
            await process.wait()
            return seconds

        await _serve(once, cpu=cpu)


async def bare_open_process(*, cpu: bool) -> None:
    """`trio.lowlevel.open_process` with two pipes, until it returns."""

    async def once() -> float:
        began = time.perf_counter()
        process = await trio.lowlevel.open_process(
            [_COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        seconds = time.perf_counter() - began
        await process.wait()
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.aclose()
        await process.stderr.aclose()
        return seconds

    await _serve(once, cpu=cpu)


async def parked_launcher(*, cpu: bool) -> None:
    """Orders to a launcher that was parked before, through Trio and without anything else, until they are carried out.

    To wait for the launcher itself is left out, so of this one `--cpu` says nothing.
    """
    spec = ProcessSpec(command=_COMMAND)
    orders = orders_of(spec)
    with Launchers(Children()) as launchers:

        async def once() -> float:
            parked = await park(launchers)
            await trio.sleep(_PARKING_SECONDS)
            began = time.perf_counter()
            leader = await parked.execute(orders, spec, launchers.null)
            seconds = time.perf_counter() - began
            await parked.see_it_end(leader)
            return seconds

        await _serve(once, cpu=cpu)


async def bare_run_process(*, cpu: bool) -> None:
    """`trio.run_process` with both outputs captured: to the end, since it says nothing before."""

    async def once() -> float:
        began = time.perf_counter()
        await trio.run_process([_COMMAND], capture_stdout=True, capture_stderr=True)
        return time.perf_counter() - began

    await _serve(once, cpu=cpu)


async def creche_run(user: str | None, *, use_cgroups: bool, parked: int, cpu: bool) -> None:
    """`Supervisor.run`, with both outputs captured, to the end."""
    spec = ProcessSpec(command=_COMMAND, user=user)
    config = SupervisorConfig(use_cgroups=use_cgroups, parked_launchers=parked)
    async with open_supervisor(config) as supervisor:

        async def once() -> float:
            began = time.perf_counter()
            await supervisor.run(spec)
            return time.perf_counter() - began

        await _serve(once, cpu=cpu)


async def bare_popen(user: str | None, *, cpu: bool) -> None:
    """`subprocess.Popen` with two pipes, until it returns."""

    def once() -> float:
        began = time.perf_counter()
        process = subprocess.Popen(
            [_COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, user=user
        )
        seconds = time.perf_counter() - began
        process.communicate()
        return seconds

    await _serve(_asynchronous(once), cpu=cpu)


async def bare_posix_spawn(*, cpu: bool) -> None:
    """`os.posix_spawn` with nothing else at all: the floor."""

    def once() -> float:
        began = time.perf_counter()
        pid = os.posix_spawn(_COMMAND, [_COMMAND], os.environ)
        seconds = time.perf_counter() - began
        os.waitpid(pid, 0)
        return seconds

    await _serve(_asynchronous(once), cpu=cpu)


def _asynchronous(once: Callable[[], float]) -> Callable[[], Awaitable[float]]:
    async def call() -> float:
        return once()

    return call


async def _serve(once: Callable[[], Awaitable[float]], *, cpu: bool) -> None:
    """Do it as often as each line of stdin says, and print the seconds."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        times, pause = line.split()
        seconds = []
        before = time.process_time()
        for _ in range(int(times)):
            await trio.sleep(float(pause))
            seconds.append(await once())
        if cpu:
            # What has been put off, such as a launcher to be parked, is part of the price.
            await trio.testing.wait_all_tasks_blocked(0.01)
            seconds = [(time.process_time() - before) / int(times)]
        print(json.dumps(seconds), flush=True)


def main() -> None:
    """Read the options, and serve stdin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "way",
        choices=[
            *("creche", "creche-run", "parked-launcher"),
            *("open_process", "run_process", "popen", "posix_spawn"),
        ],
    )
    parser.add_argument("--user")
    parser.add_argument("--cgroups", action="store_true")
    parser.add_argument("--parked", type=int, default=0)
    parser.add_argument("--ballast-mib", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    # Touched, so that it is resident: a fork would have to copy its page tables.
    ballast = bytearray(b"x") * (options.ballast_mib * _MIB)
    cpu = options.cpu
    ours = {"use_cgroups": options.cgroups, "parked": options.parked, "cpu": cpu}
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "creche": lambda: creche(options.user, **ours),
        "creche-run": lambda: creche_run(options.user, **ours),
        "parked-launcher": lambda: parked_launcher(cpu=cpu),
        "open_process": lambda: bare_open_process(cpu=cpu),
        "run_process": lambda: bare_run_process(cpu=cpu),
        "popen": lambda: bare_popen(options.user, cpu=cpu),
        "posix_spawn": lambda: bare_posix_spawn(cpu=cpu),
    }
    trio.run(ways[options.way])
    assert len(ballast) == options.ballast_mib * _MIB


if __name__ == "__main__":
    main()
