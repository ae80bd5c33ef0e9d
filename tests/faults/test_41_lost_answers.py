"""The answer to a start is lost, and the client asks again with the same Idempotency-Key: one process."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from ..heavy import amount, figure
from ..wire import connect
from .lives import GONE, Lives, lives

_ROUNDS = amount(2, heavy=50)
_DUPLICATES = amount(10, heavy=50)


@asynccontextmanager
async def _losing_answers(url: str) -> AsyncIterator[str]:
    """The address of a proxy that hands requests on, and resets the connection when the answer comes."""
    host, _, port = url.removeprefix("http://").rpartition(":")

    async def handle(client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream(host, int(port)) as server:

            async def forward() -> None:
                async for data in client:
                    await server.send_all(data)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward)
                await server.receive_some(1)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        sockname = listeners[0].socket.getsockname()
        yield f"http://127.0.0.1:{sockname[1]}"
        nursery.cancel_scope.cancel()


async def _post(url: str, daemon: Lives, script: str, key: str) -> tuple[int, dict[str, Any]]:
    name, _, value = daemon.mark.partition("=")
    body = {"command": "sh", "args": ["-c", script], "env": {name: value}}
    async with await connect(url) as connection:
        answer = await connection.json("POST", "/processes", body, headers={"Idempotency-Key": key})
        return connection.status, answer


async def test_one_process_for_one_key(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        for number in range(_ROUNDS):
            script, key = f"exec sleep 1000.{number}", f"key-{number}"
            async with _losing_answers(daemon.url) as losing:
                lost = False
                try:
                    await _post(losing, daemon, script, key)
                except GONE:
                    lost = True
                assert lost
            if number % 2:
                await daemon.restart()
            answers = [await _post(daemon.url, daemon, script, key) for _ in range(2)]
            assert [status for status, _ in answers] == [201, 201]
            assert answers[0][1]["handle"] == answers[1][1]["handle"]
            records = await daemon.records()
            assert len(records) == number + 1
            assert daemon.marked() == {record["pid"] for record in records}
            status, refusal = await _post(daemon.url, daemon, "exit 1", key)
            assert (status, refusal["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
        await daemon.restart()
        status, refusal = await _post(daemon.url, daemon, "exit 1", "key-0")
        assert (status, refusal["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
        figure(f"{_ROUNDS} lost answers, {_ROUNDS // 2} with a kill: 0 duplicates")


async def test_the_process_of_a_key_may_have_ended_meanwhile(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        _, first = await _post(daemon.url, daemon, "exit 3", "key")
        await daemon.ended(first)
        await daemon.restart()
        _, second = await _post(daemon.url, daemon, "exit 3", "key")
        assert (second["handle"], second["exit_code"]) == (first["handle"], 3)


async def test_duplicates_at_once_are_one_also_across_a_kill(tmp_path: Path) -> None:
    async with lives(tmp_path / "state") as daemon:
        await daemon.start()
        for number in range(_ROUNDS):
            answers: list[tuple[int, dict[str, Any]]] = []

            async def ask(key: str, answers: list[tuple[int, dict[str, Any]]]) -> None:
                with suppress(*GONE):
                    answers.append(await _post(daemon.url, daemon, "exec sleep 1000", key))

            for with_kill in (True, False):
                async with trio.open_nursery() as nursery:
                    for _ in range(_DUPLICATES):
                        nursery.start_soon(ask, f"key-{number}", answers)
                    if with_kill:
                        await trio.sleep(random.uniform(0, 0.03))  # At any time.
                        await daemon.kill()
                if with_kill:
                    await daemon.start()
            assert len(answers) >= _DUPLICATES
            assert {status for status, _ in answers} == {201}
            assert len({answer["handle"] for _, answer in answers}) == 1
            records = await daemon.records()
            assert len(records) == number + 1
            assert daemon.marked() == {record["pid"] for record in records}
