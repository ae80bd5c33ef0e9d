"""A grandchild keeps the pipe: the exit is told on exit, whatever becomes of the grandchild.

`test_process` and `test_streams` have the grandchild that is killed then. Here
it is kept, too, and there are many who hold the pipes.
"""

from __future__ import annotations

import time
from typing import Literal
from uuid import uuid4

import pytest
import trio

from supervisor import Supervisor, SupervisorConfig

from ..conftest import PATIENCE_SECONDS
from ..heavy import figure
from ..kernel import running_with
from ..test_process import sh


@pytest.fixture(params=[True, False], ids=["cgroups", "sessions"])
def config(request: pytest.FixtureRequest) -> SupervisorConfig:
    return SupervisorConfig(use_cgroups=request.param)


@pytest.mark.parametrize(("descendants", "survivors"), [("kill", 0), ("keep", 5)])
async def test_the_exit_does_not_wait_for_who_holds_the_pipes(
    supervisor: Supervisor, descendants: Literal["kill", "keep"], survivors: int
) -> None:
    unique = f"1000.{uuid4().int % 10**9}"
    script = f"for i in 1 2 3 4 5; do sleep {unique} & done; read go; echo last; exit 3"
    process = await supervisor.start(sh(script, stdin_mode="pipe", descendants=descendants))
    with trio.fail_after(PATIENCE_SECONDS):
        while len(running_with(unique)) < 5:
            await trio.lowlevel.checkpoint()
        began = time.perf_counter()
        await process.close_stdin()
        record = await process.wait()
        figure(f"{(time.perf_counter() - began) * 1e3:.0f} ms to the exit, {descendants}")
    assert record.exit_code == 3
    assert await process.log.read_all("stdout") == b"last\n"
    assert len(running_with(unique)) == survivors
    await process.kill()
    assert running_with(unique) == set()
