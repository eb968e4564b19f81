"""Which MLflow run is that of a run folder: found by the tag `smollm2.run_key`, made where there is none, and only one.

To make a run is the one request that MLflow does not take twice in peace: if its answer is lost, whoever asks again
has made a second one. So the runs of the key are looked for again after one was made, and all but one are deleted,
those first that hold the least. MLflow keeps what is deleted for who wants it back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from checkpoint.journal import legal_name
from checkpoint.run_record import RunRecord

logger = logging.getLogger(__name__)

EXPERIMENT = "smollm2"
RUN_KEY_TAG = "smollm2.run_key"
KIND_TAG = "smollm2.kind"
_MAX_DATASET_DIGEST_CHARACTERS = 36


def find_or_create_run(client: Any, record: RunRecord, *, artifact_location: str | None) -> str:
    """Its id. Raises what the client raises."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        experiment_id = client.create_experiment(EXPERIMENT, artifact_location=artifact_location)
    else:
        experiment_id = experiment.experiment_id
    found = _find(client, experiment_id, record)
    if not found:
        _create(client, experiment_id, record)
        found = _find(client, experiment_id, record)
    kept, *others = sorted(found, key=lambda run: (-len(run.data.metrics), -len(run.data.params), run.info.run_id))
    for other in others:
        logger.warning("MLflow has a second run of %s, %s, which is deleted", record.name, other.info.run_id)
        client.delete_run(other.info.run_id)
    return str(kept.info.run_id)


def _find(client: Any, experiment_id: str, record: RunRecord) -> list[Any]:
    return list(client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{record.run_key}'"))


def _create(client: Any, experiment_id: str, record: RunRecord) -> None:
    tags = {RUN_KEY_TAG: record.run_key, KIND_TAG: record.kind, "mlflow.source.git.commit": record.code_revision}
    tags |= {f"smollm2.version.{legal_name(name)}": version for name, version in record.versions.items()}
    client.create_run(experiment_id, start_time=record.created_ms, tags=tags, run_name=record.name)


def log_dataset(
    client: Any, mlflow_run_id: str, *, name: str, digest: str, source: Mapping[str, Any], context: str, profile: Any
) -> None:
    """Among the run's datasets, where MLflow keeps one of a name and digest once; `context` is "training" or "output".

    MLflow cuts a digest, so that a tag tells the whole one.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=legal_name(name),
        digest=digest.rpartition(":")[2][:_MAX_DATASET_DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps(source),
        profile=json.dumps(profile),
    )
    client.log_inputs(mlflow_run_id, datasets=[DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])])
