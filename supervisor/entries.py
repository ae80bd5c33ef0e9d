"""What the journal says: of the supervisor itself, and of each process, entry by entry.

The journal (`journal`) knows keys, kinds and bytes. Here is what they mean: a
key is a handle, or `SELF`, and each kind of entry has its own form.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from .cgroups.mounts import OwnCgroups
from .chunk import Chunk, Counts
from .frames import decode_frame
from .journal import Recovered
from .record import End
from .spec import ProcessSpec

if TYPE_CHECKING:
    from .process import Process

_logger = logging.getLogger(__name__)

# The key of the supervisor itself.
SELF: Final = 0

# Kinds of entries.
OF_SELF: Final = 1
BEGAN: Final = 2
OUTPUT: Final = 4
ACCEPTED: Final = 5
SIGNALED: Final = 6
ENDED: Final = 7
READ: Final = 8
OVER: Final = 9
CAPTURED: Final = 10

NUMBER: Final = struct.Struct("<Q")
# Offsets of stdout and stderr. The holes are as wide as what was there once.
READ_TO: Final = struct.Struct("<8xQ8xQ")
# Of stdout and stderr: how many bytes, and then how many newlines.
_CAPTURED: Final = struct.Struct("<4Q")


class Self(Struct, array_like=True, gc=False):
    """Of the supervisor.

    Attributes:
      name: which it keeps.
      boot_id: of the boot in which its processes were started.
      handles: all below this may have been given out.
      cgroups: where those of its units are, which need not be where the next one is.
    """

    name: str
    boot_id: str
    handles: int
    cgroups: OwnCgroups | None = None


class Began(Struct, array_like=True, gc=False):
    """What is to be started.

    Attributes:
      spec: as asked for.
      pid: the launcher's, which becomes the leader's.
      started_at: as of the record.
      started_clock: the same on the monotonic clock, in seconds.
      timeout: seconds after which the tree is killed, or None.
      leaf: the name of its cgroup, or None.
      key: of the request that asked for it, or None.
      kept: the keeper's key of its descriptors.
    """

    spec: ProcessSpec
    pid: int
    started_at: int
    started_clock: float
    timeout: float | None
    leaf: str | None
    key: str | None
    kept: int


class Ended(Struct, array_like=True, gc=False):
    """How it ended.

    Attributes:
      end: as it is final.
      ended_at: when the leader exited.
      duration_seconds: how long it ran.
      ends, newlines: of the output, in both streams, also of what was not kept.
      spill_error: why the disk did not take or give some of it.
      unspilled_from: the position before which none of it was in memory alone;
        what else there is of that in the journal had been dropped.
    """

    end: End
    ended_at: int | None
    duration_seconds: float | None
    ends: tuple[int, int]
    newlines: tuple[int, int]
    spill_error: str | None = None
    unspilled_from: int = 0


_encoder = msgspec.msgpack.Encoder()
_self_decoder = msgspec.msgpack.Decoder(Self)
_began_decoder = msgspec.msgpack.Decoder(Began)
_ended_decoder = msgspec.msgpack.Decoder(Ended)


class Found:
    """What the journal says of one process.

    Attributes:
      handle: its.
      began: what was started.
      chunks: its output, as far as it is in the journal.
      accepted_bytes: by its stdin.
      signals: that were sent to it from here.
      ended: how it ended, if it is known to have.
      read_to: how far its output has been read; see `Readership.read_to`.
      is_over: whether none of its output was kept any more; see `OutputLog.is_over`.
    """

    def __init__(self, handle: int, entries: Iterable[tuple[int, bytes]]) -> None:
        self.handle = handle
        self.chunks: list[Chunk] = []
        self.accepted_bytes = 0
        self.signals: set[int] = set()
        self.ended: Ended | None = None
        self.read_to = (0, 0)
        self.is_over = False
        # Of stdout and stderr, what is known besides the chunks.
        self._ends = (0, 0)
        self._newlines = (0, 0)
        began: Began | None = None
        for kind, payload in entries:
            if kind == BEGAN:
                began = _began_decoder.decode(payload)
            elif kind == OUTPUT:
                self.chunks.append(decode_frame(payload))
            elif kind == ACCEPTED:
                (self.accepted_bytes,) = NUMBER.unpack(payload)
            elif kind == SIGNALED:
                self.signals.update(payload)
            elif kind == READ:
                self.read_to = READ_TO.unpack(payload)
            elif kind == OVER:
                self.is_over = True
            elif kind == CAPTURED:
                *ends, newlines, newlines_of_stderr = _CAPTURED.unpack(payload)
                self._ends, self._newlines = (ends[0], ends[1]), (newlines, newlines_of_stderr)
            elif kind == ENDED:
                self.ended = _ended_decoder.decode(payload)
                self._ends, self._newlines = self.ended.ends, self.ended.newlines
        if self.ended is not None:
            begin = self.ended.unspilled_from
            self.chunks = [chunk for chunk in self.chunks if chunk.position >= begin]
        if began is None:
            raise ValueError("no beginning")
        self.began = began

    def complete(self, counts: Counts) -> None:
        """Have these, which are of what was kept of the output, be of all of it."""
        # What is kept may say nothing of a stream of which nothing is.
        counts.ends[:] = map(max, counts.ends, self._ends)
        counts.newlines[:] = map(max, counts.newlines, self._newlines)


def self_of(recovered: Recovered) -> Self | None:
    """What the journal says of the supervisor."""
    for kind, payload in recovered.entries.get(SELF, ()):
        if kind == OF_SELF:
            return _self_decoder.decode(payload)
    return None


def found_in(recovered: Recovered) -> list[Found]:
    """The processes that the journal knows of, in the order of their handles."""
    found = []
    for handle, entries in sorted(recovered.entries.items()):
        if handle == SELF:
            continue
        try:
            found.append(Found(handle, entries))
        except (ValueError, msgspec.MsgspecError):
            # Checksums vouch for the bytes, so another version wrote them.
            _logger.error("what the journal says of process %d cannot be understood", handle)
    return found


def encode_self(own: Self) -> bytes:
    """The entry of the supervisor."""
    return _encoder.encode(own)


def encode_began(began: Began) -> bytes:
    """The entry of a start."""
    try:
        return _encoder.encode(began)
    except UnicodeEncodeError:
        # A Python caller may pass any bytes by surrogates. The process has got
        # them; a later supervisor only shows them.
        spec = began.spec
        shown = msgspec.structs.replace(
            spec,
            command=_shown(spec.command),
            args=tuple(map(_shown, spec.args)),
            env={_shown(name): _shown(value) for name, value in spec.env.items()},
            working_dir=None if spec.working_dir is None else _shown(spec.working_dir),
        )
        return _encoder.encode(msgspec.structs.replace(began, spec=shown))


def _shown(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "replace")


def encode_captured(counts: Counts) -> bytes:
    """The entry of how much there was of an output."""
    return _CAPTURED.pack(*counts.ends, *counts.newlines)


def encode_ended(process: Process) -> bytes:
    """The entry of an end."""
    counts = process.log.counts
    unspilled = process.log.unspilled
    return _encoder.encode(
        Ended(
            process.end,
            process.ended_at,
            process.duration_seconds,
            (counts.ends[0], counts.ends[1]),
            (counts.newlines[0], counts.newlines[1]),
            process.log.spill_error,
            unspilled[0].position if unspilled else 0,
        )
    )
