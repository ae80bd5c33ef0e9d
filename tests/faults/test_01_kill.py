"""The daemon is killed at random instants under load: nothing is lost, doubled, wrong or left over."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from ..heavy import amount, figure
from .lives import GONE, WITHOUT_CGROUPS, Lives, lives

_KILLS = amount(3, heavy=100)
_EACH = amount(6, heavy=70)
_LONGEST_LIFE_SECONDS = amount(0.4, heavy=1.5)

# Without a fork for each pause: a read of the stdin that nobody writes to.
_CHATTY = """
for ((i = 0; ; i++)); do echo $i; echo e$i >&2; read -t 0.0$((RANDOM %% 5 + 1)) x && break; done
echo end $i; exit %d
"""
_FLOOD = "seq %d; seq -f e%%.0f %d >&2; read x; seq %d; exit %d"
_FLOOD_LINES = 300_000
_SIGNALS = (1, 2, 6, 9, 11, 15)
# How much those that are fed write depends on the machine; none of it is to be forgotten.
_RETENTION = ("--retain-output-bytes", str(2**34), "--output-total-bytes", str(2**34))


class Load:
    """Processes of each kind, and what is known of them."""

    def __init__(self, daemon: Lives) -> None:
        self.daemon = daemon
        self.checks: list[
            tuple[dict[str, Any], Callable[[dict[str, Any], bytes, bytes], None]]
        ] = []
        self.fed: list[Fed] = []
        self.to_end: list[dict[str, Any]] = []
        self.bytes = 0

    async def start(self, seconds: float) -> None:
        """All of it; those that end by themselves do so within that time."""
        for number in range(_EACH):
            code = number % 200 + 1
            chatty = await self.daemon.launch(_CHATTY % code, stdin_mode="pipe")
            self.to_end.append(chatty)
            self.checks.append((chatty, _check_chatty(code)))
            silent = await self.daemon.launch("exec sleep 1000")
            self.checks.append((silent, _check_silent))
            pause = random.uniform(0, seconds)
            exiting = await self.daemon.launch(f"echo a; sleep {pause}; echo b >&2; exit {code}")
            self.checks.append((exiting, _check_exit(code, None)))
            signum = _SIGNALS[number % len(_SIGNALS)]
            pause = random.uniform(0, seconds)
            killed = await self.daemon.launch(
                f"ulimit -c 0; echo a; sleep {pause}; echo b >&2; kill -{signum} $$; sleep 9"
            )
            self.checks.append((killed, _check_exit(None, signum)))
            cat = await self.daemon.launch("exec cat", stdin_mode="pipe")
            fed = Fed(cat)
            self.fed.append(fed)
            self.to_end.append(cat)
            self.checks.append((cat, fed.check))
        for number in range(2):
            lines = _FLOOD_LINES
            flood = await self.daemon.launch(
                _FLOOD % (lines, lines, lines, number), stdin_mode="pipe"
            )
            self.to_end.append(flood)
            self.checks.append((flood, _check_flood(number)))


class Fed:
    """One that copies its stdin, and what it was given."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        # What was answered for, and what was not, in order.
        self.sent: list[tuple[bytes, bool]] = []
        self.refusals: list[bytes] = []
        self._next = 0

    async def feed(self, daemon: Lives) -> None:
        """Feed it until the daemon is gone."""
        path = f"/processes/{self.record['pid']}/stdin?handle={self.record['handle']}"
        async with daemon.connection() as connection:
            while True:
                size = random.choice((1, 10, 1000))
                data = b"".join([b"%d\n" % n for n in range(self._next, self._next + size)])
                self._next += size
                self.sent.append((data, False))
                answer = await connection.request("POST", path, raw=data)
                if connection.status != 204:
                    self.refusals.append(answer)
                    return
                self.sent[-1] = (data, True)
                await trio.sleep(random.uniform(0, 0.05))

    def check(self, record: dict[str, Any], stdout: bytes, stderr: bytes) -> None:
        """It has got what was answered for, whole and once, and of the rest what it may have got."""
        assert self.refusals == []
        assert (record["status"], record["exit_code"], stderr) == ("exited", 0, b"")
        assert _is_made_of(stdout, 0, self.sent, 0)
        assert record["stdin_accepted_bytes"] <= len(stdout)


