"""All benchmarks, by name, each as a function of the setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from . import (
    embedded,
    ends,
    http,
    output_delay,
    output_integrity,
    output_long_line,
    output_readers,
    output_throughput,
)
from .budget import budget, profile
from .finished import finished
from .live import live
from .setting import Setting
from .tables import Table

Benchmark = Callable[[Setting], list[Table]]

_GIGABYTE = 1_000_000_000


def _output(setting: Setting) -> list[Table]:
    """Output of one process into the log, and from there to clients."""
    from . import output_lines  # It needs Tensorlake's SDK, which the others do not.

    rounds = setting.scaled(3, least=1)
    seconds = max(1.0, 5.0 * setting.scale)
    return [
        output_throughput.measure(size_bytes=round(_GIGABYTE * setting.scale), rounds=rounds),
        output_lines.measure(lines=setting.scaled(1_000_000), rounds=rounds),
        output_delay.measure(seconds=seconds, rounds=rounds),
        output_readers.measure(seconds=seconds, rounds=rounds),
    ]


def _integrity(setting: Setting) -> list[Table]:
    """Every byte, in every way of reading, and a line that is larger than memory should be."""
    megabytes = max(4, round(64 * setting.scale))
    return [
        output_integrity.measure(size_bytes=megabytes << 20, seconds=26.0 * setting.scale),
        output_long_line.measure(size_bytes=round(_GIGABYTE * setting.scale)),
    ]


BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    "start": http.start,
    "run": http.run,
    "user": http.user,
    "follow": ends.follow,
    "exit": ends.exit_,
    "live": live,
    "finished": finished,
    "embedded": embedded.embedded,
    "embedded-large": embedded.large,
    "cpu": embedded.cpu,
    "output": _output,
}
"""Those that run unless some are named."""

ON_REQUEST: Final[Mapping[str, Benchmark]] = {
    "quiet": http.quiet,
    "embedded-quiet": embedded.quiet,
    "integrity": _integrity,
    "budget": budget,
    "profile": profile,
}
"""Those that must be named: they take minutes of waiting, or measure something else than time."""
