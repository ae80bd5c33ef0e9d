"""Fresh leaves, made ahead of need: making one costs more than the rest of joining it."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack
from typing import NamedTuple

import trio

from .leaf import Leaf
from .tree import CgroupTree

_logger = logging.getLogger(__name__)


class FreshLeaf(NamedTuple):
    """A leaf that nobody has joined, and the way to join it.

    Attributes:
      leaf: the caller owns it.
      joins: descriptors to join it by.
      closes_joins: owns those descriptors.
    """

    leaf: Leaf
    joins: tuple[int, ...]
    closes_joins: ExitStack


class LeafStock:
    """A few leaves in stock. A context manager that owns those that nobody has taken.

    A task must `run` it. An empty stock costs time, never more.
    """

    def __init__(self, tree: CgroupTree, size: int) -> None:
        self._tree = tree
        self._size = size
        self._leaves: deque[FreshLeaf] = deque()
        self._refill = trio.lowlevel.ParkingLot()

    def __enter__(self) -> LeafStock:
        return self

    def __exit__(self, *_: object) -> None:
        while self._leaves:
            fresh = self._leaves.popleft()
            with fresh.leaf, fresh.closes_joins:
                pass

    def take(self) -> FreshLeaf:
        """A fresh leaf, which is the caller's from here on.

        Raises:
          OSError: it cannot be made.
        """
        return self._leaves.popleft() if self._leaves else self._make()

    def refill(self) -> None:
        """Fill the stock up soon: to be called when a start is over, and not to be in its way."""
        if len(self._leaves) < self._size:
            self._refill.unpark_all()

    async def run(self) -> None:
        """Fill the stock up, until cancelled."""
        while True:
            while len(self._leaves) < self._size:
                try:
                    self._leaves.append(self._make())
                except OSError as error:
                    # Whoever needs one now gets this error too, and tells it.
                    _logger.info("no cgroup can be made in advance: %s", error)
                    break
                await trio.lowlevel.checkpoint()
            await self._refill.park()

    def _make(self) -> FreshLeaf:
        with ExitStack() as stack:
            leaf = stack.enter_context(self._tree.make_leaf())
            with ExitStack() as joins_stack:
                joins = leaf.open_joins(joins_stack)
                stack.pop_all()
                return FreshLeaf(leaf, joins, joins_stack.pop_all())
