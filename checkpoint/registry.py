"""The registered model of a run's name: a version for each proven export, its proof as tags, and two aliases.

`latest-verified` is the last step of the newest run that has a proven export; `best` the proven one with the lowest
validation loss, or the best by the metric that the service is told, of equal ones the newer. Both are worked out anew
from what the registry holds, so that who registers last, or again, changes nothing. A version whose export has failed a
later proof keeps its place, says so, and has no alias. The weights stay where they are: a version's source is the proof
among the run's artefacts, its tag `smollm2.export` says where the directory lies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from checkpoint.config import BestConfig
from checkpoint.export_folder import Export
from checkpoint.journal import legal_name
from checkpoint.manifest import step_name
from checkpoint.run_record import RunRecord

LATEST, BEST = "latest-verified", "best"
_KEY, _STEP, _CREATED, _VERDICT = "smollm2.run_key", "smollm2.step", "smollm2.run_created_ms", "smollm2.proof"


def register_exports(
    client: Any,
    mlflow_run_id: str,
    record: RunRecord,
    exports: Mapping[int, Export],
    *,
    scores: Mapping[int, float],
    best: BestConfig,
) -> None:
    """Make the versions that are missing, bring tags and aliases up to date. Raises what the client raises.

    `scores` are the values of the metric that `best` goes by, as far as steps have one.
    """
    name = model_name(record)
    versions = _versions(client, name)
    for step, export in exports.items():
        tags = _tags(record, export) | ({_score_tag(best): repr(scores[step])} if step in scores else {})
        own = _of_step(versions, record, step)
        if own is None and export.passed:
            if not versions:
                _create_model(client, name)
            source = f"runs:/{mlflow_run_id}/exports/{step_name(step)}"
            client.create_model_version(name, source, mlflow_run_id, tags=tags)
            # an answer that was lost, and asked for again, leaves two
            versions = _without_doubles(client, name)
        elif own is not None:
            for key, value in tags.items():
                if own.tags.get(key) != value:
                    client.set_model_version_tag(name, own.version, key, value)
    _set_aliases(client, name, best)


def model_name(record: RunRecord) -> str:
    """That of the run, without what MLflow does not take in a model's name, or does not find one by (')."""
    return re.sub(r"[/:']", "_", record.name)


def _tags(record: RunRecord, export: Export) -> dict[str, str]:
    proof = export.proof
    return {
        _KEY: record.run_key,
        _STEP: str(proof.step),
        _CREATED: str(record.created_ms),
        _VERDICT: proof.verdict,
        "smollm2.proof_reasons": "; ".join(proof.reasons)[:5000] or "none",
        "smollm2.proof_expected_nats": repr(proof.expected),
        "smollm2.proof_got_nats": repr(proof.got),
        "smollm2.proof_tolerance_nats": repr(proof.tolerance),
        "smollm2.proof_tokens": str(proof.probe_tokens),
        "smollm2.dtype": proof.dtype,
        "smollm2.export": str(export.directory),
    }


def _versions(client: Any, name: str) -> list[Any]:
    """Of all runs of the name, the oldest first."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted((one for one in found if _KEY in one.tags), key=lambda one: int(one.version))


def _of_step(versions: list[Any], record: RunRecord, step: int) -> Any | None:
    wanted = record.run_key, str(step)
    return next((one for one in versions if (one.tags[_KEY], one.tags.get(_STEP)) == wanted), None)


def _without_doubles(client: Any, name: str) -> list[Any]:
    kept: dict[tuple[str, str], Any] = {}
    for one in _versions(client, name):
        key = one.tags[_KEY], one.tags[_STEP]
        if key in kept:
            client.delete_model_version(name, one.version)
        else:
            kept[key] = one
    return list(kept.values())


def _create_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Proven exports; each version's tags hold its proof.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _set_aliases(client: Any, name: str, best: BestConfig) -> None:
    passed = [one for one in _versions(client, name) if one.tags.get(_VERDICT) == "passed"]
    sign = 1 if best.order == "lowest" else -1
    scores = {one.version: sign * float(one.tags.get(_score_tag(best), "nan")) for one in passed}
    measured = [one for one in passed if math.isfinite(scores[one.version])]
    wanted = {
        LATEST: max(passed, key=_age, default=None),
        # of equal ones the newer: it has seen more
        BEST: min(measured, key=lambda one: (scores[one.version], [-part for part in _age(one)]), default=None),
    }
    if not passed and not _versions(client, name):
        return
    has = dict(client.get_registered_model(name).aliases)
    for alias, version in wanted.items():
        if version is None and alias in has:
            client.delete_registered_model_alias(name, alias)
        elif version is not None and has.get(alias) != version.version:
            client.set_registered_model_alias(name, alias, version.version)


def _age(version: Any) -> tuple[int, int]:
    return int(version.tags[_CREATED]), int(version.tags[_STEP])


def _score_tag(best: BestConfig) -> str:
    return f"smollm2.{legal_name(best.metric)}"
