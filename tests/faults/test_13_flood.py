"""A flood of output: memory and disk stay within their bounds, and what is missing is told.

`test_output_bounds` has the bounds of many floods at once; here a daemon of its own is
measured while others use it.
"""

from __future__ import annotations

from pathlib import Path

import trio

from ..conftest import PATIENCE_SECONDS
from ..heavy import amount, figure
from ..test_outputs import _ended_by_url, _forget_peak, _peak_bytes
from ..test_server import serving
from ..wire import connect
from .witness import undisturbed

_MIB = 1024 * 1024
_BYTES = amount(300_000_000, heavy=10_000_000_000)
_KEPT = 64 * _MIB


async def test_a_flood_stays_within_the_bounds_and_is_told_to_be_incomplete(
    tmp_path: Path,
) -> None:
    options = ("--output-limit-bytes", str(_KEPT), "--state-dir", str(tmp_path / "state"))
    body = {"command": "sh", "args": ["-c", f"yes | head -c {_BYTES}; exit 4"]}
    async with serving(*options) as (daemon, url), await connect(url) as connection:
        await _ended_by_url(connection, {"command": "seq", "args": ["100000"]})  # To warm up.
        before = _forget_peak(daemon)
        async with undisturbed(daemon, url):
            began = trio.current_time()
            pid = (await connection.json("POST", "/processes", body))["pid"]
            largest = 0
            with trio.fail_after(PATIENCE_SECONDS * amount(1, heavy=10)):
                while True:
                    record = await connection.json("GET", f"/processes/{pid}")
                    largest = max(largest, _disk_bytes(tmp_path / "state"))
                    if record["status"] != "running":
                        break
                    await trio.sleep(0.01)  # Between looks at the disk.
            seconds = trio.current_time() - began
        grown = _peak_bytes(daemon) - before
        assert record["exit_code"] == 4
        assert record["output_kept_bytes"] + record["output_dropped_bytes"] == _BYTES
        assert 0 < record["output_kept_bytes"] <= _KEPT
        # What is kept is the end, and its beginning says what is missing.
        lines = await connection.json("GET", f"/processes/{pid}/stdout?limit=1")
        assert lines["missing_bytes"] == record["output_dropped_bytes"]
        assert lines["lines"] == ["y"]
    figure(
        f"{_BYTES / seconds / 1e6:.0f} MB/s, memory +{grown / _MIB:.0f} MiB, "
        f"disk at most {largest / _MIB:.0f} MiB"
    )
    assert grown < 96 * _MIB
    assert largest < 1.5 * _KEPT


def _disk_bytes(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # Removed meanwhile.
    return total
