"""Lists of all processes, a batch at a time.

There may be ten thousand, which is megabytes of JSON. Whole, they would hold up
everybody else while they are encoded, and stay in memory for as long as a client
likes to take to read them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import msgspec
from quart import Request, Response
from quart.wrappers.response import DataBody, ResponseBody

from supervisor import Process, ProcessNotFound, Supervisor

from .bodies import LivingBody
from .schemas import ProcessUsage

_encoder = msgspec.json.Encoder()

_BATCH_BYTES = 64 * 1024

Describe = Callable[[Process], msgspec.Struct]


async def list_all(supervisor: Supervisor, request: Request) -> Response:
    """GET /processes"""
    return _list(supervisor, request, supervisor.processes(), lambda process: process.record)


async def usage_of_all(supervisor: Supervisor, request: Request) -> Response:
    """GET /usage"""
    running = [process for process in supervisor.processes() if process.status == "running"]
    return _list(supervisor, request, running, describe_usage)


def describe_usage(process: Process) -> ProcessUsage:
    """What a process has used."""
    return ProcessUsage(process.handle, process.pid, process.usage, process.oom_kills)


def _list(
    supervisor: Supervisor, request: Request, processes: list[Process], describe: Describe
) -> Response:
    rest = ListBody(supervisor, processes, describe)
    begin = rest.read_batch()
    body: ResponseBody = DataBody(begin)
    if not rest.is_over:
        body = DataBody(b"") if request.method == "HEAD" else rest
        rest.put_back(begin)
    response = Response(body, content_type="application/json")
    if rest.is_over:
        response.content_length = len(begin)
    response.timeout = None
    return response


class ListBody(LivingBody):
    """An object of `processes`, without those that are forgotten before their turn.

    Attributes:
      is_over: whether the last batch has been read.
    """

    def __init__(
        self, supervisor: Supervisor, processes: list[Process], describe: Describe
    ) -> None:
        self._supervisor = supervisor
        self._describe = describe
        # Not the processes, which would keep their outputs.
        self._handles = array("Q", [process.handle for process in processes])
        self._next = 0
        self._begin = b""
        self._separator = b'{"processes":['
        self.is_over = False

    def read_batch(self) -> bytes:
        """The next part of the text."""
        batch = bytearray()
        by_handle, describe = self._supervisor.by_handle, self._describe
        for handle in self._handles[self._next :]:
            if len(batch) >= _BATCH_BYTES:
                return bytes(batch)
            self._next += 1
            try:
                process = by_handle(handle)
            except ProcessNotFound:
                continue
            batch += self._separator
            _encoder.encode_into(describe(process), batch, -1)
            self._separator = b","
        batch += b"]}\n" if self._separator == b"," else self._separator + b"]}\n"
        self.is_over = True
        return bytes(batch)

    def put_back(self, begin: bytes) -> None:
        """Let the body begin with a batch that was read already."""
        self._begin = begin

    async def __anext__(self) -> bytes:
        begin, self._begin = self._begin, b""
        if not begin and self.is_over:
            raise StopAsyncIteration
        return begin or self.read_batch()
