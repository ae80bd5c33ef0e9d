"""The load generator for rates: wrk, whose one C thread outruns every daemon here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile

import msgspec
from msgspec import Struct

from .daemons import Daemon

_REPORT = """
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests": %d, "microseconds": %d, "errors": %d, "p50": %f, "p99": %f}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class Load(Struct, frozen=True):
    """What a daemon did under load.

    Attributes:
      requests: that were answered.
      microseconds: that it took.
      errors: of them, and connections that failed.
      p50, p99: of the latencies, in microseconds.
    """

    requests: int
    microseconds: int
    errors: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Successes per second."""
        return (self.requests - self.errors) / self.microseconds * 1e6


def is_installed() -> bool:
    """Whether there is a wrk."""
    return shutil.which("wrk") is not None


def put_load(daemon: Daemon, request: bytes, *, connections: int, seconds: float) -> Load:
    """Send the same request over and over, one at a time on each connection."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        # Made once: what it returns is sent as it is.
        literal = "".join(f"\\{byte:03d}" for byte in request)
        script.write(f'local wanted = "{literal}"\nrequest = function() return wanted end\n')
        script.write(_REPORT)
        script.flush()
        host, port = daemon.address
        whole = max(1, round(seconds))
        wrk = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "20s"]
        done = subprocess.run(
            [*wrk, "-s", script.name, f"http://{host}:{port}/"],
            capture_output=True,
            text=True,
            check=True,
            timeout=whole + 60,
        )
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=Load)


def version() -> str:
    """What wrk calls itself."""
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout
    return said.split("[")[0].removeprefix("wrk").strip() if said else "?"
