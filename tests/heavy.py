"""How much the tests do: moderately in CI, and all that was asked for with `CRECHE_TEST_HEAVY=1`."""

from __future__ import annotations

import os
from typing import TypeVar

_Amount = TypeVar("_Amount")

IS_HEAVY = os.environ.get("CRECHE_TEST_HEAVY", "") == "1"


def amount(usual: _Amount, *, heavy: _Amount) -> _Amount:
    """One of the two."""
    return heavy if IS_HEAVY else usual


def figure(text: str) -> None:
    """Tell what a heavy run has measured (pytest -s shows it)."""
    if IS_HEAVY:
        print(f"\n  {text}")
