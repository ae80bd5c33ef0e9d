"""Deadlines that passed while nothing could be done in time: this program, or the machine, stood still."""

from __future__ import annotations

import trio

# Far more than a busy event loop is late, so it was stopped (SIGSTOP, a frozen
# cgroup, a paused machine).
_STANDSTILL_SECONDS = 1.0


def stood_still(patience: trio.CancelScope) -> bool:
    """Whether a scope that has just been left was ended by a deadline that is long overdue.

    What was waited for may have stood still just as long, and nobody can tell.
    So whoever would now kill a process gives it the same time once more: that
    costs time, and never a process that has had none.
    """
    overdue = trio.current_time() - patience.deadline
    return patience.cancelled_caught and overdue > _STANDSTILL_SECONDS
