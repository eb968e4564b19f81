"""A failure is told until its goal is reached, by whatever hand, or nobody has it any more; and no longer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pytest

from checkpoint.agenda import Memory, is_over
from checkpoint.config import EvaluationConfig, ServiceConfig
from checkpoint.evaluation import Evaluation
from checkpoint.export_folder import Export, ProofReport
from checkpoint.failures import Failure
from checkpoint.jobs import Blame, Job, JobKind
from checkpoint.run_record import RunRecord
from checkpoint.run_watch import RunFacts
from checkpoint.verdicts import Verdict

FAILED_S = 1000.0
MANIFEST_NS = 5
MEASURED = EvaluationConfig(lm_eval_tasks=("arc_easy",))
RECORD = RunRecord(run_key="f" * 32, name="small", created_ms=0, code_revision="", versions={})


def a_failure(kind: JobKind, step: int | None = 300, *, to: str | None = None, **settings: Any) -> Failure:
    """One that is final, unless `retry_s` is given."""
    settings = {"blame": "job", "retry_s": None, **settings}
    job = Job(kind=kind, run=Path("small"), step=step, destination=to)
    return Failure(
        job=job, reason="", attempts=1, pause_s=60, manifest_mtime_ns=MANIFEST_NS, failed_s=FAILED_S, **settings
    )


def an_export(verdict: Literal["passed", "failed"] = "passed", *, directory: Path = Path("nowhere")) -> Export:
    proof = ProofReport(
        verdict=verdict, reasons=(), step=0, expected=1.0, got=1.0, difference=0.0, tolerance=0.1, probe_tokens=1,
        dtype="float32", transformers_version="", torch_version="",
    )  # fmt: skip
    return Export(directory, proof)


def over(failure: Failure, config: ServiceConfig | None = None, **facts: Any) -> bool:
    found = RunFacts(**{"run": Path("small"), "record": RECORD, "steps": (100, 200, 300), **facts})
    # what was measured is on its card
    memory = Memory(on_card={(step, one.timestamp_ms) for step, one in found.evaluations.items()})
    return is_over(failure, found, memory, config or ServiceConfig())


@pytest.mark.parametrize("retry_s", [None, 2000.0])
def test_an_export_that_is_there(retry_s: float | None) -> None:
    failure = a_failure("export", 200, retry_s=retry_s)
    assert over(failure, exports={200: an_export()})


@pytest.mark.parametrize("blame", ["job", "damage"])
def test_a_quarantined_export_stays_though_a_newer_one_is_there_and_though_its_proof_failed(blame: Blame) -> None:
    failure = a_failure("export", 200, blame=blame)
    assert not over(failure, exports={300: an_export()})
    assert not over(failure, exports={200: an_export("failed")})


def test_an_export_that_a_newer_one_has_overtaken() -> None:
    failure, facts = a_failure("export", 200, retry_s=2000.0), dict[str, Any](exports={300: an_export()})
    assert not over(failure)
    assert over(failure, **facts)
    assert not over(failure, ServiceConfig(exports="every"), **facts)
    assert not over(failure.model_copy(update={"is_requested": True}), **facts)


@pytest.mark.parametrize("kind", ["export", "verify", "scrub"])
def test_damage_until_the_checkpoint_was_hashed_whole_since(kind: JobKind) -> None:
    def is_mended(*, manifest_ns: int = MANIFEST_NS, checked_s: float = FAILED_S + 1, problems: Any = ()) -> bool:
        verdict = Verdict(manifest_mtime_ns=manifest_ns, checked_s=checked_s, problems=problems)
        return over(a_failure(kind, blame="damage"), verdicts={300: verdict})

    assert is_mended()
    assert not is_mended(checked_s=FAILED_S - 1)
    assert not is_mended(problems=("contents changed",))
    assert not is_mended(manifest_ns=MANIFEST_NS + 1)


def test_a_whole_checkpoint_is_no_export() -> None:
    verdict = Verdict(manifest_mtime_ns=MANIFEST_NS, checked_s=FAILED_S + 1)
    assert not over(a_failure("export"), verdicts={300: verdict})


def test_an_evaluation_that_is_there() -> None:
    def is_done(timestamp_ms: int, config: EvaluationConfig = MEASURED, **settings: Any) -> bool:
        found = Evaluation(step=300, timestamp_ms=timestamp_ms, metrics={}, config=config, versions={})
        failure = a_failure("evaluate", **settings)
        return over(failure, ServiceConfig(evaluation=MEASURED), evaluations={300: found}, exports={300: an_export()})

    assert is_done(999_000)
    assert not is_done(1_001_000, EvaluationConfig(lm_eval_tasks=("piqa",)))
    # who asked for it again had one
    assert not is_done(999_000, is_requested=True)
    assert is_done(1_001_000, is_requested=True)


def test_a_publication_that_is_there() -> None:
    failure, config = a_failure("publish", to="/place"), ServiceConfig(publish_to=("/place",))
    facts: dict[str, Any] = {"exports": {300: an_export()}}
    assert not over(failure, config, published={"/other": frozenset({300})}, **facts)
    assert over(failure, config, published={"/place": frozenset({300})}, **facts)


def test_a_proof_that_is_younger_than_its_files(tmp_path: Path) -> None:
    for name in ("config.json", "proof.json"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (10, 10))
    failure, facts = a_failure("prove", 200), dict[str, Any](exports={200: an_export(directory=tmp_path)})
    assert not over(failure, changed=frozenset({200}), **facts)
    assert over(failure, **facts)
    os.utime(tmp_path / "config.json", (11, 11))
    assert not over(failure, **facts)


def test_what_the_config_drops() -> None:
    assert over(a_failure("publish", to="/place"), exports={300: an_export()})
    assert over(a_failure("evaluate"), exports={300: an_export()})
    assert over(a_failure("prune", None))
    assert not over(a_failure("prune", None), ServiceConfig.model_validate({"retention": {}}))


def test_a_job_of_a_step_that_is_gone() -> None:
    assert over(a_failure("export", 50))
    assert not over(a_failure("prove", 50), unreadable={50: "no proof"})


@pytest.mark.parametrize(
    ("failure", "wanted", "unwanted"),
    [
        (a_failure("verify", retry_s=2000.0), {}, {"steps": (300, 400)}),
        (a_failure("prove", retry_s=2000.0), {"changed": frozenset({300})}, {}),
        (a_failure("scrub", retry_s=2000.0), {}, {"steps": (200,)}),
        (a_failure("evaluate", retry_s=2000.0), {}, {"exports": {300: an_export("failed")}}),
        (a_failure("publish", to="/place", retry_s=2000.0), {}, {"exports": {300: an_export("failed")}}),
        (a_failure("evaluate", retry_s=2000.0, is_requested=True), {}, {"steps": (200,)}),
    ],
)
def test_what_nobody_comes_back_to_unless_it_is_final(
    failure: Failure, wanted: dict[str, Any], unwanted: dict[str, Any], tmp_path: Path
) -> None:
    config = ServiceConfig(evaluation=MEASURED, publish_to=("/place",), scrub_bytes_per_second=1)
    (tmp_path / "config.json").touch()  # without a proof
    facts: dict[str, Any] = {"exports": {300: an_export(directory=tmp_path)}}
    assert not over(failure, config, **facts | wanted)
    assert over(failure, config, **facts | unwanted)
    assert not over(failure.model_copy(update={"retry_s": None}), config, **facts | unwanted)


@pytest.mark.parametrize("kind", ["ship", "curve"])
def test_light_jobs_come_again_by_themselves(kind: JobKind) -> None:
    assert not over(a_failure(kind, None, retry_s=2000.0))
