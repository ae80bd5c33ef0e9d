"""A contest: several contenders do the same thing in turn, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from statistics import median, quantiles

from msgspec import Struct


class Contender(Struct, frozen=True):
    """One way to do it: a program that does it once for every line on stdin, and prints the seconds.

    Attributes:
      name: in the table.
      arguments: of `python -m`.
    """

    name: str
    arguments: tuple[str, ...]


class Result(Struct, frozen=True):
    """What one contender achieved, in microseconds.

    Attributes:
      name: of the contender.
      p50, p90, p99: over all rounds.
      low, high: the smallest and largest median of five equal parts of the run.
      ratio: of the median to that of the first contender.
    """

    name: str
    p50: float
    p90: float
    p99: float
    low: float
    high: float
    ratio: float


def compete(contenders: Sequence[Contender], *, rounds: int, warm_up: int) -> list[Result]:
    """Let every contender do it once per round, in an order drawn anew each round."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", *contender.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for contender in contenders
    ]
    times: list[list[float]] = [[] for _ in contenders]
    order = list(range(len(contenders)))
    try:
        for round_number in range(warm_up + rounds):
            random.shuffle(order)
            for index in order:
                program = programs[index]
                assert program.stdin is not None
                assert program.stdout is not None
                program.stdin.write("\n")
                program.stdin.flush()
                seconds = float(program.stdout.readline())
                if round_number >= warm_up:
                    times[index].append(seconds * 1e6)
    finally:
        for program in programs:
            program.communicate("")
    base = median(times[0])
    return [
        _result(contender.name, microseconds, base)
        for contender, microseconds in zip(contenders, times, strict=True)
    ]


def _result(name: str, microseconds: list[float], base: float) -> Result:
    percentiles = quantiles(microseconds, n=100, method="inclusive")
    part = max(1, len(microseconds) // 5)
    parts = [median(microseconds[at : at + part]) for at in range(0, part * 5, part)]
    p50 = median(microseconds)
    return Result(name, p50, percentiles[89], percentiles[98], min(parts), max(parts), p50 / base)


def table(title: str, results: Sequence[Result]) -> str:
    """The results as a table of Markdown."""
    rows = [
        f"| {r.name} | {r.p50:.0f} | {r.low:.0f}-{r.high:.0f} | {r.p90:.0f} | {r.p99:.0f} | {r.ratio:.2f} |"
        for r in results
    ]
    return "\n".join(
        [
            f"| {title} | p50 µs | spread | p90 | p99 | ratio |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )
