"""A contender that starts `/bin/true` once for every line on stdin, and prints how long the start took."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import trio

from supervisor import ProcessSpec, SupervisorConfig, open_supervisor

_MIB = 1024 * 1024


async def creche(user: str | None, *, use_cgroups: bool, parked: int) -> None:
    """`Supervisor.start` until it returns: the command has been executed."""
    spec = ProcessSpec(command="/bin/true", user=user)
    config = SupervisorConfig(use_cgroups=use_cgroups, parked_launchers=parked)
    async with open_supervisor(config) as supervisor:
        while await trio.to_thread.run_sync(sys.stdin.readline):
            began = time.perf_counter()
            process = await supervisor.start(spec)
            print(time.perf_counter() - began, flush=True)
            await process.wait()


async def bare_trio() -> None:
    """`trio.lowlevel.open_process` with two pipes, until it returns."""
    while await trio.to_thread.run_sync(sys.stdin.readline):
        began = time.perf_counter()
        process = await trio.lowlevel.open_process(
            ["/bin/true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        print(time.perf_counter() - began, flush=True)
        await process.wait()
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.aclose()
        await process.stderr.aclose()


def bare_popen(user: str | None) -> None:
    """`subprocess.Popen` with two pipes, until it returns."""
    while sys.stdin.readline():
        began = time.perf_counter()
        process = subprocess.Popen(
            ["/bin/true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, user=user
        )
        print(time.perf_counter() - began, flush=True)
        process.communicate()


def main() -> None:
    """Read the options, and serve stdin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["creche", "trio", "popen"])
    parser.add_argument("--user")
    parser.add_argument("--cgroups", action="store_true")
    parser.add_argument("--parked", type=int, default=0)
    parser.add_argument("--ballast-mib", type=int, default=0)
    options = parser.parse_args()
    # Touched, so that it is resident: a fork would have to copy its page tables.
    ballast = bytearray(b"x") * (options.ballast_mib * _MIB)
    match options.way:
        case "creche":
            trio.run(
                lambda: creche(options.user, use_cgroups=options.cgroups, parked=options.parked)
            )
        case "trio":
            trio.run(bare_trio)
        case "popen":
            bare_popen(options.user)
    assert len(ballast) == options.ballast_mib * _MIB


if __name__ == "__main__":
    main()
