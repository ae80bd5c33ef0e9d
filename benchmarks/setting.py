"""What a run of the benchmarks is given: who competes, and how much effort is made."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from msgspec import Struct

from .contest import Contender
from .daemons import ByUrl, Creche, Recipe, SandboxAgent
from .programs import open_program


class Foreign(Struct, frozen=True):
    """A supervisor without an API like ours, which `foreign` asks in its own way.

    Attributes:
      name: in the tables.
      python: where it is installed.
    """

    name: str
    python: str

    def open(self, *, pause_seconds: float) -> AbstractContextManager[Contender]:
        """As a contender that starts processes, for the length of a block."""
        # Isolated: our engine has the name of a package of theirs.
        command = [self.python, "-I", str(Path(__file__).with_name("foreign.py")), self.name]
        return open_program(self.name, command, pause_seconds=pause_seconds)


class Setting(Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
      sandbox_agent: its recipe, where it is installed.
      versions: other checkouts of ours.
      others: daemons that run already.
      foreign: supervisors that are asked in their own ways.
      scale: of all rounds and durations; 1 takes the time that good figures take.
    """

    sandbox_agent: SandboxAgent | None = None
    versions: tuple[Creche, ...] = ()
    others: tuple[ByUrl, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    scale: float = 1.0

    @property
    def peers(self) -> tuple[Recipe, ...]:
        """The daemons that ours is measured against."""
        found = () if self.sandbox_agent is None else (self.sandbox_agent,)
        return (*found, *self.speakers)

    @property
    def speakers(self) -> tuple[Recipe, ...]:
        """Those of them that speak our contract."""
        return (*self.versions, *self.others)

    @property
    def daemons(self) -> tuple[Recipe, ...]:
        """Ours, and its peers."""
        return (Creche(), *self.peers)

    def scaled(self, number: float, *, least: int = 3) -> int:
        """So many rounds."""
        return max(least, round(number * self.scale))
