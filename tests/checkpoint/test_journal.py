"""Batches of a log: what is sent again after a crash is what was sent before."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from checkpoint.events import EventWriter
from checkpoint.journal import Journal, Row, journal_file, legal_name, read_batches, read_journal, shorten_param


def new_journal(**position: object) -> Journal:
    return Journal(tracking_uri="u", run_key="k", mlflow_run_id="r", **position)  # type: ignore[arg-type]


def write_metrics(path: Path, *values: tuple[int, float]) -> None:
    with EventWriter(path) as log:
        for step, value in values:
            log.write("metrics", step=step, loss=value)


def told(path: Path, journal: Journal, *, batch_rows: int = 1000) -> list[tuple[int, float]]:
    batches = read_batches(path, journal, batch_rows=batch_rows)
    return [(row.step, row.value) for batch in batches for row in batch.rows]


def test_repeated_steps_are_left_out_and_later_ones_go_on(tmp_path: Path) -> None:
    write_metrics(tmp_path / "log", (1, 9.0), (2, 8.0), (3, 7.0), (2, 8.5), (3, 7.5), (4, 6.0))
    assert told(tmp_path / "log", new_journal()) == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)]


def test_position_after_each_batch_goes_on_with_the_next_row(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_metrics(log, (1, 9.0), (2, 8.0), (1, 9.5), (2, 8.5), (3, 7.0), (4, 6.0), (5, 5.0))
    everything = told(log, new_journal())
    sent: list[tuple[int, float]] = []
    for batch in read_batches(log, new_journal(), batch_rows=2):
        sent += [(row.step, row.value) for row in batch.rows]
        rest = told(log, new_journal(offset=batch.offset, last_steps=batch.last_steps, timestamp_ms=batch.timestamp_ms))
        assert sent + rest == everything
    assert len(sent) == 5


def replayed_from(path: Path, *, batch_rows: int = 1000) -> int | None:
    """As a shipper finds it that reads the journal anew before every batch."""
    journal, tag = new_journal(), None
    while batch := next(iter(read_batches(path, journal, batch_rows=batch_rows)), None):
        batch.leave_at(journal := new_journal())
        tag = batch.tags.get("smollm2.replayed_from", tag)
    assert tag == (None if journal.replayed_from is None else str(journal.replayed_from))
    return journal.replayed_from


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
@pytest.mark.parametrize(
    ("told_losses", "parted_at"),
    [
        ([(1, 9.0), (2, 8.0), (3, 7.0)], None),
        ([(1, 9.0), (2, 8.0), (3, math.nan), (2, 8.0), (3, math.nan), (4, 6.0)], None),
        ([(1, 9.0), (2, 8.0), (3, 7.0), (2, 8.0), (3, 7.5), (4, 6.0)], 3),
        # a second resume parts earlier, and a third later
        ([(1, 9.0), (2, 8.0), (3, 7.0), (3, 7.5), (4, 6.0), (2, 8.5), (3, 7.0), (3, 1.0)], 2),
        # a second resume repeats what only the first one told
        ([(1, 9.0), (2, 8.0), (2, 8.0), (3, 7.0), (4, 6.0), (3, 7.0), (4, 6.5)], 4),
    ],
)
def test_step_where_a_repetition_parts_is_a_tag(
    tmp_path: Path, told_losses: list[tuple[int, float]], parted_at: int | None, batch_rows: int
) -> None:
    with EventWriter(tmp_path / "log") as log:
        for step, loss in told_losses:
            log.write("metrics", step=step, **{"train/loss": loss})
            # a speed that is never the same twice
            log.write("metrics", step=step, **{"train/tokens_per_second": log_size(tmp_path)})
    assert replayed_from(tmp_path / "log", batch_rows=batch_rows) == parted_at


def log_size(folder: Path) -> float:
    return float((folder / "log").stat().st_size)


def test_batches_hold_at_most_the_rows_asked_for(tmp_path: Path) -> None:
    write_metrics(tmp_path / "log", *((step, 1.0) for step in range(1, 8)))
    sizes = [len(batch.rows) for batch in read_batches(tmp_path / "log", new_journal(), batch_rows=3)]
    assert sizes == [3, 3, 1]


def test_nothing_new_makes_no_batch(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_metrics(log, (1, 9.0))
    (batch,) = read_batches(log, new_journal())
    batch.leave_at(journal := new_journal())
    assert list(read_batches(log, journal)) == []


def test_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_metrics(log, (1, 9.0))
    whole = log.stat().st_size
    with log.open("a") as file:
        file.write('{"timestamp_ms":1,"kind":"metrics","step":2,')
    (batch,) = read_batches(log, new_journal())
    assert batch.offset == whole


def test_row_has_the_timestamp_of_its_event(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"timestamp_ms":1234,"kind":"metrics","step":5,"fields":{"train/loss":2.5}}\n')
    (batch,) = read_batches(tmp_path / "log", new_journal())
    assert batch.rows == [Row("train/loss", 2.5, 1234, 5)]


def test_values_that_are_not_finite_become_nan_and_a_tag(tmp_path: Path) -> None:
    write_metrics(tmp_path / "log", (1, 2.0), (2, math.inf), (3, math.nan))
    (batch,) = read_batches(tmp_path / "log", new_journal())
    assert batch.rows[0].value == 2.0
    assert all(math.isnan(row.value) for row in batch.rows[1:])
    assert batch.tags == {"smollm2.not_finite.loss": "inf at step 2"}


def test_state_checkpoint_params_and_text_are_carried(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "log") as log:
        log.write("state", step=0, state="running")
        log.write("params", step=0, steps=10)
        log.write("checkpoint", step=5, path="checkpoints/step-00000005")
        log.write("text", step=5, text="once upon a time")
        log.write("incident", step=6, what="spike", text="loss spike: 9.1")
        log.write("attempt", step=9, attempt=1, exit_code=72, reason="a hang")
        log.write("state", step=10, state="failed")
    (batch,) = read_batches(tmp_path / "log", new_journal())
    assert batch.state == "failed"
    assert batch.params == [{"steps": 10}]
    assert batch.tags == {
        "smollm2.checkpoint": "checkpoints/step-00000005",
        "smollm2.last_incident": "loss spike: 9.1",
        "smollm2.last_failure": "attempt 1: a hang",
    }
    assert batch.texts == {5: "once upon a time"}


def test_long_param_ends_in_its_length_and_digest() -> None:
    short = shorten_param("x" * 7000)
    # sha256 of 7,000 times x begins with these digits (sha256sum)
    assert short.endswith("x … (7000 characters, sha256 bad0f0b22623cfba)")
    assert len(short) == 6000


def test_param_at_the_limit_is_kept() -> None:
    assert shorten_param("x" * 6000) == "x" * 6000


def test_names_keep_to_the_characters_of_mlflow() -> None:
    assert legal_name("data/mix[0]=web") == "data/mix_0__web"
    assert len(legal_name("k" * 300)) == 250


def test_spoilt_journal_is_made_again(tmp_path: Path) -> None:
    journal_file(tmp_path).parent.mkdir()
    journal_file(tmp_path).write_text('{"offset": ')
    assert read_journal(tmp_path) is None


def test_a_log_that_lost_lines_in_a_power_cut_is_read_on_from_where_it_lost_them(tmp_path: Path) -> None:
    """The trainer makes its log durable at each checkpoint; the service ships what it sees, and notes that durably."""
    log = tmp_path / "log"
    write_metrics(log, *((step, 9.0) for step in range(1, 11)))
    durable = log.read_bytes()
    time.sleep(0.002)
    write_metrics(log, *((step, 8.0) for step in range(11, 31)))
    journal = new_journal()
    for batch in read_batches(log, journal):
        batch.leave_at(journal)
    log.write_bytes(durable)
    time.sleep(0.002)
    with EventWriter(log) as again:
        again.write("params", step=10, world_size=4)
        again.write("state", step=10, state="failed", reason="no memory")
    (batch,) = read_batches(log, journal)
    assert (batch.params, batch.tags["smollm2.last_failure"]) == ([{"world_size": 4}], "failed: no memory")
    batch.leave_at(journal)
    write_metrics(log, *((step, 7.0) for step in range(11, 41)))
    # of the steps that were shipped before they were lost, the first telling stays
    assert told(log, journal) == [(step, 7.0) for step in range(31, 41)]
