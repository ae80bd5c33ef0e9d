"""A contest: several contenders do the same thing in turn, so that a noisy machine disturbs all alike.

Each round lets every contender do it a few times, in an order drawn anew. A p50
is the median of the rounds' medians, and its spread is what half of all rounds
gave; p10, p90 and p99 are of everything. What counts is the ratio to the first
contender within a round: reported is the median of those, with their spread.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import median, quantiles

from msgspec import Struct

from .tables import Cell, Table


class Contender(Struct, frozen=True):
    """One way to do it.

    Attributes:
      name: in the table.
      turn: do it so many times, and return what each took, in seconds.
    """

    name: str
    turn: Callable[[int], Sequence[float]]


class Result(Struct, frozen=True):
    """What one contender has achieved.

    Attributes:
      name: of the contender.
      rounds: what each single one took, in seconds, by rounds.
    """

    name: str
    rounds: tuple[tuple[float, ...], ...]

    @property
    def all(self) -> list[float]:
        """Of all rounds."""
        return [seconds for one in self.rounds for seconds in one]

    @property
    def p50(self) -> float:
        """The median of the rounds' medians."""
        return median(self.medians)

    @property
    def medians(self) -> list[float]:
        """Of each round."""
        return [median(one) for one in self.rounds]


class Spread(Struct, frozen=True):
    """A figure that several rounds gave.

    Attributes:
      middle: the median.
      low, high: the quartiles, between which half of the rounds lie.
    """

    middle: float
    low: float
    high: float

    def text(self, format_: str = ",.0f") -> str:
        """The quartiles."""
        return f"{self.low:{format_}}-{self.high:{format_}}"


def spread_of(values: Sequence[float]) -> Spread:
    """The median and the quartiles."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def repeat(once: Callable[[], float]) -> Callable[[int], list[float]]:
    """A turn of something that is done once, and returns its seconds."""

    def turn(times: int) -> list[float]:
        return [once() for _ in range(times)]

    return turn


def compete(
    contenders: Sequence[Contender], *, rounds: int, times: int = 1, warm_up: int = 1
) -> list[Result]:
    """Let every contender do it so many `times` in each round."""
    taken: list[list[tuple[float, ...]]] = [[] for _ in contenders]
    order = list(range(len(contenders)))
    for round_number in range(warm_up + rounds):
        random.shuffle(order)
        for index in order:
            seconds = tuple(contenders[index].turn(times))
            if round_number >= warm_up:
                taken[index].append(seconds)
    return [
        Result(contender.name, tuple(one)) for contender, one in zip(contenders, taken, strict=True)
    ]


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Of two contenders, round by round."""
    return spread_of([value / other for value, other in zip(values, base, strict=True)])


COLUMNS = ("p50 µs", "spread", "p10", "p90", "p99", "to first", "spread ")


def latencies(title: str, results: Sequence[Result], notes: Sequence[str] = ()) -> Table:
    """The results as a table, in microseconds; ratios are to the first contender."""
    first = results[0]
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        microseconds = [seconds * 1e6 for seconds in result.all]
        percentiles = quantiles(microseconds, n=100, method="inclusive")
        spread = spread_of([seconds * 1e6 for seconds in result.medians])
        against = ratio(result.medians, first.medians)
        rows.append(
            (
                result.name,
                round(spread.middle),
                spread.text(),
                round(percentiles[9]),
                round(percentiles[89]),
                round(percentiles[98]),
                round(against.middle, 2),
                against.text(".2f"),
            )
        )
    return Table(title=title, columns=COLUMNS, rows=tuple(rows), notes=tuple(notes), plotted=(0,))
