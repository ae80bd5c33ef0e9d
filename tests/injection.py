"""System calls that fail when they are told to, by strace."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from .conftest import PATIENCE_SECONDS


@asynccontextmanager
async def injecting(pid: int, fault: str) -> AsyncIterator[None]:
    """Have system calls of a process and all its threads go wrong within this block.

    Args:
      pid: of the process.
      fault: as `-e inject=` of strace(1) has it: `clone,fork:error=EAGAIN`.
    """
    call = fault.partition(":")[0]
    arguments = ["strace", "-f", "-p", str(pid), "-o", "/dev/null"]
    arguments += ["-e", f"trace={call}", "-e", f"inject={fault}"]
    process = await trio.lowlevel.open_process(arguments, stderr=-1)
    assert process.stderr is not None
    async with process.stderr:
        try:
            message = b""
            with trio.fail_after(PATIENCE_SECONDS):
                while b"attached" not in message:
                    message += await process.stderr.receive_some()
            yield
        finally:
            with trio.CancelScope(shield=True):
                process.send_signal(signal.SIGINT)
                async for _ in process.stderr:
                    pass
                await process.wait()
