"""Processes that live until the benchmark ends, however that ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .daemons import Daemon

Command = tuple[str, ...]


@contextmanager
def sleeper() -> Iterator[Command]:
    """A command that waits for the block to be left.

    It reads a FIFO that we hold open for writing: the kernel closes it even if
    we are killed, and then every process that reads it ends.
    """
    with tempfile.TemporaryDirectory(prefix="creche-benchmark-") as directory:
        Path(directory).chmod(0o755)  # For processes of other users.
        path = f"{directory}/fifo"
        os.mkfifo(path)
        Path(path).chmod(0o644)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield ("/bin/cat", path)
        finally:
            os.close(descriptor)


def fill(daemon: Daemon, command: Command, number: int) -> list[str]:
    """Start so many, and return what addresses them."""
    request = daemon.dialect.start(command)
    with daemon.connect() as client:
        identities = [daemon.dialect.identity(client.exchange(request)) for _ in range(number)]
    daemon.settle()
    return identities
