"""The daemon under test: a subprocess of its own, watched from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial

import trio

from .output_client import Client

MIB = 1024 * 1024

_READY_SECONDS = 30.0


class DaemonFailed(Exception):
    """The daemon did not start, or answered what no benchmark can go on from."""


@asynccontextmanager
async def open_daemon(options: Mapping[str, object]) -> AsyncIterator[Client]:
    """Serve on a free port of the loopback; end it with the block.

    Args:
      options: of `creche serve`, without dashes, such as `output_limit_bytes`.

    Raises:
      DaemonFailed: it ended before it served.
    """
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "api", "serve", "--bind=127.0.0.1:0", "--grace-seconds=1"]
    # Who can read the programs here.
    command += [f"--default-user={os.geteuid()}"]
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(
            partial(trio.run_process, [*command, *arguments], stderr=subprocess.PIPE, check=False)
        )
        log = _Log(daemon.stderr)
        with trio.fail_after(_READY_SECONDS):
            port = await log.port()
        nursery.start_soon(log.discard)
        yield Client(port, daemon.pid)
        nursery.cancel_scope.cancel()


@cache
def knows(option: str) -> bool:
    """Whether `creche serve` has an option, such as `state_dir`."""
    command = [sys.executable, "-m", "api", "serve", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return f"--{option.replace('_', '-')} " in text


def as_shipped(state_dir: str) -> dict[str, object]:
    """Options for outputs as they are kept by default, but in another place."""
    return {"state_dir": state_dir} if knows("state_dir") else {}


def in_memory(kept_bytes: int) -> dict[str, object]:
    """Options for outputs that stay in memory, each up to so many bytes."""
    if knows("state_dir"):
        return {"state_dir": "", "output_unspilled_bytes": kept_bytes}
    return {"output_limit_bytes": kept_bytes}


def kept_whole(size_bytes: int, state_dir: str) -> dict[str, object]:
    """Options for outputs that spill to `state_dir`, with room for `size_bytes` and some more."""
    options: dict[str, object] = {"output_limit_bytes": 2 * size_bytes + 64 * MIB}
    if knows("state_dir"):
        options["state_dir"] = state_dir
    for name in ("output_total_bytes", "retain_output_bytes"):
        if knows(name):
            options[name] = 4 * size_bytes + 1024 * MIB
    return options


class _Log:
    """What the daemon logs, as lines of JSON."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream

    async def port(self) -> int:
        """The port, once it is served."""
        text = b""
        async for data in self._stream:
            text += data
            for line in text.split(b"\n")[:-1]:
                for address in _addresses(line):
                    return int(address.rpartition(":")[2])
        raise DaemonFailed(text.decode(errors="replace"))

    async def discard(self) -> None:
        """Read what comes, and show what is worse than a warning."""
        async for data in self._stream:
            if re.search(rb'"level": ?"(error|critical)"|Traceback', data, re.IGNORECASE):
                print(data.decode(errors="replace"), file=sys.stderr)


def _addresses(line: bytes) -> list[str]:
    try:
        entry = json.loads(line)
    except ValueError:
        return []  # A warning of Python's own.
    addresses = entry.get("addresses", []) if isinstance(entry, dict) else []
    return [str(address) for address in addresses]
