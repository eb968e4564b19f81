from __future__ import annotations

import pytest

from pipeline.executors import Finished, Lost, Started
from pipeline.plan import Unit
from pipeline.report import Tally
from pipeline.shards.format import ShardRecord
from pipeline.sources.piece import Piece
from pipeline.throughput import NOW_S, Throughput, WorkerState
from pipeline.unit import Progress, UnitRecord


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def unit(index: int, size_bytes: int = 1000) -> Unit:
    return Unit(index=index, source="web", pieces=(Piece("a", "1", 0, size_bytes, size_bytes),))


def record(index: int, *, tokens: int, size_bytes: int = 1000, kept: int = 3, read: int = 4) -> UnitRecord:
    shard = ShardRecord(path="a", documents=kept, tokens=tokens, size_bytes=1, digest="")
    tally = Tally(documents_in=read, documents_kept=kept)
    return UnitRecord(
        index=index, source="web", size_bytes=size_bytes, shards={"train": (shard,)}, tally=tally, seconds=1.0
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_speed_and_time_left_are_those_of_this_attempt(clock: Clock) -> None:
    throughput = Throughput(map(unit, range(4)), [record(0, tokens=500)], clock=clock)
    clock.now += 10
    throughput.note(Finished(record(1, tokens=300)))
    snapshot = throughput.snapshot()
    # 1,000 bytes took 10 s, so the 2,000 left take 20 s
    assert (snapshot.tokens, snapshot.tokens_per_s_mean, snapshot.seconds_left) == (300, 30, 20)
    assert (snapshot.units_done, snapshot.units_total) == (2, 4)
    assert (snapshot.input_bytes_done, snapshot.input_bytes_total) == (2000, 4000)
    assert snapshot.kept_fraction == 0.75
    assert throughput.tokens == 300


def test_nothing_is_promised_before_anything_is_done(clock: Clock) -> None:
    snapshot = Throughput([unit(0)], [], clock=clock).snapshot()
    assert (snapshot.seconds_left, snapshot.kept_fraction, snapshot.tokens_per_s_now) == (None, None, 0)


def test_units_under_way_count_as_far_as_they_are(clock: Clock) -> None:
    throughput = Throughput([unit(0), unit(1)], [], clock=clock)
    throughput.note(Started(unit(0), worker="pid 7"))
    clock.now += 5
    throughput.note(Progress(unit=0, input_bytes=400, tokens=100))
    clock.now += 5
    snapshot = throughput.snapshot()
    assert (snapshot.input_bytes_done, snapshot.tokens, snapshot.seconds_left) == (400, 100, 40)
    assert snapshot.workers == (WorkerState("pid 7", 0, "web", 1000, 400, 100, seconds=10),)


def test_what_a_lost_worker_told_no_longer_counts(clock: Clock) -> None:
    throughput = Throughput([unit(0)], [], clock=clock)
    throughput.note(Started(unit(0), worker="pid 7"))
    throughput.note(Progress(unit=0, input_bytes=400, tokens=100))
    clock.now += 1
    throughput.snapshot()
    throughput.note(Lost(unit(0), how="was killed"))
    clock.now += 1
    snapshot = throughput.snapshot()
    assert (snapshot.input_bytes_done, snapshot.tokens, snapshot.workers) == (0, 0, ())
    assert snapshot.tokens_per_s_now == 0


def test_a_finished_unit_replaces_its_progress(clock: Clock) -> None:
    throughput = Throughput([unit(0), unit(1)], [], clock=clock)
    throughput.note(Started(unit(0), worker="pid 7"))
    throughput.note(Progress(unit=0, input_bytes=999, tokens=90))
    throughput.note(Finished(record(0, tokens=100)))
    clock.now += 1
    snapshot = throughput.snapshot()
    assert (snapshot.input_bytes_done, snapshot.tokens, snapshot.workers) == (1000, 100, ())


def test_the_rate_of_now_forgets_what_is_long_past(clock: Clock) -> None:
    throughput = Throughput(map(unit, range(9)), [], clock=clock)
    throughput.note(Finished(record(0, tokens=60_000)))
    for _ in range(int(NOW_S) * 2):
        clock.now += 1
        throughput.snapshot()
    throughput.note(Finished(record(1, tokens=300)))
    snapshot = throughput.snapshot()
    assert snapshot.tokens_per_s_mean == 60_300 / 60
    assert snapshot.tokens_per_s_now == 300 / 30


def test_none_and_other_news_change_nothing(clock: Clock) -> None:
    throughput = Throughput([unit(0)], [], clock=clock)
    clock.now += 1
    before = throughput.snapshot()
    for message in (None, "news", Progress(unit=5, input_bytes=1, tokens=1)):
        throughput.note(message)
    assert throughput.snapshot() == before
