"""A process that writes: random bytes on both streams, or lines that say when they were written.

Lines begin with CLOCK_MONOTONIC in nanoseconds, in 20 digits; that clock is
the same in all processes of a machine.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

TIME_DIGITS = 20

_PIECE_BYTES = 1024 * 1024
_LARGEST_WRITE = 64 * 1024
_TURN_SECONDS = 0.01


def lines(*, interval: float, lines_per_write: int, seconds: float, width: int = 64) -> list[str]:
    """A command that writes so many lines at once every `interval` seconds."""
    return _command("lines", interval, lines_per_write, seconds, width)


def random_bytes(*, seed: int, size: int, seconds: float) -> list[str]:
    """A command that writes `random_content` of both streams at the same time."""
    return _command("random", seed, size, seconds)


def random_content(seed: int, stream: str, size: int) -> bytes:
    """Random bytes, the same for the same arguments."""
    generator = random.Random(f"{seed} {stream}")
    return b"".join(
        generator.randbytes(min(_PIECE_BYTES, size - at)) for at in range(0, size, _PIECE_BYTES)
    )


def _command(*arguments: object) -> list[str]:
    # By its path and without site-packages: a hundred of them start quickly.
    return [sys.executable, "-I", "-S", str(Path(__file__)), *map(str, arguments)]


def _write_lines(interval: float, lines_per_write: int, seconds: float, width: int) -> None:
    padding = " " + "x" * (width - TIME_DIGITS - 2) + "\n"
    began = time.monotonic()
    turn = 0
    while turn * interval < seconds:
        _sleep_until(began + turn * interval)
        line = f"{time.monotonic_ns():0{TIME_DIGITS}}{padding}"
        _write(1, (line * lines_per_write).encode())
        turn += 1


def _write_random(seed: int, size: int, seconds: float) -> None:
    contents = [random_content(seed, stream, size) for stream in ("stdout", "stderr")]
    threads = [
        threading.Thread(target=_write_paced, args=(descriptor, content, seconds))
        for descriptor, content in enumerate(contents, start=1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _write_paced(descriptor: int, content: bytes, seconds: float) -> None:
    """Write in pieces of random sizes, spread over `seconds`."""
    began = time.monotonic()
    at = 0
    while at < len(content):
        _sleep_until(began + seconds * at / len(content))
        size = random.randint(1, _LARGEST_WRITE)
        _write(descriptor, content[at : at + size])
        at += size


def _sleep_until(moment: float) -> None:
    left = moment - time.monotonic()
    if left > 0:
        time.sleep(left)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def main() -> None:
    """Write what the command line says."""
    match sys.argv[1:]:
        case ["lines", interval, lines_per_write, seconds, width]:
            _write_lines(float(interval), int(lines_per_write), float(seconds), int(width))
        case ["random", seed, size, seconds]:
            _write_random(int(seed), int(size), float(seconds))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
