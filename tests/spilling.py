"""Processes with large outputs of numbered lines, disks for them to go to, and whether all of it is there."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from typing import Any

import trio

from supervisor import (
    Gap,
    OutputLimits,
    OutputPolicy,
    Process,
    ProcessSpec,
    Supervisor,
)

from .conftest import PATIENCE_SECONDS
from .wire import Connection, connect

MIB = 1024 * 1024
# Which block of its disk a block of a file is (linux/fs.h).
_FIBMAP = 1
LINE_BYTES = 100
# Not above it in memory, with what a chunk takes besides its bytes.
SMALL_BYTES = 60_000


@contextmanager
def _mounted(directory: Path, *commands: str) -> Iterator[None]:
    """Run commands, of which the first mounts something at the directory; unmount it at the end."""
    try:
        for arguments in commands:
            subprocess.run([*arguments.split(), directory], check=True)
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A disk of 8 MiB at the directory."""
    directory.mkdir()
    with _mounted(directory, "mount -t tmpfs -o size=8m tmpfs"):
        yield


@contextmanager
def torn_disk(directory: Path) -> Iterator[Callable[[], None]]:
    """A disk of 32 MiB at the directory, and what makes the second half of what is on it unreadable."""
    image = directory.with_suffix(".image")
    with open(image, "wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", image], check=True)

    def tear() -> None:
        block_bytes = os.statvfs(directory).f_bsize
        blocks: list[int] = []
        for file in directory.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                for number in range(-(-os.fstat(opened.fileno()).st_size // block_bytes)):
                    (block,) = struct.unpack("i", ioctl(opened, _FIBMAP, struct.pack("i", number)))
                    blocks.append(block)
        os.truncate(image, sorted(blocks)[len(blocks) // 2] * block_bytes)

    with _mounted(directory, f"mount -o loop {image}"):
        (directory / "lost+found").rmdir()
        yield tear
    image.unlink()


@contextmanager
def read_only(state_dir: Path) -> Iterator[None]:
    """Nothing can be made or removed where the outputs are."""
    directory = state_dir / "output"
    with _mounted(
        directory, f"mount --bind {directory}", "mount -o remount,bind,ro"
    ):  # Of another mount: a file that is open for writing would prevent it.
        yield


def numbered(begin: int, end: int) -> bytes:
    """What `numbered_script` writes between two offsets."""
    first = begin // LINE_BYTES
    lines = b"".join([b"%099d\n" % number for number in range(first, -(-end // LINE_BYTES))])
    return lines[begin - first * LINE_BYTES : end - first * LINE_BYTES]


def numbered_script(size: int, begin: int = 0) -> str:
    """Writes numbered lines of 100 bytes."""
    lines = range(begin // LINE_BYTES, (begin + size) // LINE_BYTES)
    return f"seq -f %099.0f {lines.start} {lines.stop - 1}"


def shell_spec(
    script: str, *, stdin: bool = False, policy: OutputPolicy | None = None
) -> ProcessSpec:
    return ProcessSpec(
        command="sh",
        args=("-c", script),
        stdin_mode="pipe" if stdin else "closed",
        output_policy=policy,
    )


async def ended_process(
    supervisor: Supervisor, script: str, policy: OutputPolicy | None = None
) -> Process:
    process = await supervisor.start(shell_spec(script, policy=policy))
    with trio.fail_after(PATIENCE_SECONDS):
        await process.wait()
    return process


async def all_written(process: Process, position: int) -> None:
    """Wait until the process has written so much, and as much as can be is on disk."""
    cursor = process.log.cursor(process.log.end)
    with trio.fail_after(PATIENCE_SECONDS):
        while process.log.end < position or not process.log.is_settled:
            if process.log.end < position:
                await cursor.read()
            else:
                await trio.lowlevel.checkpoint()
    assert process.log.end == position


def is_spilled(process: Process, size: int) -> bool:
    """Whether all its output is kept, and what is only in memory is as little as it may be."""
    record = process.record
    only_in_memory = record.output_kept_bytes - record.output_spilled_bytes
    return record.output_kept_bytes == size and only_in_memory <= OutputLimits().memory_bytes


def files_of(state_dir: Path) -> list[Path]:
    return sorted((state_dir / "output").iterdir())


async def files_gone(state_dir: Path) -> None:
    """Wait until there is no file any more."""
    with trio.fail_after(PATIENCE_SECONDS):
        while files_of(state_dir):
            await trio.lowlevel.checkpoint()


async def check_lines(process: Process, *, follow: bool = True) -> tuple[int, int]:
    """A whole follow of numbered lines: everything is exact, gaps too. Missing bytes and lines."""
    place = missing_bytes = missing_lines = 0
    reader = process.lines(stream="stdout", follow=follow)
    is_over = False
    while not is_over:
        with trio.fail_after(PATIENCE_SECONDS):
            items = await reader.read(MIB)
        if not items:
            is_over = True
            items = reader.rest()
        for item in items:
            end = item.resume.stdout
            if isinstance(item, Gap):
                assert item.missing_bytes == end - place
                assert item.missing_lines == end // LINE_BYTES - place // LINE_BYTES
                missing_bytes += item.missing_bytes
                missing_lines += item.missing_lines
            else:
                assert numbered(place, end).removesuffix(b"\n") == item.text.encode()
            place = end
    assert place == process.log.end_offsets.stdout
    return missing_bytes, missing_lines


async def check_kept(process: Process, *, follow: bool = True) -> None:
    """Whatever is kept is read, and exact, and adds up with what is missing."""
    record = process.record
    read = 0
    with trio.fail_after(PATIENCE_SECONDS):
        async for chunk in process.output() if follow else process.log.cursor(stop=process.log.end):
            assert chunk.data == numbered(chunk.offset, chunk.offset + len(chunk.data))
            read += len(chunk.data)
    assert read == record.output_kept_bytes
    assert record.output_kept_bytes + record.output_dropped_bytes == process.log.end
    missing_bytes, _ = await check_lines(process, follow=follow)
    assert missing_bytes == record.output_dropped_bytes


@contextmanager
def without_descriptors(spare: int = 0) -> Iterator[None]:
    """No more than `spare` descriptors can be opened within this block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + spare, hard)
    )
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(spare):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def start_over_http(url: str, script: str, **more: object) -> dict[str, Any]:
    async with await connect(url) as connection:
        body = {"command": "sh", "args": ["-c", script], **more}
        started: dict[str, Any] = await connection.json("POST", "/processes", body)
        assert connection.status == 201
        return started


async def ended_over_http(url: str, script: str) -> dict[str, Any]:
    """The record of a process that has been started and has ended."""
    pid = (await start_over_http(url, script))["pid"]
    async with await connect(url) as connection:
        path = f"/processes/{pid}/output/follow"
        async with connection.stream_body("GET", path) as body:
            with trio.fail_after(PATIENCE_SECONDS):
                async for _ in body:
                    pass
        # The last of it is spilled after the end.
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                record: dict[str, Any] = await connection.json("GET", f"/processes/{pid}")
                unspilled = record["output_kept_bytes"] - record["output_spilled_bytes"]
                is_spilled = unspilled <= OutputLimits().memory_bytes
                if is_spilled or record["output_spill_error"] is not None:
                    return record


async def raw_stdout(connection: Connection, pid: int) -> bytes:
    data = await connection.request("GET", f"/processes/{pid}/stdout/raw")
    assert connection.status == 200
    return data
