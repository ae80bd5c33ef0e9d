"""What a run of the benchmarks is given: who competes, and how much effort is made."""

from __future__ import annotations

from msgspec import Struct

from .daemons import ByUrl, Creche, Recipe, SandboxAgent


class Setting(Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
      sandbox_agent: its recipe, where it is installed.
      others: daemons that run already.
      scale: of all rounds and durations; 1 takes the time that good figures take.
    """

    sandbox_agent: SandboxAgent | None = None
    others: tuple[ByUrl, ...] = ()
    scale: float = 1.0

    @property
    def peers(self) -> tuple[Recipe, ...]:
        """The daemons that ours is measured against."""
        if self.sandbox_agent is None:
            return self.others
        return (self.sandbox_agent, *self.others)

    @property
    def daemons(self) -> tuple[Recipe, ...]:
        """Ours, and its peers."""
        return (Creche(), *self.peers)

    def scaled(self, number: float, *, least: int = 3) -> int:
        """So many rounds."""
        return max(least, round(number * self.scale))
