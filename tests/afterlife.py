"""Ending what outlives a daemon that was killed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from supervisor import StateDirUnusable
from supervisor.entries import SELF
from supervisor.keeper import open_keeper
from supervisor.survival import PIDFD

from .kernel import processes


async def end_what_outlives(state_dir: Path) -> None:
    """Kill the processes that the keeper of this directory holds, and end the keeper."""
    if not (state_dir / "keeper").exists():
        return
    try:
        async with open_keeper(state_dir) as keeper:
            for key, descriptors in keeper.held.items():
                if key != SELF:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(descriptors[PIDFD], signal.SIGKILL)
                for descriptor in descriptors.values():
                    os.close(descriptor)
            await keeper.end()
    except StateDirUnusable:
        # It is another user's, who alone is served.
        for entry in processes():
            if entry.arguments[:2] == ("creche-keeper", str(state_dir)):
                os.kill(entry.pid, signal.SIGKILL)
