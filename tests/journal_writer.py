"""Writers of a journal, to be killed: each goes on with the output where the one before was killed.

    python -m tests.journal_writer DIRECTORY PIPE

starts one for every line that it reads, which prints its pid at once, or if the
line says `late`, when it has spliced; then how it has ended. Each reads what was recovered, splices from the pipe, and lets what has
become much go to the file `spilled`, which counts no more then.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from .journal import KIB, Live, opened
from .journal import entries_in as recovered_in

OUTPUT = 1
_SEGMENT_BYTES = 64 * KIB
_MUCH_BYTES = 100 * KIB


def pieces_in(live: Live) -> list[tuple[int, bytes]]:
    """Positions and data of the output that was in a journal."""
    return [
        (int.from_bytes(payload[:8], "little"), payload[8:]) for _, payload in live.get(OUTPUT, [])
    ]


def _write(directory: Path, pipe: int, *, is_late: bool) -> None:
    if not is_late:
        print(os.getpid(), flush=True)
    with open(directory / "spilled", "ab", buffering=0) as spilled:
        spilled_end = spilled.tell()
        live = recovered_in(directory)
        # Where the writer was killed after it had spilled, some is there twice.
        pieces = [
            (position, data)
            for position, data in pieces_in(live)
            if position + len(data) > spilled_end
        ]
        end = max([spilled_end, *(position + len(data) for position, data in pieces)])
        live = {OUTPUT: [(1, _payload(*piece)) for piece in pieces], 2: []}
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        with opened(directory, live.get, _SEGMENT_BYTES) as journal:
            while True:
                poll.poll()
                data = journal.splice(OUTPUT, 1, end.to_bytes(8, "little"), pipe, 64 * KIB)
                if not data:
                    return
                if is_late:
                    print(os.getpid(), flush=True)
                    is_late = False
                live[OUTPUT].append((1, _payload(end, data)))
                end += len(data)
                if end - spilled_end > _MUCH_BYTES:
                    for position, data in pieces_in(live):
                        spilled.write(data[max(0, spilled_end - position) :])
                        spilled_end = position + len(data)
                    live[OUTPUT] = []
                    journal.append(2, 1, b"a state that is replaced", begins=True)
                    live[2] = [(1, b"a state that is replaced")]


def _payload(position: int, data: bytes) -> bytes:
    return position.to_bytes(8, "little") + data


def _main(directory: Path, pipe: int) -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                _write(directory, pipe, is_late=line == "late\n")
                os._exit(0)
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
