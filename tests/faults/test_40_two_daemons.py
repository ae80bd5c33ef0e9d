"""A second daemon on the same state directory refuses at once, and disturbs nobody."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import trio

from ..conftest import PATIENCE_SECONDS
from ..heavy import figure
from .lives import lives

_ROOT = Path(__file__).parent.parent.parent
_STANDS_STILL = """
import sys, trio
from pathlib import Path
from supervisor.store import OutputStore
with OutputStore(state_dir=Path(sys.argv[1]), outlives=True):
    print("locked", flush=True)
    sys.stdin.read()
"""


async def _refused(state_dir: Path) -> tuple[str, float]:
    began = time.perf_counter()
    with trio.fail_after(PATIENCE_SECONDS):
        result = await trio.run_process(
            [
                sys.executable,
                "-m",
                "api",
                "serve",
                "--bind=127.0.0.1:0",
                f"--state-dir={state_dir}",
            ],
            capture_stderr=True,
            check=False,
            cwd=_ROOT,
        )
    assert result.returncode == 1
    return result.stderr.decode(), time.perf_counter() - began


async def test_the_second_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        cat = await daemon.launch("exec cat", stdin_mode="pipe")
        message, seconds = await _refused(daemon.state_dir)
        assert "another supervisor uses it" in message
        figure(f"the second daemon has refused after {seconds * 1e3:.0f} ms, with status 1")
        assert (await daemon.record(cat["handle"]))["status"] == "running"
        assert len(daemon.keepers()) == 1
        await daemon.restart()
        assert (await daemon.record(cat["handle"]))["status"] == "running"


async def test_it_is_refused_too_while_the_keeper_of_a_dead_one_lives(tmp_path: Path) -> None:
    """Whoever has the lock has the directory; that it has not connected to the keeper changes nothing."""
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        cat = await daemon.launch("exec cat", stdin_mode="pipe")
        await daemon.kill()
        arguments = [sys.executable, "-c", _STANDS_STILL, str(daemon.state_dir)]
        process = await trio.lowlevel.open_process(arguments, stdin=-1, stdout=-1, cwd=_ROOT)
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            async with process.stdin, process.stdout:
                assert (await process.stdout.receive_some()).startswith(b"locked")
                message, _ = await _refused(daemon.state_dir)
                assert "another supervisor uses it" in message
        finally:
            process.kill()
            await process.wait()
        assert daemon.marked() == {cat["pid"]}
        await daemon.start()
        assert (await daemon.record(cat["handle"]))["status"] == "running"
