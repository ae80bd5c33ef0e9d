"""Clients that follow and throw away, in a process of their own, so that they do not delay the one that measures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from .output_client import Client


@asynccontextmanager
async def open_followers(client: Client, paths: Sequence[str]) -> AsyncIterator[None]:
    """Follow each of `paths`, from when all have got something until the end of the block."""
    command = [sys.executable, "-m", __name__, str(client.port), *paths]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
        )
        await process.stdout.receive_some()
        yield
        nursery.cancel_scope.cancel()


async def _follow_all(port: int, paths: Sequence[str]) -> None:
    client = Client(port, 0)
    async with trio.open_nursery() as nursery:
        for path in paths:
            await nursery.start(_follow, client, path)
        print("all follow", flush=True)


async def _follow(client: Client, path: str, *, task_status: trio.TaskStatus[None]) -> None:
    async with client.body(path) as body:
        await body.receive_some()
        task_status.started()
        async for _ in body:
            pass


def main() -> None:
    """Follow what the command line names."""
    trio.run(_follow_all, int(sys.argv[1]), sys.argv[2:])


if __name__ == "__main__":
    main()
