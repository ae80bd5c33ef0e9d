"""The files of a cgroup: small, read and written whole."""

from __future__ import annotations

import os


def read(path: str) -> str:
    """The whole content.

    Raises:
      OSError: above all FileNotFoundError, where the controller is missing.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536).decode()
    finally:
        os.close(descriptor)


def write(path: str, value: str | int) -> None:
    """Write in one call, as these files want it.

    Raises:
      OSError: the kernel's opinion of the value.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def keyed(text: str) -> dict[str, int]:
    """A flat keyed file, such as `populated 1\\nfrozen 0\\n` (kernel, cgroup-v2.rst)."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
