from __future__ import annotations

import logging
import sys
from typing import Any

import pytest

from pipeline import progress as progress_module
from pipeline.progress import MAX_WORKERS_SHOWN, ProgressDisplay, duration, progress_line, table
from pipeline.throughput import Snapshot, WorkerState


def snapshot(**fields: Any) -> Snapshot:
    default: dict[str, Any] = {
        "units_done": 4,
        "units_total": 8,
        "input_bytes_done": 4_000_000,
        "input_bytes_total": 8_000_000,
        "documents_in": 1000,
        "documents_kept": 970,
        "tokens_before": 0,
        "tokens": 500_000,
        "tokens_per_s_now": 60_000.0,
        "tokens_per_s_mean": 50_000.0,
        "input_bytes_per_s_now": 240_000.0,
        "input_bytes_per_s_mean": 200_000.0,
        "seconds": 10.0,
        "seconds_left": 20.0,
        "workers": (),
    }
    return Snapshot(**default | fields)


def worker(number: int) -> WorkerState:
    return WorkerState(f"pid {number}", number, "web", size_bytes=1000, input_bytes=250, tokens=8000, seconds=4.0)


class Frozen:
    """A throughput that stands still."""

    def __init__(self, content: Snapshot) -> None:
        self._content = content

    def snapshot(self) -> Snapshot:
        return self._content


def drawn(content: Snapshot) -> str:
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(content))
    return capture.get()


def test_a_line_tells_share_kept_tokens_rates_and_time_left() -> None:
    assert progress_line(snapshot()) == (
        "50% of 8.0 MB, 97.0% kept, 500,000 tokens, 60,000 tokens/s (mean 50,000), 0:00:20 left"
    )


def test_a_line_tells_only_what_is_known() -> None:
    line = progress_line(snapshot(documents_in=0, documents_kept=0, seconds_left=None))
    assert line == "50% of 8.0 MB, 500,000 tokens, 60,000 tokens/s (mean 50,000)"


def test_durations_have_hours() -> None:
    assert duration(3600 * 30 + 61.4) == "30:01:01"


def test_without_a_terminal_there_is_a_line_when_the_last_is_a_minute_old(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO), ProgressDisplay(Frozen(snapshot())) as display:  # type: ignore[arg-type]
        now = 159.0
        display.show()
        assert caplog.messages == []
        now = 160.0
        display.show()
        display.show()
    assert caplog.messages == [progress_line(snapshot())]


def test_the_table_has_the_sums_and_a_row_for_each_worker() -> None:
    lines = [" ".join(line.split()) for line in drawn(snapshot(workers=(worker(71), worker(72)))).splitlines()]
    assert lines[0].endswith("50% of 8.0 MB units 4 of 8 0:00:20 left")
    assert lines[1:5] == [
        "tokens/s now 60,000 mean 50,000",
        "MB/s now 0.2 mean 0.2",
        "tokens 500,000",
        "kept 97.0% of 1,000 documents",
    ]
    assert lines[5:] == [
        "worker unit source done tokens/s since",
        "pid 71 71 web 25% 2,000 0:00:04",
        "pid 72 72 web 25% 2,000 0:00:04",
    ]


def test_the_last_table_promises_nothing_and_has_no_workers() -> None:
    text = drawn(snapshot(input_bytes_done=8_000_000, units_done=8, seconds_left=0.0))
    assert "left" not in text
    assert "worker" not in text


def test_a_thousand_workers_do_not_fill_the_screen() -> None:
    text = drawn(snapshot(workers=tuple(map(worker, range(1000)))))
    assert len(text.splitlines()) == 5 + 1 + MAX_WORKERS_SHOWN + 1
    assert f"and {1000 - MAX_WORKERS_SHOWN} more" in text


def test_on_a_terminal_there_is_a_table_and_the_log_goes_above_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    before = sys.stderr
    handler = logging.StreamHandler(before)
    logging.getLogger().addHandler(handler)
    try:
        with ProgressDisplay(Frozen(snapshot())) as display:  # type: ignore[arg-type]
            assert handler.stream is not before
            logging.getLogger().warning("a worker died")
            display.show()
        assert handler.stream is before
        assert sys.stderr is before
    finally:
        logging.getLogger().removeHandler(handler)
    printed = capsys.readouterr().err
    assert "a worker died" in printed
    assert "97.0%" in printed
