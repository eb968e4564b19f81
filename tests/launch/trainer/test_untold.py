"""The event log after a kill between a checkpoint and its telling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checkpoint.events import EventWriter, events_file, read_events
from launch.trainer.untold import tell_untold

RUNNING = ("state", 0, {"state": "running"})
SAVED = ("checkpoint", 20, {"path": "checkpoints/step-00000020"})
FINISHED = ("state", 20, {"state": "finished"})


def write(run: Path, *events: tuple[Any, int, dict[str, Any]]) -> None:
    with EventWriter(events_file(run)) as log:
        for kind, step, fields in events:
            log.write(kind, step=step, **fields)


def told(run: Path) -> list[tuple[str, int, dict[str, Any]]]:
    return [(event.kind, event.step, dict(event.fields)) for event, _ in read_events(events_file(run))]


@pytest.mark.parametrize(
    "before", [(), (RUNNING,), (RUNNING, SAVED), (RUNNING, SAVED, ("state", 20, {"state": "failed"}))]
)
def test_finished_run_ends_told_once(tmp_path: Path, before: tuple[Any, ...]) -> None:
    write(tmp_path, *before)
    for _ in range(2):
        tell_untold(tmp_path, step=20, finished=True)
    assert told(tmp_path)[-1] == FINISHED
    assert told(tmp_path).count(SAVED) == told(tmp_path).count(FINISHED) == 1


def test_whole_log_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, RUNNING, SAVED, FINISHED)
    before = events_file(tmp_path).read_bytes()
    tell_untold(tmp_path, step=20, finished=True)
    assert events_file(tmp_path).read_bytes() == before


def test_resume_tells_the_checkpoint_only(tmp_path: Path) -> None:
    write(tmp_path, RUNNING, ("checkpoint", 10, {"path": "checkpoints/step-00000010"}))
    for _ in range(2):
        tell_untold(tmp_path, step=20, finished=False)
    assert told(tmp_path)[2:] == [SAVED]
