"""Case 29: texts that no kernel takes as arguments, environment, directory or user, by hypothesis.

Besides, tests/test_requests.py has the known ones, with the code and the field
of each.
"""

from __future__ import annotations

from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor import LaunchError, ProcessSpec, SpecError, open_supervisor

from ..heavy import amount

_odd = st.text(
    st.sampled_from("\0=/.\n\x7f\ud800\udfff\udc80\U0010ffff\u202e a"), max_size=6
) | st.sampled_from(
    ["", "/", ".", "..", "true", "x" * 300, "x/" * 3000, "/dev/null", "/proc/self/fd/0"]
)
_specs = st.fixed_dictionaries(
    {"command": _odd | st.just("true")},
    optional={
        "args": st.lists(_odd, max_size=3).map(tuple),
        "env": st.dictionaries(_odd, _odd, max_size=3),
        "working_dir": _odd,
        "user": _odd,
    },
)


def test_a_text_that_cannot_be_is_an_error_that_says_which() -> None:
    codes: set[str | None] = set()

    @settings(
        max_examples=amount(60, heavy=1000),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(_specs, min_size=10, max_size=20))
    def check(specs: list[dict[str, Any]]) -> None:
        codes.update(trio.run(_start, specs))

    check()
    # Something of each kind was there, and nothing without a kind.
    assert codes >= {None, "NUL_BYTE", "INVALID_TEXT", "BAD_ENVIRONMENT_NAME", "INVALID_SPEC"}
    assert not codes & {"LAUNCH_FAILED", "KILLED_BEFORE_EXEC"}


async def _start(specs: list[dict[str, Any]]) -> set[str | None]:
    """Start them all; the codes of the errors, and None for a success."""
    codes: set[str | None] = set()
    async with open_supervisor() as supervisor:
        for fields in specs:
            try:
                process = await supervisor.start(ProcessSpec(**fields))
            except (SpecError, LaunchError) as error:
                codes.add(error.code)
            else:
                codes.add(None)
                await process.wait()
    return codes
