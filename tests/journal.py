"""Journals in tests, and what should be in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from supervisor.journal import Journal, State, read_journal

BOOT: Final = "00000000-0000-4000-8000-000000000000"
KIB: Final = 1024
MIB: Final = 1024 * KIB

Live = dict[int, list[tuple[int, bytes]]]


def entries_in(directory: Path, boot: str = BOOT) -> Live:
    return read_journal(directory, boot).entries


def opened(directory: Path, state_of: Callable[[int], State | None], segment: int = MIB) -> Journal:
    return Journal(directory, state_of, read_journal(directory, BOOT), segment_bytes=segment)


def add(
    journal: Journal, live: Live, key: int, payload: bytes, *, kind: int = 1, begins: bool = False
) -> None:
    """Append, and know of it as soon as the journal may ask."""
    journal.append(key, kind, payload, begins=begins)
    if begins:
        live[key] = []
    live.setdefault(key, []).append((kind, payload))


def size_on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def pipe_ends() -> Iterator[tuple[int, int]]:
    """The read end, not blocking, and the write end."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    with ExitStack() as stack:
        stack.callback(os.close, read_end)
        stack.callback(os.close, write_end)
        yield read_end, write_end


def nothing(key: int) -> State | None:
    """Of no key anything counts, so all may go with its segment."""
    return None


def assert_all_live(recovered: Live, live: Live) -> None:
    """What counts is there, possibly behind what has ceased to, without being said so."""
    assert recovered.keys() == live.keys()
    for key, state in live.items():
        assert recovered[key][len(recovered[key]) - len(state) :] == state
