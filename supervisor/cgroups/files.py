"""The files of a cgroup: small, read and written whole, also when there are no more descriptors."""

from __future__ import annotations

import os

from ..descriptors import open_in_any_case


def read(path: str) -> str:
    """The whole content.

    Raises:
      OSError: above all FileNotFoundError, where the controller is missing.
    """
    descriptor = open_in_any_case(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 65536).decode()
    finally:
        os.close(descriptor)


def write(path: str, value: str | int) -> None:
    """Write in one call, as these files want it.

    Raises:
      OSError: the kernel's opinion of the value.
    """
    descriptor = open_in_any_case(path, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def number(text: str, key: str) -> int | None:
    """One number of a flat keyed file, such as `populated 1\\nfrozen 0\\n` (kernel, cgroup-v2.rst).

    None if the key is not there. Only this one is looked for: some of these
    files are long, and read for every process.
    """
    _, found, rest = f"\n{text}".partition(f"\n{key} ")
    return int(rest.partition("\n")[0]) if found else None
