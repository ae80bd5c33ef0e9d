"""The journal against a model of what counts, with any sequence of calls and any damage."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from supervisor.journal import Journal, read_journal

from .heavy import amount
from .journal import BOOT, Live, add, assert_all_live, entries_in, opened, pipe_ends

_SEGMENT_BYTES = 1024
_KEYS = st.integers(0, 5)
_SIZES = st.one_of(st.integers(0, 40), st.integers(0, 1500))


class Moment(NamedTuple):
    """What was, after some call.

    Attributes:
      oldest: the number of the oldest segment.
      newest: that of the newest.
      size: of the newest.
      live: what counted.
    """

    oldest: int
    newest: int
    size: int
    live: Live


class JournalModel(RuleBasedStateMachine):
    """Appends, splices, ends, reopens; and damages copies, in which nothing may be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.read_end, self.write_end = self.stack.enter_context(pipe_ends())
        self.live: Live = {}
        # Of each key, all that ever was appended. Every payload is another one.
        self.history: Live = {}
        self.count = 0
        self.moments: list[Moment] = []
        self.journal: Journal = opened(self.directory, self.live.get, _SEGMENT_BYTES)
        self.journal.__enter__()

    def teardown(self) -> None:
        self.journal.__exit__()
        self.stack.close()

    # --- calls ---

    @rule(key=_KEYS, size=_SIZES, begins=st.booleans())
    def append(self, key: int, size: int, begins: bool) -> None:
        payload = self._payload(size)
        add(self.journal, self.live, key, payload, begins=begins)
        self.history.setdefault(key, []).append((1, payload))
        self._note()

    @rule(key=_KEYS)
    def end(self, key: int) -> None:
        self.journal.end(key)
        self.live.pop(key, None)
        self._note()

    @rule(key=_KEYS, head=st.binary(max_size=20), size=_SIZES, most=st.integers(1, 1500))
    def splice(self, key: int, head: bytes, size: int, most: int) -> None:
        sent = self._payload(size)
        os.write(self.write_end, sent)
        spliced: list[bytes] = []
        while sum(map(len, spliced)) < len(sent):
            spliced.append(self.journal.splice(key, 2, head, self.read_end, max(most, 8)))
            entry = (2, head + spliced[-1])
            self.live.setdefault(key, []).append(entry)
            self.history.setdefault(key, []).append(entry)
            self._note()
        assert b"".join(spliced) == sent

    @rule(key=_KEYS, head=st.binary(max_size=2000))
    def splice_nothing(self, key: int, head: bytes) -> None:
        try:
            self.journal.splice(key, 2, head, self.read_end, 100)
        except BlockingIOError:
            self._note()
        else:
            raise AssertionError("the pipe was empty")

    @rule(key=_KEYS, count=st.integers(0, 10))
    def let_go(self, key: int, count: int) -> None:
        """The oldest entries cease to count, of which the journal learns when it asks."""
        if key in self.live:
            self.live[key] = self.live[key][count:]

    @rule()
    def reopen(self) -> None:
        self.journal.__exit__()
        recovered = read_journal(self.directory, BOOT)
        assert_all_live(recovered.entries, self.live)
        self.live = recovered.entries
        self.journal = Journal(
            self.directory, self.live.get, recovered, segment_bytes=_SEGMENT_BYTES
        )
        self.journal.__enter__()

    @invariant()
    def all_is_there(self) -> None:
        recovered = read_journal(self.directory, BOOT)
        assert not recovered.ignored_bytes
        assert_all_live(recovered.entries, self.live)
        self._assert_nothing_wrong(recovered.entries)

    # --- damage ---

    @precondition(lambda self: self.moments)
    @rule(back=st.integers(0, 3000))
    def cut_the_newest(self, back: int) -> None:
        """What had been written before the cut is there, unless it was already to be found elsewhere."""
        damaged, paths = self._copy()
        size = max(0, paths[-1].stat().st_size - back)
        os.truncate(paths[-1], size)
        recovered = entries_in(damaged)
        self._assert_nothing_wrong(recovered)
        newest = int(paths[-1].suffix[1:])
        before = [
            moment
            for moment in self.moments
            if moment.newest < newest or (moment.newest == newest and moment.size <= size)
        ]
        # Unless segments have gone since, because their states had been written behind the cut.
        if before and before[-1].oldest == int(paths[0].suffix[1:]):
            assert_all_live(recovered, before[-1].live)

    @precondition(lambda self: self.moments)
    @rule(data=st.data())
    def cut_any(self, data: st.DataObject) -> None:
        damaged, paths = self._copy()
        path = data.draw(st.sampled_from(paths))
        os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
        self._assert_nothing_wrong(entries_in(damaged))

    @precondition(lambda self: self.moments)
    @rule(data=st.data())
    def flip_a_bit(self, data: st.DataObject) -> None:
        before = entries_in(self.directory)
        damaged, paths = self._copy()
        path = data.draw(st.sampled_from(paths))
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, 8 * len(content) - 1))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        recovered = read_journal(damaged, BOOT)
        self._assert_nothing_wrong(recovered.entries)
        assert recovered.ignored_bytes or recovered.entries == before  # In padding.

    def _assert_nothing_wrong(self, recovered: Live) -> None:
        for key, entries in recovered.items():
            history = iter(self.history[key])
            assert all(entry in history for entry in entries), "not a subsequence"

    def _copy(self) -> tuple[Path, list[Path]]:
        damaged = self.directory / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        damaged.mkdir()
        paths = [Path(shutil.copy(path, damaged)) for path in self.directory.glob("journal.*")]
        return damaged, sorted(paths, key=lambda path: int(path.suffix[1:]))

    def _payload(self, size: int) -> bytes:
        self.count += 1
        return b"%08d" % self.count + b"x" * size

    def _note(self) -> None:
        numbers = sorted(int(path.suffix[1:]) for path in self.directory.glob("journal.*"))
        size = (self.directory / f"journal.{numbers[-1]}").stat().st_size
        live = {key: list(entries) for key, entries in self.live.items()}
        self.moments.append(Moment(numbers[0], numbers[-1], size, live))


TestJournalModel = JournalModel.TestCase
TestJournalModel.settings = settings(
    max_examples=amount(40, heavy=1000),
    stateful_step_count=50,
    deadline=None,
)
