"""Forty steps with a journal, in a process of its own, of which single system calls can be made to fail.

    python -m tests.journal_steps DIRECTORY PIPE

splices from the pipe until that is empty, 100 bytes at a time; in between it
replaces a status, and has keys come and go. What has been done is printed, as soon as it is.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import NamedTuple

from .journal import Live, add, opened

SPLICED, STATUS, PASSING = 1, 2, 10
HEAD = b"a head that is longer than a status and what passes"
_SEGMENT_BYTES = 512


class Run(NamedTuple):
    """How it went.

    Attributes:
      returncode: of the process, negative if it was killed.
      live: what it knew to be in the journal and to count, at its end.
      taken: what it got out of the pipe.
      errors: what it was told.
      log: what strace and the journal say.
    """

    returncode: int
    live: Live
    taken: bytes
    errors: list[str]
    log: str


def run_steps(directory: Path, pipe: int, failures: tuple[str, ...]) -> Run:
    """Run it with failures that strace injects into its calls for the journal's files."""
    command = ["strace", "-f", "-q"]
    if not any(":signal=" in failure for failure in failures):
        command.append("--seccomp-bpf")  # Quicker, but it swallows signals.
    for number in range(1, 200):
        command += ["-P", str(directory / f"journal.{number}")]
    names = {failure.partition(":")[0] for failure in failures}
    command += ["-e", f"trace={','.join(names)}"]
    for failure in failures:
        command += ["-e", f"inject={failure}"]
    command += [sys.executable, "-m", __name__, str(directory), str(pipe)]
    done = subprocess.run(
        command,
        pass_fds=[pipe],
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    live: Live = {}
    taken, errors = b"", []
    for line in done.stdout.decode().splitlines():
        what, _, rest = line.partition(" ")
        if what == "spliced":
            live.setdefault(SPLICED, []).append((1, HEAD + bytes.fromhex(rest)))
        elif what == "status":
            live[STATUS] = [(1, bytes.fromhex(rest))]
        elif what == "passing":
            live[PASSING + int(rest)] = [(1, b"passing")]
        elif what == "passed":
            del live[PASSING + int(rest)]
        elif what == "error":
            errors.append(rest)
        if what in ("spliced", "read"):
            taken += bytes.fromhex(rest)
    return Run(done.returncode, live, taken, errors, done.stderr.decode())


def _main(directory: Path, pipe: int) -> None:
    live: Live = {}
    with opened(directory, live.get, _SEGMENT_BYTES) as journal:
        for step in count():
            try:
                data = journal.splice(SPLICED, 1, HEAD, pipe, 100)
            except BlockingIOError:
                break
            except OSError as error:
                print("error", error, flush=True)
                print("read", os.read(pipe, 100).hex(), flush=True)
            else:
                live.setdefault(SPLICED, []).append((1, HEAD + data))
                print("spliced", data.hex(), flush=True)
            try:
                status = b"%d" % step
                add(journal, live, STATUS, status, begins=True)
            except OSError as error:
                print("error", error, flush=True)
            else:
                print("status", status.hex(), flush=True)
            try:
                add(journal, live, PASSING + step, b"passing")
            except OSError as error:
                print("error", error, flush=True)
            else:
                print("passing", step, flush=True)
            if PASSING + step - 1 in live:
                try:
                    journal.end(PASSING + step - 1)
                except OSError as error:
                    print("error", error, flush=True)
                else:
                    del live[PASSING + step - 1]
                    print("passed", step - 1, flush=True)


if __name__ == "__main__":
    logging.basicConfig()
    _main(Path(sys.argv[1]), int(sys.argv[2]))
