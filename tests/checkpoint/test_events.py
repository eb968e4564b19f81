"""The event log: whole lines, torn lines, and which telling of a step counts."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from checkpoint.events import EventError, EventWriter, MetricsFilter, read_events


def steps(path: Path, offset: int = 0) -> list[int]:
    return [event.step for event, _ in read_events(path, offset=offset)]


def test_events_come_back_as_written(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "log") as log:
        log.write("metrics", step=3, **{"train/loss": 2.5})
    ((event, offset),) = read_events(tmp_path / "log")
    assert (event.kind, event.step, event.fields) == ("metrics", 3, {"train/loss": 2.5})
    assert offset == (tmp_path / "log").stat().st_size


def test_reading_goes_on_at_an_offset(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "log") as log:
        for step in (1, 2, 3):
            log.write("metrics", step=step)
    offsets = [offset for _, offset in read_events(tmp_path / "log")]
    assert steps(tmp_path / "log", offsets[0]) == [2, 3]


def test_torn_line_is_not_read_before_it_is_whole(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "log") as log:
        log.write("metrics", step=1)
    with (tmp_path / "log").open("a") as file:
        file.write('{"timestamp_ms":1,"kind":"metr')
    assert steps(tmp_path / "log") == [1]


def test_next_writer_closes_a_torn_line_and_readers_skip_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"timestamp_ms":1,"kind":"metr')
    with EventWriter(tmp_path / "log") as log:
        log.write("metrics", step=2)
    assert steps(tmp_path / "log") == [2]


def test_line_that_is_no_event_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'\xff\xfe\n[1]\n{"timestamp_ms":1,"kind":"unknown","step":1,"fields":{}}\n')
    assert steps(tmp_path / "log") == []


def test_no_log_has_no_events(tmp_path: Path) -> None:
    assert steps(tmp_path / "log") == []


def test_unknown_kind_is_an_error(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "log") as log, pytest.raises(EventError, match="event kind 'metric', wanted one of"):
        log.write("metric", step=1)  # type: ignore[arg-type]


def test_value_that_is_not_json_is_an_error(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "log") as log, pytest.raises(EventError, match="at step 1 is not JSON"):
        log.write("metrics", step=1, loss=object())


def test_full_disk_is_an_error(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full on this system")
    (tmp_path / "log").symlink_to("/dev/full")
    with EventWriter(tmp_path / "log") as log, pytest.raises(OSError, match="No space left"):
        log.write("metrics", step=1)


def test_line_cut_short_by_the_disk_does_not_spoil_the_next(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventWriter(tmp_path / "log") as log:
        log.write("metrics", step=1)
        # room for 20 bytes more: the kernel takes these and no others
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "log").stat().st_size + 20, limits[1]))
        try:
            with pytest.raises(OSError, match="No space left"):
                log.write("metrics", step=2)
            with pytest.raises(OSError, match="File too large"):
                log.write("metrics", step=3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log.write("metrics", step=4)
        log.write("metrics", step=5)
    assert steps(tmp_path / "log") == [1, 4, 5]


def test_first_telling_of_a_step_counts(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "log") as log:
        for step, loss in ((1, 9.0), (2, 8.0), (2, 8.5), (3, 7.0)):
            log.write("metrics", step=step, loss=loss)
    metrics_filter = MetricsFilter()
    told = [metrics_filter.new_metrics(event) for event, _ in read_events(tmp_path / "log")]
    assert told == [{"loss": 9.0}, {"loss": 8.0}, {}, {"loss": 7.0}]


def test_keys_of_one_step_may_come_in_several_events(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "log") as log:
        log.write("metrics", step=1, **{"train/loss": 9.0})
        log.write("metrics", step=1, **{"validation/loss": 8.0})
    metrics_filter = MetricsFilter()
    told = [metrics_filter.new_metrics(event) for event, _ in read_events(tmp_path / "log")]
    assert told == [{"train/loss": 9.0}, {"validation/loss": 8.0}]