def _is_made_of(text: bytes, at: int, sent: list[tuple[bytes, bool]], number: int) -> bool:
    """Whether the text from there on is all that was answered for, and beginnings of the rest."""
    while number < len(sent) and sent[number][1]:
        data = sent[number][0]
        if text[at : at + len(data)] != data:
            return False
        at += len(data)
        number += 1
    if number == len(sent):
        return at == len(text)
    data = sent[number][0]
    # All that it may have got is tried: two may begin alike.
    longest = 0
    while longest < len(data) and text[at : at + longest + 1] == data[: longest + 1]:
        longest += 1
    return any(_is_made_of(text, at + size, sent, number + 1) for size in range(longest, -1, -1))


def _check_chatty(code: int) -> Callable[[dict[str, Any], bytes, bytes], None]:
    def check(record: dict[str, Any], stdout: bytes, stderr: bytes) -> None:
        *lines, end = stdout.decode().splitlines()
        assert lines == [str(number) for number in range(len(lines))]
        assert end == f"end {len(lines) - 1}"
        assert stderr.decode().splitlines() == [f"e{number}" for number in range(len(lines))]
        assert (record["status"], record["exit_code"]) == ("exited", code)

    return check


def _check_silent(record: dict[str, Any], stdout: bytes, stderr: bytes) -> None:
    assert record["status"] == "running", record
    assert (stdout, stderr) == (b"", b"")


def _check_exit(
    code: int | None, signum: int | None
) -> Callable[[dict[str, Any], bytes, bytes], None]:
    def check(record: dict[str, Any], stdout: bytes, stderr: bytes) -> None:
        assert (record["exit_code"], record["signal"]) == (code, signum), record
        assert record["status"] == ("exited" if signum is None else "signaled"), record
        assert (stdout, stderr) == (b"a\n", b"b\n"), record

    return check


def _check_flood(code: int) -> Callable[[dict[str, Any], bytes, bytes], None]:
    def check(record: dict[str, Any], stdout: bytes, stderr: bytes) -> None:
        once = b"".join([b"%d\n" % number for number in range(1, _FLOOD_LINES + 1)])
        assert stdout == once + once
        assert stderr == b"".join([b"e%d\n" % number for number in range(1, _FLOOD_LINES + 1)])
        assert (record["status"], record["exit_code"]) == ("exited", code)
        assert record["output_spilled_bytes"] > len(once)

    return check


class Follower:
    """A client that follows one process, and comes back with the last id that it has got."""

    def __init__(self, record: dict[str, Any], stream: str) -> None:
        self._path = f"/processes/{record['pid']}/{stream}/follow?handle={record['handle']}"
        self._id: str | None = None
        self.lines: list[str] = []
        self.is_over = False

    async def follow(self, daemon: Lives) -> None:
        """Follow it until the daemon is gone, or it has ended."""
        headers = {} if self._id is None else {"Last-Event-ID": self._id}
        rest = b""
        async with (
            daemon.connection() as connection,
            connection.stream_body("GET", self._path, headers=headers) as body,
        ):
            async for data in body:
                *frames, rest = (rest + data).split(b"\n\n")
                for frame in frames:
                    self._take(frame)
        self.is_over = True

    def _take(self, frame: bytes) -> None:
        fields = {
            name: value for name, _, value in (line.partition(b": ") for line in frame.split(b"\n"))
        }
        if b"id" in fields:
            self._id = fields[b"id"].decode()
        assert fields.get(b"event") in (None, b"output", b"eof"), frame
        if fields.get(b"event") == b"output":
            self.lines.append(json.loads(fields[b"data"])["line"])


