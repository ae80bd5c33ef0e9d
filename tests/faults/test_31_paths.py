"""Case 31: odd paths and ids. They are nobody's, and the daemon opens no file for them.

Besides, tests/test_requests.py has the answers to odd segments, one by one.
"""

from __future__ import annotations

from pathlib import Path

import trio

from ..conftest import PATIENCE_SECONDS
from ..test_requests import ODD_SEGMENTS
from ..test_server import serving
from ..wire import connect
from .callers import dial, parse_answer, request, to_end

PATHS = [
    *(f"/api/v1/processes/{segment}" for segment in ODD_SEGMENTS),
    *(f"/api/v1/processes/{segment}/output/follow" for segment in ODD_SEGMENTS),
    "/../../../../etc/passwd",
    "/api/v1/../../etc/passwd",
    "/api/v1/%2e%2e/%2e%2e/etc/passwd",
    "/api/v1/..%5c..%5cetc%5cpasswd",
    "/api/v1/processes/%2e%2e%2f%2e%2e%2fetc%2fpasswd/stdout",
    "/api/v1/docs/../../../../etc/passwd",
    "/api/v1/docs%00.html",
    "/static/../app.py",
    "/static/app.py",
    "/api/v1//etc/passwd",
    "//etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "/api/v1/%252e%252e%252fetc%252fpasswd",
    "/api/v1/" + "../" * 500 + "etc/passwd",
    "/" + "%2e%2e%2f" * 500 + "etc/passwd",
    "/api/v1/processes?from=../../etc/passwd&handle=%2fetc%2fpasswd",
    "/api/v1/\xff\xfe",
    "*",
    "?",
    "@",
    "http://[::1/x",
    "http://%5b::1/x",
    "ftp://localhost/api/v1/health",
    "http://localhost/etc/passwd",
    "/%",
    "/;/#/?",
]


async def test_an_odd_path_opens_no_file(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with serving("--parked-launchers", "0") as (daemon, url):
        async with await connect(url) as connection:  # What is opened once is open now.
            for path in ("/health", "/processes/1", "/nothing", "/docs", "/processes/1/stdout"):
                await connection.request("GET", path)
        tracer = await trio.lowlevel.open_process(
            ["strace", "-f", "-e", "trace=%file", "-o", str(trace), "-p", str(daemon.process.pid)],
            stderr=-1,
        )
        assert tracer.stderr is not None
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                said = b""
                while b"attached" not in said:
                    said += await tracer.stderr.receive_some()
            for path in PATHS:
                for method in (b"GET", b"DELETE"):
                    async with await dial(url) as stream:
                        await stream.send_all(
                            b"%b %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                            % (method, path.encode("latin-1"))
                        )
                        answer = parse_answer(await to_end(stream), method)
                    if path.startswith("/api/v1/processes?") and method == b"GET":
                        assert answer.status == 200
                    else:
                        assert answer.status in (400, 404, 405), path[:100]
                        assert answer.code
            # One that does open files, as a proof that they would be seen.
            async with await dial(url) as stream:
                body = b'{"command": "no-such-command-anywhere"}'
                lines = ("Content-Type: application/json",)
                await stream.send_all(request("POST", "/processes", *lines, body=body))
                assert parse_answer(await to_end(stream)).code == "COMMAND_NOT_FOUND"
        finally:
            tracer.terminate()
            async with tracer.stderr:
                await tracer.wait()
        assert daemon.complaints == []
    seen = [line for line in trace.read_text("latin-1").splitlines() if '"' in line]
    # The start of the proof's process, before which there is nothing at all, but
    # for the cgroups that the daemon makes in its own time.
    begin = next(number for number, line in enumerate(seen) if "execve" in line)
    assert [line for line in seen[:begin] if "/sys/fs/cgroup/" not in line] == []
    assert any("no-such-command-anywhere" in line for line in seen[begin:])
