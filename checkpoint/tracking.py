"""Ships a run's event log to MLflow, exactly once as far as MLflow can tell.

The MLflow run is found by the tag `smollm2.run_key`, so that any number of services, one after the other, write to the
same one. The journal `RUN/service/journal.json` says how far the log has been confirmed. A crash between a confirmation
and the journal, or a deleted journal, only sends rows again that are equal to the last bit, and MLflow stores a row of
(run, key, step, timestamp, value) once. A repeated step is left out by `MetricsFilter`; the tag
`smollm2.replayed_from` says from which step on the repetition had other values.

Contract: `ship_events` either returns, with all of the log confirmed, or raises TrackingError in one line, with all
that was confirmed written down. It never waits long for a dead server. mlflow is imported when a `Tracker` is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from checkpoint.evaluation import Evaluation
from checkpoint.events import events_file
from checkpoint.journal import (
    BATCH_ROWS,
    Batch,
    Journal,
    legal_name,
    read_batches,
    read_journal,
    shorten_param,
    write_journal,
)
from checkpoint.lock import run_is_alive
from checkpoint.manifest import CheckpointError
from checkpoint.run_record import RunRecord, read_run

EXPERIMENT = "smollm2"
RUN_KEY_TAG = "smollm2.run_key"
KIND_TAG = "smollm2.kind"
_BATCH_PARAMS = 100  # its limit on the params of one request
_MAX_TAG_CHARACTERS = 5000
_MAX_DATASET_DIGEST_CHARACTERS = 36
_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class TrackingError(CheckpointError):
    """MLflow cannot be reached or does not take what it is sent; the next pass tries again."""


class Tracker:
    """One MLflow server. Finds or makes the MLflow run of a run folder and sends it what is new."""

    def __init__(self, tracking_uri: str, *, artifact_location: str | None = None) -> None:
        _quieten()
        import mlflow

        self.tracking_uri = tracking_uri
        self._artifact_location = artifact_location
        self._mlflow = mlflow
        with self._errors_in_one_line():
            self.client = mlflow.MlflowClient(tracking_uri)

    def ship_events(self, run: Path) -> str:
        """Send what is new in the run's log; the result is the MLflow run's id."""
        record = read_run(run)
        with self._errors_in_one_line():
            journal = self._open_journal(run, record)
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
                    self.client.log_artifact(journal.mlflow_run_id, str(path), folder)
                    journal.files[name] = digest
            if journal.tags != tags:
                self._set_tags(journal.mlflow_run_id, tags)
                journal.tags = dict(tags)
            write_journal(run, journal)

    def ship_evaluations(self, run: Path, evaluations: Iterable[Evaluation]) -> None:
        """Send the metrics of those that are new as `evaluation/…`, at their steps."""
        from mlflow.entities import Metric

        record = read_run(run)
        with self._errors_in_one_line():
            journal = self._open_journal(run, record)
            for one in evaluations:
                if journal.evaluations.get(one.step) == one.timestamp_ms:
                    continue
                rows = [
                    Metric(f"evaluation/{legal_name(name)}", value, one.timestamp_ms, one.step)
                    for name, value in one.metrics.items()
                ]
                for begin in range(0, len(rows), BATCH_ROWS):
                    self.client.log_batch(journal.mlflow_run_id, metrics=rows[begin : begin + BATCH_ROWS])
                journal.evaluations[one.step] = one.timestamp_ms
                write_journal(run, journal)

    def _set_tags(self, mlflow_run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_tag(mlflow_run_id, key, value[:_MAX_TAG_CHARACTERS])

    def _open_journal(self, run: Path, record: RunRecord) -> Journal:
        journal = read_journal(run)
        known = journal is not None and (journal.tracking_uri, journal.run_key) == (self.tracking_uri, record.run_key)
        if journal is not None and known and self._is_active(journal.mlflow_run_id):
            return journal
        return Journal(
            tracking_uri=self.tracking_uri, run_key=record.run_key, mlflow_run_id=self._find_or_create_run(record)
        )

    def _is_active(self, mlflow_run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(mlflow_run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _find_or_create_run(self, record: RunRecord) -> str:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            experiment_id = self.client.create_experiment(EXPERIMENT, artifact_location=self._artifact_location)
        else:
            experiment_id = experiment.experiment_id
        found = self.client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{record.run_key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {RUN_KEY_TAG: record.run_key, KIND_TAG: record.kind, "mlflow.source.git.commit": record.code_revision}
        tags |= {f"smollm2.version.{legal_name(name)}": version for name, version in record.versions.items()}
        tags |= {f"smollm2.dataset.{legal_name(name)}": digest for name, digest in record.dataset_digests.items()}
        created = self.client.create_run(experiment_id, start_time=record.created_ms, tags=tags, run_name=record.name)
        return str(created.info.run_id)

    def _ship_lines(self, run: Path, journal: Journal) -> None:
        for batch in read_batches(events_file(run), journal):
            self._send(journal.mlflow_run_id, batch)
            journal.offset, journal.last_steps = batch.offset, batch.last_steps
            journal.state, journal.timestamp_ms = batch.state, batch.timestamp_ms
            journal.replayed_from = batch.replayed_from
            write_journal(run, journal)

    def _send(self, mlflow_run_id: str, batch: Batch) -> None:
        from mlflow.entities import Metric

        tags = dict(batch.tags)
        for attempt in batch.params:
            tags |= self._send_params(mlflow_run_id, attempt)
        rows = [Metric(row.key, row.value, row.timestamp_ms, row.step) for row in batch.rows]
        for begin in range(0, len(rows), BATCH_ROWS):
            self.client.log_batch(mlflow_run_id, metrics=rows[begin : begin + BATCH_ROWS])
        for step, text in batch.texts.items():
            self.client.log_text(mlflow_run_id, text, f"samples/step-{step:08d}.txt")
        for dataset in batch.datasets:
            tags |= self._send_dataset(mlflow_run_id, dataset)
        self._set_tags(mlflow_run_id, tags)

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
        """Log what a data run made among the run's datasets, where MLflow keeps one of a name and digest once.

        The tags tell its whole digest, as those of the training runs that read it do, and where it lies.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, digest, path = (str(fields.get(field, "")) for field in ("name", "digest", "path"))
        dataset = Dataset(
            name=legal_name(name),
            digest=digest.rpartition(":")[2][:_MAX_DATASET_DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": path}),
            profile=json.dumps({key: fields[key] for key in ("documents", "tokens") if key in fields}),
        )
        made = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "output")])
        self.client.log_inputs(mlflow_run_id, datasets=[made])
        return {f"smollm2.dataset.{legal_name(name)}": digest, "smollm2.dataset_path": path}

    def _ship_status(self, run: Path, journal: Journal) -> None:
        """Tell the state of the log's last line; a run whose process is gone without a last word was killed."""
        status = _STATUS.get(journal.state, "RUNNING")
        if status == "RUNNING" and not run_is_alive(run):
            status = "KILLED"
        if status == journal.status:
            return
        if status == "RUNNING":
            self.client.update_run(journal.mlflow_run_id, status=status)
        else:
            self.client.set_terminated(journal.mlflow_run_id, status, end_time=journal.timestamp_ms or None)
        journal.status = status
        write_journal(run, journal)

    @contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, ConnectionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TrackingError(f"MLflow at {self.tracking_uri} did not answer or refused: {reason}") from None


def _quieten() -> None:
    """Before mlflow is imported: fail fast when the server is gone, ask no other host, keep to warnings.

    MLflow reads these from the environment alone, and what the user has set stays as it is.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for name in ("alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
