"""Bodies of responses that are made while they are sent."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Self

from quart.wrappers.response import ResponseBody


class LivingBody(ResponseBody):
    """A body that is iterated once, piece by piece, and never gathered or cut by the framework.

    The framework would gather a body for HEAD and for conditional requests, and
    cut it for ranges. These may be large, or last for hours; ranges and pages
    are their own business.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def __aiter__(self) -> Self:
        return self

    @abstractmethod
    async def __anext__(self) -> bytes:
        """The next piece."""

    async def convert_to_sequence(self) -> bytes:
        """Never."""
        raise NotImplementedError

    async def make_conditional(
        self, begin: int, end: int | None, max_partial_size: int | None = None
    ) -> int:
        """Never."""
        raise NotImplementedError
