"""One process, as its callers see it: what it is, what it wrote, and what can be done to it.

`life` drives it, through the few members at the end of the class.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import trio

from .cgroups import Leaf
from .chunk import BEGINNING, Offsets, Stream
from .cursor import Cursor
from .errors import (
    CgroupsUnavailable,
    InvalidSignal,
    ProcessNotRunning,
    SignalNotPermitted,
    StdinNotWritable,
)
from .lines import LineReader
from .output import OutputLog
from .patience import stood_still
from .record import End, ExitStatus, ProcessRecord, Reason, Status, Usage
from .spec import ProcessSpec
from .stdin import Stdin
from .unit import Unit

if TYPE_CHECKING:
    from .entries import Began, Found
    from .survival import Survival

UNKNOWN: Final = ExitStatus(None, None)
# What those have in common that have ended, which are many: nothing is in the
# scope, and nobody waits for the event, which is set.
_OVER: Final = trio.CancelScope()
_ENDED: Final = trio.Event()
_ENDED.set()
LOST: Final = End(exit_status=UNKNOWN, timed_out=False, oom_kills=0, members_killed=0, usage=None)
"""The end of a process that ended without a supervisor, and without a trace."""
# Most get none, so that this costs nothing.
_NO_SIGNALS: Final[frozenset[int]] = frozenset()


class Process:
    """A started process. Made by `Supervisor.start`, which owns its tasks.

    Everything here stays readable after the end, for as long as the caller or
    the supervisor's retention keeps the object.

    Attributes:
      handle: unique in the supervisor's life and never reused.
      spec: what was asked for.
      pid: the leader's process id.
      started_at: when it was started, integer ms since the epoch.
      duration_seconds: from start to exit on the monotonic clock; None while running.
      log: everything that it wrote.
      members_killed: descendants that were alive when the tree was killed.
      scope: surrounds its life; cancelled to end it by force.
      is_let_go: whether it goes on without this supervisor.
      key: of the request that has started it, if that may come again.
      began: what of it survives the supervisor, if anything does.
      signals_sent: numbers of the signals that were sent to it from here.
      kept_killed: descendants that were kept, and killed after its end.
    """

    __slots__ = (
        "_accepted_bytes",
        "_end",
        "_ended",
        "_exited_at",
        "_leaf",
        "_outlived",
        "_started_clock",
        "_stdin",
        "_survival",
        "_unit",
        "began",
        "duration_seconds",
        "handle",
        "is_let_go",
        "kept_killed",
        "key",
        "log",
        "members_killed",
        "pid",
        "scope",
        "signals_sent",
        "spec",
        "started_at",
    )

    def __init__(
        self, handle: int, spec: ProcessSpec, log: OutputLog, survival: Survival | None = None
    ) -> None:
        self._survival = survival
        self.began: Began | None = None
        self.key: str | None = None
        self.is_let_go = False
        self.handle = handle
        self.spec = spec
        self.log = log
        if survival is not None:
            # Without the process: that would be a cycle, and keep the files for longer.
            log.poured = partial(survival.note_poured, handle)
            if log.readership is not None:
                log.readership.noted = partial(survival.note_read, handle)
        self.scope = trio.CancelScope(shield=True)
        self.members_killed = 0
        self.kept_killed = 0
        self.pid = 0
        self.started_at = 0
        self.duration_seconds: float | None = None
        self._started_clock = 0.0
        self._unit: Unit | None = None
        self._stdin: Stdin | None = None
        # Under an earlier supervisor, where nothing can be written any more.
        self._accepted_bytes = 0
        self._exited_at: int | None = None
        self._end: End | None = None
        self._leaf: Leaf | None = None
        self._outlived: trio.Event | None = None
        self.signals_sent = _NO_SIGNALS
        self._ended = trio.Event()

    def __repr__(self) -> str:
        return f"<Process {self.handle} pid {self.pid} {self.status}: {self.command!r}>"

    @property
    def command(self) -> str:
        """The command as requested."""
        return self.spec.command

    @property
    def args(self) -> tuple[str, ...]:
        """The arguments as requested."""
        return self.spec.args

    @property
    def status(self) -> Status:
        """`running` until the end is complete, then how the leader ended."""
        if self._end is None:
            return "running"
        if self._end.exit_status.oom_killed:
            return "oom_killed"
        return "exited" if self._end.exit_status.signal is None else "signaled"

    @property
    def exit_code(self) -> int | None:
        """What the leader passed to exit(3), if `exited`."""
        return None if self._end is None else self._end.exit_status.exit_code

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the leader, if one did."""
        return None if self._end is None else self._end.exit_status.signal

    @property
    def reason(self) -> Reason | None:
        """Why it ended; like `status`, but `timed_out` if its timeout killed it."""
        status = self.status
        if status == "running":
            return None
        assert self._end is not None
        if self._end.exit_status == UNKNOWN:
            return "unknown"
        if self._end.timed_out and status == "signaled" and self.signal == signal.SIGKILL:
            return "timed_out"
        return status

    @property
    def ended_at(self) -> int | None:
        """When the leader exited, integer ms since the epoch; None while running."""
        return None if self._end is None else self._exited_at

    @property
    def usage(self) -> Usage | None:
        """What the unit has used, up to now or to its end; None without a cgroup."""
        if self._end is not None:
            return self._end.usage
        return None if self._leaf is None else self._leaf.usage()

    @property
    def oom_kills(self) -> int:
        """How often the kernel has killed in the unit for memory, up to now or to its end."""
        if self._end is not None:
            return self._end.oom_kills
        return 0 if self._leaf is None else self._leaf.oom_kills_if_told()

    @property
    def stdin_writable(self) -> bool:
        """Whether stdin is a pipe that is still open here."""
        return self._unit is not None and self._stdin is not None and self._stdin.writable

    @property
    def stdin_accepted_bytes(self) -> int:
        """How much of what was written to it the stdin pipe has taken."""
        return self._accepted_bytes if self._stdin is None else self._stdin.accepted_bytes

    @property
    def record(self) -> ProcessRecord:
        """A snapshot of all of this."""
        end, log, status = self._end, self.log, self.status
        has_ended = end is not None
        return ProcessRecord(
            handle=self.handle,
            pid=self.pid,
            status=status,
            exit_code=self.exit_code,
            signal=self.signal,
            oom_killed=status == "oom_killed",
            stdin_writable=self.stdin_writable,
            stdin_accepted_bytes=self.stdin_accepted_bytes,
            command=self.spec.command,
            args=self.spec.args,
            started_at=self.started_at,
            ended_at=self.ended_at,
            duration_us=self._duration_us if has_ended else None,
            output_kept_bytes=log.kept_bytes,
            output_dropped_bytes=log.dropped_bytes,
            output_spilled_bytes=log.spilled_bytes,
            output_spill_error=log.spill_error,
            reason=self.reason if has_ended else None,
            signaled_by=self._signaled_by if has_ended else None,
            oom_kills=self.oom_kills,
            members_killed=None if end is None else end.members_killed,
            usage=None if end is None else end.usage,
        )

    def output(self, position: int = 0, *, stream: Stream | None = None) -> Cursor:
        """Read the output from `position` on: an async iterator of chunks, live until the end."""
        return self.log.cursor(position, stream=stream)

    def lines(
        self,
        *,
        stream: Stream | None = None,
        resume: Offsets = BEGINNING,
        max_line_bytes: int | None = None,
        follow: bool = True,
    ) -> LineReader:
        """Read the output as lines: an async iterator, live until the end.

        Yields a `Line`, or a `Gap` where bytes are missing.

        Args: see `LineReader`.
        """
        return LineReader(
            self.log, stream=stream, resume=resume, max_line_bytes=max_line_bytes, follow=follow
        )

    async def wait(self) -> ProcessRecord:
        """Wait for the end and return the final record.

        Afterwards the output is complete, and nothing of the process is alive.
        Cancelling the wait leaves the process as it is.
        """
        await self._ended.wait()
        return self.record

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process's group.

        Raises:
          InvalidSignal: there is no such signal.
          ProcessNotRunning: the process has ended.
          SignalNotPermitted: it has become another user's.
        """
        if signum not in signal.valid_signals():
            raise InvalidSignal(f"there is no signal {signum}", field="signal")
        if self._unit is None:
            raise ProcessNotRunning(f"{self._name} is not running")
        self._send(self._unit, signum)

    async def kill(self) -> int:
        """SIGKILL the whole tree; returns how many processes that killed, once all are dead.

        0 if there was nothing left to kill, or nobody may kill it from here: where
        there are no cgroups, a leader that has become another user's. That is given
        a few seconds to end, and left to itself.
        """
        killed = 0
        if self._unit is not None:
            killed = self.kill_now(self._unit)
        await self._ended.wait()
        if self._outlived is not None:
            self.scope.cancel()
            await self._outlived.wait()
            killed += self.kept_killed
        return killed

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """SIGTERM the group, and SIGKILL what is left after the end, or after `grace_seconds`.

        If cancelled, the process may still be running.
        """
        if self._unit is not None:
            with suppress(SignalNotPermitted):
                self._send(self._unit, signal.SIGTERM)
                # A stopped process takes no SIGTERM before it is continued.
                self._unit.signal_group(signal.SIGCONT)
        while True:
            with trio.move_on_after(grace_seconds) as patience:
                await self._ended.wait()
            if not stood_still(patience):
                break
        await self.kill()

    async def freeze(self) -> None:
        """Stop the whole tree where it is, and return when it stands still.

        It takes no signal but SIGKILL until `thaw`, and its timeout goes on. A `thaw`
        or the end that comes first ends the wait, too.

        Raises:
          ProcessNotRunning: the process has ended.
          CgroupsUnavailable: only a cgroup can be frozen.
        """
        await self._freezable_leaf().freeze(True)

    async def thaw(self) -> None:
        """Let a frozen tree go on.

        Raises: as `freeze`.
        """
        await self._freezable_leaf().freeze(False)

    def _freezable_leaf(self) -> Leaf:
        if self._unit is None:
            raise ProcessNotRunning(f"{self._name} is not running")
        if self._leaf is None:
            raise CgroupsUnavailable("there are no cgroups here, so nothing can be frozen")
        return self._leaf

    async def write_stdin(self, data: bytes) -> None:
        """Write to stdin and return once the pipe has taken everything.

        While the pipe is full this waits for the process to read, and ends
        when the process does. Concurrent writes follow each other whole. If
        cancelled, a part of `data` may have been written; `stdin_accepted_bytes`
        tells.

        Raises:
          StdinNotWritable: not a pipe, closed, or no process reads it; it says
            how much of `data` was written before.
        """
        if self._stdin is None or self._unit is None:
            raise StdinNotWritable(f"stdin of {self._name} is not an open pipe")
        try:
            await self._stdin.write(data, self._note_accepted)
        finally:
            self._note_accepted()

    async def close_stdin(self) -> None:
        """Let the process read end-of-file after what was written. Repeating it is fine.

        Waits for the writes that came before.

        Raises:
          StdinNotWritable: stdin was never a pipe.
        """
        if self.spec.stdin_mode != "pipe":
            raise StdinNotWritable(f"stdin of {self._name} is not a pipe")
        if self._stdin is not None and self._unit is not None:
            await self._stdin.close()
            if self._survival is not None:
                self._survival.accept(self)

    def _note_accepted(self) -> None:
        if self._survival is not None:
            self._survival.accept(self)

    @property
    def _name(self) -> str:
        return f"process {self.handle} (pid {self.pid})"

    @property
    def _signaled_by(self) -> Literal["supervisor", "other"] | None:
        if self.status != "signaled":
            return None
        return "supervisor" if self.signal in self.signals_sent else "other"

    @property
    def _duration_us(self) -> int | None:
        if self._end is None or self.duration_seconds is None:
            return None
        return round(self.duration_seconds * 1_000_000)

    def _send(self, unit: Unit, signum: int) -> None:
        self._note_signal(signum)
        unit.signal_group(signum)

    def _note_signal(self, signum: int) -> None:
        if signum not in self.signals_sent:
            self.signals_sent |= {signum}
            if self._survival is not None:
                self._survival.signal(self, signum)

    # --- for `life` alone ---

    @property
    def was_killed(self) -> bool:
        """Whether it was sent a SIGKILL from here."""
        return signal.SIGKILL in self.signals_sent

    @property
    def started_clock(self) -> float:
        """When it was started, in seconds of the monotonic clock."""
        return self._started_clock

    @property
    def has_exited(self) -> bool:
        """Whether the leader has exited, which comes before the complete end."""
        return self._exited_at is not None

    @property
    def has_ended(self) -> bool:
        """Whether the end is complete."""
        return self._end is not None

    @property
    def end(self) -> End:
        """The complete end, which must have come."""
        assert self._end is not None
        return self._end

    def begin(self, unit: Unit, leaf: Leaf | None, stdin: Stdin | None) -> None:
        """The command is being executed."""
        self.pid = unit.leader
        if self.began is None:
            self.started_at = now_ms()
            self._started_clock = time.monotonic()
        else:
            self.started_at = self.began.started_at
            self._started_clock = self.began.started_clock
        self._unit = unit
        self._leaf = leaf
        self._stdin = stdin

    def kill_now(self, unit: Unit) -> int:
        """SIGKILL the whole tree without waiting; how many processes that were."""
        self._note_signal(signal.SIGKILL)
        try:
            killed = unit.kill()
        except SignalNotPermitted:
            # So nobody knows when it ends, and who waits for that must not wait for ever.
            self.scope.cancel()
            return 0
        self.members_killed = max(self.members_killed, killed)
        return killed + 1

    def let_go(self) -> None:
        """Watch it no longer, and leave it as it is."""
        self.is_let_go = True
        self.scope.cancel()

    def note_exit(self) -> None:
        """The leader has exited; the end is not complete yet."""
        self._exited_at = now_ms()
        self.duration_seconds = time.monotonic() - self._started_clock

    def be_outlived(self) -> None:
        """Descendants go on after the end, until `no_more_outlived`; `kill` is for them."""
        self.scope = trio.CancelScope(shield=True)
        self._outlived = trio.Event()

    def no_more_outlived(self) -> None:
        """Nothing of it is alive any more, or it is let go."""
        if self._outlived is not None:
            self._outlived.set()
            self._outlived = None

    def finish(self, end: End, *, is_outlived: bool) -> None:
        """The end is complete: close the log and make the status final, both at once.

        Args:
          is_outlived: whether descendants may go on.
        """
        self._end = end
        self._unit = self._leaf = None
        self.scope = _OVER
        if is_outlived:
            self.be_outlived()
        self.log.close()
        if self._stdin is not None and self._stdin.writable:
            # Whoever writes would wait for those that go on.
            self._stdin.close_now()
            self._note_accepted()
        if self._survival is not None:
            self._survival.finish(self)
        self._ended.set()
        self._ended = _ENDED

    def take_back(self, found: Found, *, has_ended: bool) -> None:
        """Know what an earlier supervisor knew."""
        began = self.began = found.began
        self.pid = began.pid
        self.started_at = began.started_at
        self._started_clock = began.started_clock
        self.signals_sent |= found.signals
        self._accepted_bytes = found.accepted_bytes
        if has_ended:
            ended = found.ended
            self._end = LOST if ended is None else ended.end
            self._exited_at = None if ended is None else ended.ended_at
            self.duration_seconds = None if ended is None else ended.duration_seconds
            self.log.spill_error = None if ended is None else ended.spill_error
            self.log.close()
            self._ended = _ENDED


def now_ms() -> int:
    """Integer milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
