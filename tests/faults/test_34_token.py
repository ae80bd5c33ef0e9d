"""Case 34: a token that is missing, wrong, or nearly right.

Besides, tests/test_guard.py has the forms of the header one by one, and that the
token is compared by `hmac.compare_digest` alone (which takes as long for any wrong
token of the right length), as bytes.
"""

from __future__ import annotations

import http.client

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from api.routes import PREFIX, ROUTES
from supervisor import Supervisor

from ..heavy import amount
from ..test_guard import TOKEN, ask, served
from .test_28_json import check_answer

_schemes = st.sampled_from([b"Bearer ", b"bearer\t", b"Basic ", b"", b"Bearer Bearer "])
_near = st.integers(0, len(TOKEN)).map(lambda length: TOKEN[:length]) | st.tuples(
    st.integers(0, len(TOKEN) - 1), st.integers(1, 255)
).map(lambda pair: TOKEN[: pair[0]] + bytes([pair[1]]) + TOKEN[pair[0] + 1 :])
_guesses = st.tuples(_schemes, _near | st.binary(max_size=40)).map(b"".join)


def _guess_everything(port: int) -> int:
    """Guess, by what hypothesis finds; how many guesses were wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    wrong = 0

    @settings(
        max_examples=amount(500, heavy=10_000), deadline=None, derandomize=True, database=None
    )
    @given(_guesses)
    def check(guess: bytes) -> None:
        nonlocal wrong
        try:
            connection.putrequest("GET", "/api/v1/processes")
            connection.putheader("Authorization", guess)
        except ValueError:
            connection.close()  # No header can have such a value.
            return
        connection.endheaders()
        answer = connection.getresponse()
        check_answer(answer)
        scheme, _, token = guess.partition(b" ")
        if scheme.lower() == b"bearer" and token.strip() == TOKEN:
            assert answer.status == 200
        else:
            wrong += 1
            assert answer.status in (400, 401)

    try:
        check()
    finally:
        connection.close()
    return wrong


async def test_no_guess_opens(supervisor: Supervisor) -> None:
    async with served(supervisor, token=TOKEN) as port:
        assert await trio.to_thread.run_sync(_guess_everything, port) > 100
    assert supervisor.total == 0


async def test_no_route_answers_a_stranger(supervisor: Supervisor) -> None:
    async with served(supervisor, token=TOKEN) as port:
        for route in ROUTES:
            path = (PREFIX + route.path.replace("{pid_or_name}", "1")).encode()
            for headers in (
                [(b"Host", b"localhost")],
                [(b"Host", b"localhost"), (b"Authorization", b"Bearer " + TOKEN[:-1])],
                # The last of several counts, so that none can be hidden behind another.
                [
                    (b"Host", b"localhost"),
                    (b"Authorization", b"Bearer " + TOKEN),
                    (b"Authorization", b"Bearer wrong"),
                ],
            ):
                answer = await ask(port, headers, method=route.method.encode(), path=path)
                assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
                assert answer.headers[b"www-authenticate"] == b"Bearer"
    assert supervisor.total == 0