@pytest.mark.parametrize(
    ("under", "options"),
    [((), ()), (WITHOUT_CGROUPS, ("--parked-launchers", "0"))],
    ids=["cgroups, parked", "no cgroups, not parked"],
)
async def test_nothing_is_lost_by_kills_at_random_instants(
    tmp_path: Path, under: Sequence[str], options: Sequence[str]
) -> None:
    readopted: list[float] = []
    async with lives(tmp_path / "state", *_RETENTION, *options, under=under) as daemon:
        await daemon.start()
        load = Load(daemon)
        began = time.perf_counter()
        await load.start(_KILLS * (_LONGEST_LIFE_SECONDS + 0.6) / 2)
        figure(f"{len(load.checks)} processes started in {time.perf_counter() - began:.1f} s")
        followers = [Follower(record, "stdout") for record in load.to_end[:: max(1, _EACH // 3)]]
        for number in range(_KILLS):
            if number % 3:
                async with trio.open_nursery() as clients:
                    for fed in load.fed:
                        clients.start_soon(_until_gone, fed.feed, daemon)
                    for follower in followers:
                        clients.start_soon(_until_gone, follower.follow, daemon)
                    await trio.sleep(random.uniform(0, _LONGEST_LIFE_SECONDS))
                    await daemon.kill()
                before = time.perf_counter()
                await daemon.start()
                readopted.append(time.perf_counter() - before)
            else:  # While it is only starting.
                await daemon.kill()
                await daemon.spawn()
                await trio.sleep(random.uniform(0.1, _LONGEST_LIFE_SECONDS))
                await daemon.kill()
                await daemon.start()
            records = {record["handle"]: record for record in await daemon.records()}
            assert len(records) == len(load.checks)
            for started, _ in load.checks:
                assert records[started["handle"]]["pid"] == started["pid"]
                assert records[started["handle"]]["reason"] != "unknown"
        async with trio.open_nursery() as nursery:
            for follower in followers:
                nursery.start_soon(follower.follow, daemon)
            for record in load.to_end:
                async with daemon.connection() as connection:
                    path = f"/processes/{record['pid']}/stdin"
                    if (await daemon.record(record["handle"]))["args"][1].startswith("exec cat"):
                        pass
                    else:
                        await connection.request("POST", path, raw=b"x\n")
                    await connection.request("POST", f"{path}/close")
                    assert connection.status == 204
            for started, _ in load.checks:
                if "sleep 1000" not in started["args"][1]:
                    await daemon.ended(started)
        assert all(follower.is_over for follower in followers)
        total = 0
        for started, check in load.checks:
            record = await daemon.record(started["handle"])
            stdout, stderr = [await daemon.raw(started, name) for name in ("stdout", "stderr")]
            total += len(stdout) + len(stderr)
            check(record, stdout, stderr)
        for follower in followers:
            assert follower.lines
        for record in load.to_end[:: max(1, _EACH // 3)]:
            follower = followers.pop(0)
            lines = (await daemon.raw(record, "stdout")).decode().splitlines()
            assert follower.lines == lines
        running = {r["pid"] for r in await daemon.records() if r["status"] == "running"}
        assert daemon.marked() == running
        times = sorted(readopted)
        figure(
            f"{_KILLS} kills, {len(load.checks)} processes, {total} bytes, 0 lost; serving again "
            f"after {times[len(times) // 2] * 1e3:.0f} ms, at most {times[-1] * 1e3:.0f} ms"
        )


async def _until_gone(work: Callable[[Lives], Any], daemon: Lives) -> None:
    try:
        await work(daemon)
    except* GONE:
        pass


async def test_thousands_are_found_again(tmp_path: Path) -> None:
    count = amount(300, heavy=5000)
    # Three descriptors each: the usual hard limit is 20,000.
    body = {"command": "sleep", "args": ["1000"], "stderr_mode": "discard"}
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        pids: set[int] = set()
        async with daemon.connection() as connection:
            for _ in range(count):
                pids.add((await connection.json("POST", "/processes", body))["pid"])
        await daemon.restart()
        records = await daemon.records()
        assert {record["pid"] for record in records} == pids
        assert {record["status"] for record in records} == {"running"}
        first, again = daemon.seconds
        figure(
            f"{count} processes: serving after {again * 1e3:.0f} ms, {first * 1e3:.0f} with none"
        )
        stopped = time.perf_counter()
        daemon.command.process.send_signal(signal.SIGTERM)
        assert await daemon.command.exited() == 0
        figure(f"stopped in {time.perf_counter() - stopped:.1f} s")
        assert daemon.keepers() == set()
