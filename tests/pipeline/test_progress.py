from __future__ import annotations

import logging

import pytest

from pipeline import progress as progress_module
from pipeline.progress import ProgressDisplay, progress_line
from pipeline.report import Tally
from pipeline.shards.format import ShardRecord
from pipeline.unit import Progress, UnitRecord


def record(index: int, *, size_bytes: int, tokens: int) -> UnitRecord:
    shard = ShardRecord(path="a", documents=1, tokens=tokens, size_bytes=1, digest="")
    return UnitRecord(
        index=index, source="a", size_bytes=size_bytes, shards={"train": (shard,)}, tally=Tally(), seconds=1.0
    )


def test_speed_and_time_left_are_those_of_this_attempt() -> None:
    # 2 MB were there; 2 MB took 10 s, so the 4 MB left take 20 s
    line = progress_line(4_000_000, 8_000_000, before_bytes=2_000_000, tokens=500_000, elapsed_s=10.0)
    assert line == "50% of 8.0 MB, 500,000 tokens, 50,000 tokens/s, 0:00:20 left"


def test_no_time_is_promised_before_anything_is_done() -> None:
    assert progress_line(0, 8_000_000, 0, 0, 10.0) == "0% of 8.0 MB, 0 tokens, 0 tokens/s"


def test_without_a_terminal_there_is_a_line_when_the_last_is_old(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO), ProgressDisplay(total_bytes=1_000_000, done_bytes=0) as display:
        display.finish(record(0, size_bytes=400_000, tokens=100))
        display.update(Progress(unit=1, input_bytes=100_000, tokens=20))
        now = 109.0
        display.show()
        assert caplog.messages == []
        now = 110.0
        display.show()
        display.show()
    assert caplog.messages == ["50% of 1.0 MB, 120 tokens, 12 tokens/s, 0:00:10 left"]


def test_a_finished_unit_replaces_its_progress() -> None:
    with ProgressDisplay(total_bytes=10, done_bytes=0) as display:
        display.update(Progress(unit=0, input_bytes=3, tokens=20))
        display.finish(record(0, size_bytes=4, tokens=30))
        assert (display.tokens, display._done_bytes, display._under_way) == (30, 4, {})


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with ProgressDisplay(total_bytes=1 << 20, done_bytes=0) as display:
        display.finish(record(0, size_bytes=1 << 19, tokens=1000))
        display.show()
    assert " 50%|" in capsys.readouterr().err
