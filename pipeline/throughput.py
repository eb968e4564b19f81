"""How far and how fast a run is: arithmetic on the messages of its workers. Prints and writes nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.executors import Finished, Lost, Started
from pipeline.plan import Unit
from pipeline.unit import Progress, UnitRecord

# the rate of now is that of so many seconds
NOW_S = 30.0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A unit in the hands of a worker; `seconds` since it got it."""

    worker: str
    unit: int
    source: str
    size_bytes: int
    input_bytes: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment of a run. Tokens, rates and `seconds_left` are of this attempt; `seconds_left` None: not known yet.

    Documents are those of finished units, earlier attempts' among them, which made `tokens_before`.
    """

    units_done: int
    units_total: int
    input_bytes_done: int
    input_bytes_total: int
    documents_in: int
    documents_kept: int
    tokens_before: int
    tokens: int
    tokens_per_s_now: float
    tokens_per_s_mean: float
    input_bytes_per_s_now: float
    input_bytes_per_s_mean: float
    seconds: float
    seconds_left: float | None
    workers: tuple[WorkerState, ...]

    @property
    def kept_fraction(self) -> float | None:
        """None before any document was read."""
        return self.documents_kept / self.documents_in if self.documents_in else None


@dataclass(slots=True)
class _UnderWay:
    unit: Unit
    worker: str
    since: float
    input_bytes: int = 0
    tokens: int = 0


class Throughput:
    """Bytes of input, documents and tokens, over all workers."""

    def __init__(
        self, units: Iterable[Unit], done: Iterable[UnitRecord], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`done` of `units` were done by an earlier attempt: they count as done, but not for the speed."""
        units = list(units)
        self._clock = clock
        self._started = clock()
        self._units_total = len(units)
        self._bytes_total = sum(unit.size_bytes for unit in units)
        self._units_done = self._bytes_before = self._bytes_done = 0
        self._documents_in = self._documents_kept = 0
        self.tokens = 0
        for record in done:
            self._add(record)
        self._bytes_before, self._tokens_before = self._bytes_done, self.tokens
        self.tokens = 0
        self._under_way: dict[int, _UnderWay] = {}
        self._recent: deque[tuple[float, int, int]] = deque([(self._started, 0, 0)])

    def note(self, message: Any) -> None:
        """Take in a message of an executor."""
        match message:
            case Started(item=Unit() as unit, worker=worker):
                self._under_way[unit.index] = _UnderWay(unit, worker, since=self._clock())
            case Progress(unit=index) if index in self._under_way:
                self._under_way[index].input_bytes = message.input_bytes
                self._under_way[index].tokens = message.tokens
            case Lost(item=Unit() as unit):
                self._under_way.pop(unit.index, None)
            case Finished(result=UnitRecord() as record):
                self._under_way.pop(record.index, None)
                self._add(record)

    def snapshot(self) -> Snapshot:
        now = self._clock()
        done_bytes = self._bytes_done + sum(unit.input_bytes for unit in self._under_way.values())
        tokens = self.tokens + sum(unit.tokens for unit in self._under_way.values())
        fresh_bytes = done_bytes - self._bytes_before
        seconds = max(now - self._started, 1e-9)
        bytes_now, tokens_now = self._rates_now(now, fresh_bytes, tokens)
        return Snapshot(
            units_done=self._units_done,
            units_total=self._units_total,
            input_bytes_done=done_bytes,
            input_bytes_total=self._bytes_total,
            documents_in=self._documents_in,
            documents_kept=self._documents_kept,
            tokens_before=self._tokens_before,
            tokens=tokens,
            tokens_per_s_now=tokens_now,
            tokens_per_s_mean=tokens / seconds,
            input_bytes_per_s_now=bytes_now,
            input_bytes_per_s_mean=fresh_bytes / seconds,
            seconds=seconds,
            seconds_left=(self._bytes_total - done_bytes) * seconds / fresh_bytes if fresh_bytes > 0 else None,
            workers=tuple(
                WorkerState(
                    worker=under_way.worker,
                    unit=under_way.unit.index,
                    source=under_way.unit.source,
                    size_bytes=under_way.unit.size_bytes,
                    input_bytes=under_way.input_bytes,
                    tokens=under_way.tokens,
                    seconds=now - under_way.since,
                )
                for under_way in self._under_way.values()
            ),
        )

    def _add(self, record: UnitRecord) -> None:
        self._units_done += 1
        self._bytes_done += record.size_bytes
        self._documents_in += record.tally.documents_in
        self._documents_kept += record.tally.documents_kept
        self.tokens += record.tokens

    def _rates_now(self, now: float, fresh_bytes: int, tokens: int) -> tuple[float, float]:
        """Of the last seconds; 0 where a lost worker's share has made them negative."""
        recent = self._recent
        if now > recent[-1][0]:
            recent.append((now, fresh_bytes, tokens))
        while len(recent) > 2 and recent[1][0] <= now - NOW_S:
            recent.popleft()
        then, bytes_then, tokens_then = recent[0]
        seconds = max(now - then, 1e-9)
        return max(0, fresh_bytes - bytes_then) / seconds, max(0, tokens - tokens_then) / seconds
