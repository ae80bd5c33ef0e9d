"""Contenders that are programs of their own: each line on stdin says how often and with what pauses, and a line of JSON answers with the seconds."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from .contest import Contender


@contextmanager
def open_program(
    name: str, command: Sequence[str], *, pause_seconds: float = 0.0
) -> Iterator[Contender]:
    """A program as a contender, for the length of the block; it ends when its stdin does."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        yield Contender(name, partial(_turn, program, pause_seconds))


def _turn(program: subprocess.Popen[str], pause_seconds: float, times: int) -> list[float]:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(f"{times} {pause_seconds}\n")
    program.stdin.flush()
    seconds: list[float] = json.loads(program.stdout.readline())
    return seconds
