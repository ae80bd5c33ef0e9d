"""The settings of a supervisor."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from .registry import Retention
from .spec import Limits, OomScoreAdj, Umask, User
from .store import OutputLimits


class SupervisorConfig(Struct, frozen=True, kw_only=True):
    """Settings of a supervisor.

    Attributes:
      default_user: whom processes run as when their spec names no user; None
        for the supervisor's own user.
      environment: what every process's environment starts from; None for this
        program's own, as with `subprocess`: who embeds a supervisor writes both the
        program and what it starts. Variables of the daemon's settings (`CRECHE_*`) are
        always left out, and HOME, USER, LOGNAME and SHELL are of the process's user.
      retention: how long finished processes stay readable.
      limits: what each process may use, where its spec says nothing.
      umask: of processes whose spec has none, in octal such as `022`; None for
        this program's own.
      oom_score_adj: the same.
      descriptor_limits: soft and hard limit of descriptors (RLIMIT_NOFILE) of
        processes without a limit of `open_files`; None for this program's own. For
        programs that have raised theirs.
      no_new_privs: whether no process can gain privileges by executing something,
        whatever its spec says.
      use_cgroups: whether to give every process a cgroup, where the host allows it.
      parked_launchers: how many launches are kept prepared, to make starts quicker.
      subreaper: whether to take in the orphans that processes leave, and reap them
        (PR_SET_CHILD_SUBREAPER(2const)). PID 1 of a pid namespace should. It takes
        SIGCHLD, so only one supervisor of a program can, in its main thread.
      sole_parent: whether this program starts processes through this supervisor
        alone, so that every other child is an orphan. Else a subreaper reaps only
        those that are in a unit's cgroup, or in a session that neither they nor
        this program lead: it takes nobody else's exit, and leaves the zombies of
        orphans that show no such sign.
      output: how much output is kept, and what happens past that.
      state_dir: where outputs that are too large for memory are spilled to; None
        to keep all in memory. Made if it is not there. No two supervisors can
        share one. A program whose event loop is busy should lower
        `sys.setswitchinterval`, so that the threads that write get their turn.
      survives: whether all of this outlives a program that is killed, crashes, or
        executes another: the next supervisor on the same state directory goes on
        with it. Leaving the supervisor's block ends the processes all the same.
      grace_seconds: between SIGTERM and SIGKILL when the supervisor is left.
      drain_seconds: how long descendants that hold the output pipes may go on
        writing after the leader's exit, before they are killed.
    """

    default_user: str | User | None = None
    environment: dict[str, str] | None = None
    retention: Retention = Retention()
    limits: Limits = Limits()
    umask: Umask | None = None
    oom_score_adj: OomScoreAdj | None = None
    descriptor_limits: tuple[int, int] | None = None
    no_new_privs: bool = False
    use_cgroups: bool = True
    parked_launchers: int = 0
    subreaper: bool = False
    sole_parent: bool = False
    output: OutputLimits = OutputLimits()
    state_dir: Path | None = None
    survives: bool = False
    grace_seconds: float = 5.0
    drain_seconds: float = 0.05
