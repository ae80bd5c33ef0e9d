"""The real Tensorlake SDK, called from Trio, and waiting for what processes do."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from tensorlake.sandbox import RemoteAPIError  # type: ignore[import-untyped]  # It ships no types.

from supervisor import Line, Process

from .conftest import PATIENCE_SECONDS

# A child, one that leaves the session, and one that leaves the family too.
TREE = 'sleep "$0" & setsid sleep "$0" & (setsid sleep "$0" &); echo ready; wait'

# Calls for one process, and their arguments after it.
OUTPUTS = ("get_stdout", "get_stderr", "get_output")
FOLLOWS = ("follow_stdout", "follow_stderr", "follow_output")
CALLS: dict[str, tuple[object, ...]] = {
    "get_process": (),
    "kill_process": (),
    "send_signal": (signal.SIGTERM,),
    "write_stdin": (b"x",),
    "close_stdin": (),
    **dict.fromkeys((*OUTPUTS, *FOLLOWS), ()),
}

# Not Trio's default one: the daemon shares this process and needs threads of that.
_THREADS = 100


class Sdk:
    """The methods of one client object of the SDK, sync or async, as Trio's own.

    They block (those of the async client block an event loop of asyncio), so
    each call has a thread. `Any`, because the SDK ships no types.
    """

    def __init__(self, sandbox: Any) -> None:
        self.sandbox = sandbox
        self._limiter = trio.CapacityLimiter(_THREADS)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: object, **options: object) -> Any:
            method = partial(getattr(self.sandbox, name), *args, **options)
            with trio.fail_after(PATIENCE_SECONDS):
                return await trio.to_thread.run_sync(
                    _result, method, abandon_on_cancel=True, limiter=self._limiter
                )

        return call


def _result(method: Callable[[], Any]) -> Any:
    result = method()
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def hasty(sdk: Sdk, url: str) -> Sdk:
    """Another client, which gives up after a second of silence."""
    return Sdk(type(sdk.sandbox)(identifier="any", proxy_url=url, request_timeout=1.0))


async def refused(code: str, status: int, sdk: Sdk, call: str, *args: object, **kw: object) -> None:
    """Make a call that is refused with this code and status."""
    with pytest.raises(RemoteAPIError) as caught:
        await getattr(sdk, call)(*args, **kw)
    assert caught.value.status_code == status, (call, args, kw)
    assert f'"code":"{code}"' in str(caught.value)


def texts(events: Iterable[Any]) -> list[str]:
    """The lines of output events."""
    return [event.line for event in events]


async def until_written(process: Process, *lines: str) -> None:
    """Wait until the process has written these lines, in any order."""
    missing = list(lines)
    with trio.fail_after(PATIENCE_SECONDS):
        async for item in process.lines():
            if isinstance(item, Line) and item.text in missing:
                missing.remove(item.text)
            if not missing:
                return
    raise AssertionError(f"{process} has ended without {missing}")


async def until_followed(process: Process, followers: int) -> None:
    """Wait until so many readers have read everything and wait for more."""
    with trio.fail_after(PATIENCE_SECONDS):
        while len(process.log._readers) < followers:  # noqa: ASYNC110  # It has no event.
            await trio.sleep(0.001)


async def open_when_read(fifo: Path) -> int:
    """Open a FIFO for writing, once somebody has opened it for reading."""
    with trio.fail_after(PATIENCE_SECONDS):
        return await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY, abandon_on_cancel=True)


@asynccontextmanager
async def while_running(
    fifo: Path, sdk: Sdk, command: str, *args: str
) -> AsyncIterator[tuple[Any, int, list[Any]]]:
    """A run, once it is listed and has opened the FIFO, which its last argument names.

    Gives the listed process, a descriptor to write to, and a list that holds
    the result in the end.
    """
    results: list[Any] = []

    async def run() -> None:
        results.append(await sdk.run(command, [*args, str(fifo)]))

    os.mkfifo(fifo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        writer = await open_when_read(fifo)
        try:
            # It reads the FIFO a moment before its supervisor hears of its success.
            with trio.fail_after(PATIENCE_SECONDS):
                listed: list[Any] = []
                while not listed:
                    listed = [p for p in await sdk.list_processes() if str(fifo) in p.args]
            yield listed[0], writer, results
        finally:
            os.close(writer)
