"""Shipping to MLflow: what is told, in a database on disk. What fails on the way is in `outages/`."""

from __future__ import annotations

import fcntl
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint import tracking
from checkpoint.events import EventWriter, events_file
from checkpoint.journal import journal_file
from checkpoint.manifest import write_durably
from checkpoint.mlflow_connection import TrackingError
from checkpoint.mlflow_run import EXPERIMENT, KIND_TAG
from checkpoint.run_record import read_run, write_run
from checkpoint.tracking import Tracker

RunMaker = Callable[..., Path]
LogWriter = Callable[..., None]


@pytest.fixture
def tracker(empty_database: Path, tmp_path: Path) -> Tracker:
    database = shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Tracker(f"sqlite:///{database}", artifact_location=(tmp_path / "artifacts").as_uri())


def runs_of(tracker: Tracker) -> list[Any]:
    experiment = tracker.client.get_experiment_by_name(EXPERIMENT)
    return list(tracker.client.search_runs([experiment.experiment_id]))


def history(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    """All rows of a metric of the one run there is, by step."""
    (run,) = runs_of(tracker)
    rows = tracker.client.get_metric_history(run.info.run_id, key)
    return sorted((row.step, row.value) for row in rows)


def expected_losses(steps: int) -> list[tuple[int, float]]:
    return [(step, 10 - step / 10) for step in range(1, steps + 1)]


def test_every_step_arrives_with_its_value(tracker: Tracker, new_run: RunMaker, write_log: LogWriter) -> None:
    run = new_run()
    write_log(run, steps=20)
    tracker.ship_events(run)
    assert history(tracker, "train/loss") == expected_losses(20)
    assert history(tracker, "validation/loss") == [(20, 8.0)]


def test_rows_have_the_timestamps_of_the_log(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run()
    events_file(run).parent.mkdir()
    events_file(run).write_text('{"timestamp_ms":1234,"kind":"metrics","step":5,"fields":{"train/loss":2.5}}\n')
    run_id = tracker.ship_events(run)
    (row,) = tracker.client.get_metric_history(run_id, "train/loss")
    assert (row.timestamp, row.step, row.value) == (1234, 5, 2.5)


def test_replayed_steps_appear_once_as_first_told(tracker: Tracker, new_run: RunMaker, write_log: LogWriter) -> None:
    run = new_run()
    write_log(run, steps=20, state="running")
    tracker.ship_events(run)
    write_log(run, steps=30, first_step=11, loss_offset=10.0)
    tracker.ship_events(run)
    assert history(tracker, "train/loss") == expected_losses(30)


def test_step_where_a_resumed_run_parts_is_a_tag(tracker: Tracker, new_run: RunMaker, write_log: LogWriter) -> None:
    run = new_run()
    write_log(run, steps=20, state="running")
    tracker.ship_events(run)
    write_log(run, steps=30, first_step=11, loss_offset=9.0)
    run_id = tracker.ship_events(run)
    assert history(tracker, "train/loss")[9:12] == [(10, 9.0), (11, 8.9), (12, 8.8)]
    assert tracker.client.get_run(run_id).data.tags["smollm2.replayed_from"] == "11"


def test_deleted_journal_makes_no_second_row_and_no_second_run(
    tracker: Tracker, new_run: RunMaker, write_log: LogWriter
) -> None:
    run = new_run()
    write_log(run, steps=20, state="running")
    write_log(run, steps=30, first_step=11)
    tracker.ship_events(run)
    journal_file(run).unlink()
    tracker.ship_events(run)
    assert history(tracker, "train/loss") == expected_losses(30)


def test_deleted_database_is_filled_again(
    tracker: Tracker, empty_database: Path, new_run: RunMaker, write_log: LogWriter, tmp_path: Path
) -> None:
    run = new_run()
    write_log(run, steps=20)
    tracker.ship_events(run)
    other = Tracker(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'other.db')}")
    other.ship_events(run)
    assert history(other, "train/loss") == expected_losses(20)


def test_run_deleted_in_mlflow_is_sent_again(tracker: Tracker, new_run: RunMaker, write_log: LogWriter) -> None:
    run = new_run()
    write_log(run, steps=20)
    tracker.client.delete_run(tracker.ship_events(run))
    tracker.ship_events(run)
    assert history(tracker, "train/loss") == expected_losses(20)


def test_two_runs_are_kept_apart(tracker: Tracker, new_run: RunMaker, write_log: LogWriter) -> None:
    for name, key in (("first", "1" * 32), ("second", "2" * 32)):
        run = new_run(name, run_key=key)
        write_log(run, steps=3)
        tracker.ship_events(run)
    assert sorted(run.info.run_name for run in runs_of(tracker)) == ["first", "second"]


def test_values_that_are_not_finite_are_nan_with_a_tag(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run()
    with EventWriter(events_file(run)) as log:
        log.write("metrics", step=1, **{"train/loss": 2.0})
        log.write("metrics", step=2, **{"train/loss": math.inf})
    run_id = tracker.ship_events(run)
    (_, first), (_, second) = history(tracker, "train/loss")
    assert first == 2.0
    assert math.isnan(second)
    assert tracker.client.get_run(run_id).data.tags["smollm2.not_finite.train/loss"] == "inf at step 2"


def test_params_are_those_of_the_first_attempt_and_changes_are_tags(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run()
    for attempt in ({"steps": 10, "empty": "", "long": "x" * 7000}, {"steps": 20, "new": True}):
        with EventWriter(events_file(run)) as log:
            log.write("params", step=0, **attempt)
        run_id = tracker.ship_events(run)
    data = tracker.client.get_run(run_id).data
    assert data.params["steps"] == "10"
    assert data.params["new"] == "True"
    assert data.params["long"].endswith("(7000 characters, sha256 bad0f0b22623cfba)")
    assert data.tags["smollm2.changed.steps"] == "20"


@pytest.mark.parametrize(("state", "status"), [("finished", "FINISHED"), ("failed", "FAILED"), ("killed", "KILLED")])
def test_last_state_is_the_status(
    tracker: Tracker, new_run: RunMaker, write_log: LogWriter, state: str, status: str
) -> None:
    run = new_run()
    write_log(run, steps=2, state=state)
    assert tracker.client.get_run(tracker.ship_events(run)).info.status == status


def test_crashed_run_is_killed_and_runs_again_when_resumed(
    tracker: Tracker, new_run: RunMaker, write_log: LogWriter
) -> None:
    run = new_run()
    write_log(run, steps=2, state="running")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tracker.client.get_run(tracker.ship_events(run)).info.status == "RUNNING"
    assert tracker.client.get_run(tracker.ship_events(run)).info.status == "KILLED"
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_log(run, steps=4, first_step=3, state="running")
        assert tracker.client.get_run(tracker.ship_events(run)).info.status == "RUNNING"


def test_process_that_died_without_a_last_word_is_the_reason(
    tracker: Tracker, new_run: RunMaker, write_log: LogWriter
) -> None:
    run = new_run()
    write_log(run, steps=7, state="running")
    data = tracker.client.get_run(tracker.ship_events(run)).data
    assert data.tags["smollm2.last_failure"] == (
        "killed: its process ended without a last word; the last step that it told is 7"
    )
    assert data.tags["smollm2.state"] == "killed"


def test_attempt_that_its_supervisor_saw_end_is_the_reason_until_the_next_one_runs(
    tracker: Tracker, new_run: RunMaker, write_log: LogWriter
) -> None:
    run = new_run()
    write_log(run, steps=7, state="running")
    with EventWriter(events_file(run)) as log:
        log.write("attempt", step=7, attempt=1, exit_code=247, reason="exit code 247 (SIGKILL)", first_step=1)
    shipped = tracker.client.get_run(tracker.ship_events(run))
    assert shipped.info.status == "KILLED"
    assert shipped.data.tags["smollm2.last_failure"] == "attempt 1: exit code 247 (SIGKILL)"
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_log(run, steps=9, first_step=8, state="running")
        shipped = tracker.client.get_run(tracker.ship_events(run))
    assert (shipped.info.status, shipped.data.tags["smollm2.state"]) == ("RUNNING", "running")


def test_last_word_that_comes_while_the_log_is_read_is_heard(
    tracker: Tracker, new_run: RunMaker, write_log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    write_log(run, steps=2, state="running")

    def end(_: Path) -> bool:
        if "finished" not in events_file(run).read_text():
            write_log(run, steps=3, first_step=3)
        return False

    monkeypatch.setattr(tracking, "run_is_alive", end)
    shipped = tracker.client.get_run(tracker.ship_events(run))
    assert shipped.info.status == "FINISHED"
    assert "smollm2.last_failure" not in shipped.data.tags


def test_system_metrics_of_every_node_arrive_once(tracker: Tracker, new_run: RunMaker, write_log: LogWriter) -> None:
    run = new_run()
    write_log(run, steps=2)
    for _ in range(2):
        for rank in (8, 16):
            with EventWriter(events_file(run, rank)) as log:
                for step in (1, 2):
                    log.write(
                        "metrics", step=step, **{f"system/node-{rank // 8}/cpu_utilization_percentage": 10.0 * rank}
                    )
        run_id = tracker.ship_events(run)
        journal_file(run).unlink()
    for rank in (8, 16):
        rows = tracker.client.get_metric_history(run_id, f"system/node-{rank // 8}/cpu_utilization_percentage")
        assert [(row.step, row.value) for row in rows] == [(1, 10.0 * rank), (2, 10.0 * rank)]


def test_datasets_that_a_training_run_reads_are_inputs_with_their_digests(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run()
    for digests in ({"web": "sha256:" + "1" * 64}, {"web": "sha256:" + "1" * 64, "code": "sha256:" + "2" * 64}):
        write_run(run, read_run(run).model_copy(update={"dataset_digests": digests}))
        shipped = tracker.client.get_run(tracker.ship_events(run))
        journal_file(run).unlink()
    inputs = {one.dataset.name: one for one in shipped.inputs.dataset_inputs}
    assert {name: one.dataset.digest for name, one in inputs.items()} == {"web": "1" * 36, "code": "2" * 36}
    assert [(tag.key, tag.value) for tag in inputs["code"].tags] == [("mlflow.data.context", "training")]
    assert shipped.data.tags["smollm2.dataset.code"] == "sha256:" + "2" * 64


def test_two_runs_of_one_key_become_the_one_that_holds_more(
    tracker: Tracker, new_run: RunMaker, write_log: LogWriter
) -> None:
    run = new_run()
    write_log(run, steps=2)
    kept = tracker.ship_events(run)
    tags = {"smollm2.run_key": read_run(run).run_key}
    other = tracker.client.create_run(tracker.client.get_run(kept).info.experiment_id, tags=tags).info.run_id
    journal_file(run).unlink()
    assert tracker.ship_events(run) == kept
    assert tracker.client.get_run(other).info.lifecycle_stage == "deleted"


def test_runs_are_tagged_with_their_kind(tracker: Tracker, new_run: RunMaker) -> None:
    training, data = new_run("training", run_key="1" * 32), new_run("data", run_key="2" * 32, kind="data")
    tags = [tracker.client.get_run(tracker.ship_events(run)).data.tags for run in (training, data)]
    assert [tag[KIND_TAG] for tag in tags] == ["training", "data"]


def test_reason_of_a_failure_is_a_tag(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run()
    with EventWriter(events_file(run)) as log:
        log.write("state", step=0, state="failed", reason="no input")
    assert tracker.client.get_run(tracker.ship_events(run)).data.tags["smollm2.last_failure"] == "failed: no input"


def test_dataset_that_a_data_run_made_is_logged_once(tracker: Tracker, new_run: RunMaker) -> None:
    run, digest = new_run(kind="data"), f"sha256:{'5' * 64}"
    for _ in range(2):
        with EventWriter(events_file(run)) as log:
            log.write("dataset", step=1, name="web", path="/data/web", digest=digest, documents=3, tokens=40)
        run_id = tracker.ship_events(run)
        journal_file(run).unlink()
    shipped = tracker.client.get_run(run_id)
    assert shipped.data.tags["smollm2.dataset.web"] == digest
    (made,) = [one for one in shipped.inputs.dataset_inputs if one.dataset.name == "web"]
    assert made.dataset.digest == "5" * 36
    assert (made.dataset.source, made.dataset.profile) == ('{"uri": "/data/web"}', '{"documents": 3, "tokens": 40}')
    assert [(tag.key, tag.value) for tag in made.tags] == [("mlflow.data.context", "output")]


def test_samples_and_files_become_artefacts(tracker: Tracker, new_run: RunMaker, tmp_path: Path) -> None:
    run = new_run()
    with EventWriter(events_file(run)) as log:
        log.write("text", step=7, text="once upon a time")
    tracker.ship_events(run)
    write_durably(run / "proof.json", b"{}")
    tracker.ship_files(run, {"exports/step-00000007/proof.json": run / "proof.json"}, tags={"smollm2.proof": "passed"})
    (folder,) = tmp_path.glob("artifacts/*/artifacts")
    assert (folder / "samples" / "step-00000007.txt").read_text() == "once upon a time"
    assert (folder / "exports" / "step-00000007" / "proof.json").read_text() == "{}"
    assert runs_of(tracker)[0].data.tags["smollm2.proof"] == "passed"


def test_file_is_sent_again_only_when_it_has_changed(
    tracker: Tracker, new_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sent = new_run(), []
    monkeypatch.setattr(
        tracker.client, "log_artifact", lambda run_id, path, folder: sent.append(Path(path).read_text())
    )
    for content in ("one", "one", "two"):
        (run / "curve").write_text(content)
        tracker.ship_files(run, {"curve": run / "curve"}, tags={})
    assert sent == ["one", "two"]


def test_database_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(TrackingError, match=r"MLflow at sqlite:.* did not answer or refused: .*not a database"):
        Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}").client.search_experiments()
