"""Ships a run's event logs to MLflow, exactly once as far as MLflow can tell.

The MLflow run is found by a tag (`mlflow_run.py`), so that any number of services, one after the other, write to the
same one. The journal `RUN/service/journal.json` says how far each log has been confirmed. A crash between a
confirmation and the journal, or a deleted journal, only sends rows again that are equal to the last bit, and MLflow
stores a row of (run, key, step, timestamp, value) once. A repeated step is left out by `MetricsFilter`; the tag
`smollm2.replayed_from` says from which step on the repetition had other values.

Contract: each method either returns, with all of it confirmed, or raises TrackingError in one line, with all that was
confirmed written down. It never waits long for a dead server. mlflow is imported when a `Tracker` is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

from checkpoint.config import BestConfig
from checkpoint.evaluation import Evaluation
from checkpoint.events import TRAIN_LOSS, events_file
from checkpoint.export_folder import PROOF_FILE, Export
from checkpoint.journal import (
    BATCH_ROWS,
    Batch,
    Journal,
    LogPosition,
    Row,
    legal_name,
    other_logs,
    read_batches,
    read_journal,
    shorten_param,
    write_journal,
)
from checkpoint.lock import run_is_alive
from checkpoint.mlflow_connection import artifact_errors_in_one_line, errors_in_one_line, public_uri, quieten
from checkpoint.mlflow_run import find_or_create_run, log_dataset
from checkpoint.registry import register_exports
from checkpoint.run_record import RunRecord, read_run

_BATCH_PARAMS = 100  # its limit on the params of one request
_MAX_TAG_CHARACTERS = 5000
_FAILURE_TAG = "smollm2.last_failure"
_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class Tracker:
    """One MLflow server. Finds or makes the MLflow run of a run folder and sends it what is new."""

    def __init__(self, tracking_uri: str, *, artifact_location: str | None = None) -> None:
        quieten()
        import mlflow

        self._uri = tracking_uri
        self._artifact_location = artifact_location
        with self._errors_in_one_line():
            self.client = mlflow.MlflowClient(tracking_uri)

    def ship_events(self, run: Path) -> str:
        """Send what is new in the run's logs; the result is the MLflow run's id."""
        record = read_run(run)
        with self._errors_in_one_line():
            journal = self._open_journal(run, record)
            self._ship_datasets(run, journal, record)
            self._ship_lines(run, journal)
            self._ship_status(run, journal)
        return journal.mlflow_run_id

    def ship_files(self, run: Path, files: Mapping[str, Path], *, tags: Mapping[str, str]) -> None:
        """Store small files under their names below the run's artefacts, and set tags, as far as they are new."""
        record = read_run(run)
        with self._errors_in_one_line():
            journal = self._open_journal(run, record)
            for name, path in files.items():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if journal.files.get(name) != digest:
                    folder = str(PurePosixPath(name).parent) if "/" in name else None
                    with artifact_errors_in_one_line(self._uri):
                        self.client.log_artifact(journal.mlflow_run_id, str(path), folder)
                    journal.files[name] = digest
            if journal.tags != tags:
                self._set_tags(journal.mlflow_run_id, tags)
                journal.tags = dict(tags)
            write_journal(run, journal)

    def ship_evaluations(self, run: Path, evaluations: Iterable[Evaluation]) -> None:
        """Send the metrics of those that are new as `evaluation/…`, at their steps."""
        record = read_run(run)
        with self._errors_in_one_line():
            journal = self._open_journal(run, record)
            for one in evaluations:
                if journal.evaluations.get(one.step) == one.timestamp_ms:
                    continue
                rows = [
                    Row(f"evaluation/{legal_name(name)}", value, one.timestamp_ms, one.step)
                    for name, value in one.metrics.items()
                ]
                self._send_rows(journal.mlflow_run_id, rows)
                journal.evaluations[one.step] = one.timestamp_ms
                write_journal(run, journal)

    def ship_exports(
        self, run: Path, exports: Mapping[int, Export], *, scores: Mapping[int, float], best: BestConfig
    ) -> None:
        """Bring the registered model up to date, if a proof or a score is new; the proofs are files of the run."""
        record = read_run(run)
        proofs = {
            str(step): f"{hashlib.sha256((export.directory / PROOF_FILE).read_bytes()).hexdigest()} "
            f"{best.order} {best.metric} {scores.get(step)}"
            for step, export in exports.items()
        }
        with self._errors_in_one_line():
            journal = self._open_journal(run, record)
            if proofs == journal.registered:
                return
            register_exports(self.client, journal.mlflow_run_id, record, exports, scores=scores, best=best)
            journal.registered = proofs
            write_journal(run, journal)

    def _set_tags(self, mlflow_run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_tag(mlflow_run_id, key, value[:_MAX_TAG_CHARACTERS])

    def _open_journal(self, run: Path, record: RunRecord) -> Journal:
        journal, uri = read_journal(run), public_uri(self._uri)
        known = journal is not None and (journal.tracking_uri, journal.run_key) == (uri, record.run_key)
        if journal is not None and known and self._is_active(journal.mlflow_run_id):
            return journal
        mlflow_run_id = find_or_create_run(self.client, record, artifact_location=self._artifact_location)
        return Journal(tracking_uri=uri, run_key=record.run_key, mlflow_run_id=mlflow_run_id)

    def _is_active(self, mlflow_run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(mlflow_run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _ship_datasets(self, run: Path, journal: Journal, record: RunRecord) -> None:
        """What a training run reads, with the digests that its record tells."""
        if journal.dataset_digests == record.dataset_digests:
            return
        for name, digest in record.dataset_digests.items():
            log_dataset(
                self.client, journal.mlflow_run_id, name=name, digest=digest, source={"digest": digest},
                context="training", profile={"digest": digest},
            )  # fmt: skip
        tags = {f"smollm2.dataset.{legal_name(name)}": digest for name, digest in record.dataset_digests.items()}
        self._set_tags(journal.mlflow_run_id, tags)
        journal.dataset_digests = dict(record.dataset_digests)
        write_journal(run, journal)

    def _ship_lines(self, run: Path, journal: Journal) -> None:
        for path in other_logs(run):
            position = journal.others.setdefault(path.name, LogPosition())
            for batch in read_batches(path, position):
                self._send_rows(journal.mlflow_run_id, batch.rows)
                batch.leave_at(position)
                write_journal(run, journal)
        for batch in read_batches(events_file(run), journal):
            self._send(journal.mlflow_run_id, batch)
            batch.leave_at(journal)
            write_journal(run, journal)

    def _send(self, mlflow_run_id: str, batch: Batch) -> None:
        tags = dict(batch.tags)
        for attempt in batch.params:
            tags |= self._send_params(mlflow_run_id, attempt)
        self._send_rows(mlflow_run_id, batch.rows)
        for step, text in batch.texts.items():
            with artifact_errors_in_one_line(self._uri):
                self.client.log_text(mlflow_run_id, text, f"samples/step-{step:08d}.txt")
        for dataset in batch.datasets:
            tags |= self._send_dataset(mlflow_run_id, dataset)
        self._set_tags(mlflow_run_id, tags)

    def _send_rows(self, mlflow_run_id: str, rows: list[Row]) -> None:
        from mlflow.entities import Metric

        for begin in range(0, len(rows), BATCH_ROWS):
            metrics = [
                Metric(row.key, row.value, row.timestamp_ms, row.step) for row in rows[begin : begin + BATCH_ROWS]
            ]
            self.client.log_batch(mlflow_run_id, metrics=metrics)

    def _send_params(self, mlflow_run_id: str, params: Mapping[str, Any]) -> dict[str, str]:
        """Send the params that the run does not have; the tags tell of those that a later attempt changed."""
        from mlflow.entities import Param

        had = self.client.get_run(mlflow_run_id).data.params
        wanted = {legal_name(name): shorten_param(str(value)) for name, value in params.items()}
        new = [Param(name, value) for name, value in wanted.items() if name not in had]
        for begin in range(0, len(new), _BATCH_PARAMS):
            self.client.log_batch(mlflow_run_id, params=new[begin : begin + _BATCH_PARAMS])
        return {f"smollm2.changed.{name}": value for name, value in wanted.items() if had.get(name, value) != value}

    def _send_dataset(self, mlflow_run_id: str, fields: Mapping[str, Any]) -> dict[str, str]:
        """What a data run made; the tags tell its whole digest, as those of the training runs do, and where it lies."""
        name, digest, path = (str(fields.get(field, "")) for field in ("name", "digest", "path"))
        profile = {key: fields[key] for key in ("documents", "tokens") if key in fields}
        log_dataset(
            self.client, mlflow_run_id, name=name, digest=digest, source={"uri": path}, context="output",
            profile=profile,
        )  # fmt: skip
        return {f"smollm2.dataset.{legal_name(name)}": digest, "smollm2.dataset_path": path}

    def _ship_status(self, run: Path, journal: Journal) -> None:
        """Tell the state of the log's last line; a run whose process is gone without a last word was killed."""
        tags: dict[str, str] = {}
        if journal.state == "running" and not run_is_alive(run):
            # what it has told between the reading of its log and its end
            self._ship_lines(run, journal)
        status = _STATUS.get(journal.state, "RUNNING")
        if status == "RUNNING" and not run_is_alive(run):
            status = "KILLED"
            last = journal.last_steps.get(TRAIN_LOSS, 0)
            tags[_FAILURE_TAG] = f"killed: its process ended without a last word; the last step that it told is {last}"
        if status == journal.status:
            return
        self._set_tags(journal.mlflow_run_id, tags | {"smollm2.state": status.lower()})
        if status == "RUNNING":
            self.client.update_run(journal.mlflow_run_id, status=status)
        else:
            self.client.set_terminated(journal.mlflow_run_id, status, end_time=journal.timestamp_ms or None)
        journal.status = status
        write_journal(run, journal)

    def _errors_in_one_line(self) -> AbstractContextManager[None]:
        return errors_in_one_line(self._uri)
