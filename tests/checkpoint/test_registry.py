"""The registered model: one version a proven export, whoever asks how often, and aliases that follow the proofs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from checkpoint.config import BestConfig
from checkpoint.export_folder import Export, ProofReport
from checkpoint.journal import journal_file
from checkpoint.registry import model_name
from checkpoint.run_record import read_run
from checkpoint.tracking import Tracker

RunMaker = Callable[..., Path]


@pytest.fixture
def tracker(empty_database: Path, tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}")


def prove(run: Path, step: int, verdict: Literal["passed", "failed"] = "passed") -> Export:
    folder = run / "exports" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    proof = ProofReport(
        verdict=verdict, reasons=() if verdict == "passed" else ("loss 9",), step=step, expected=3.0, got=3.0,
        difference=0.0, tolerance=0.01, probe_tokens=1024, dtype="bfloat16", transformers_version="5",
        torch_version="2",
    )  # fmt: skip
    (folder / "proof.json").write_text(proof.model_dump_json())
    return Export(folder, proof)


def register(tracker: Tracker, run: Path, losses: Mapping[int, float], **verdicts: Any) -> None:
    tracker.ship_events(run)
    exports = {step: prove(run, step, verdicts.get(f"step{step}", "passed")) for step in losses}
    tracker.ship_exports(run, exports, scores=losses, best=BestConfig())


def aliases(tracker: Tracker, name: str = "small") -> dict[str, str]:
    """The step that each alias stands for."""
    has = tracker.client.get_registered_model(name).aliases
    return {
        alias: tracker.client.get_model_version(name, version).tags["smollm2.step"] for alias, version in has.items()
    }


def versions(tracker: Tracker, name: str = "small") -> list[tuple[str, str]]:
    found = tracker.client.search_model_versions(f"name = '{name}'")
    return sorted((one.tags["smollm2.step"], one.tags["smollm2.proof"]) for one in found)


def test_each_proven_export_is_a_version_with_its_proof_and_the_aliases_follow(
    tracker: Tracker, new_run: RunMaker
) -> None:
    run = new_run("small")
    register(tracker, run, {100: 3.5})
    assert aliases(tracker) == {"latest-verified": "100", "best": "100"}
    register(tracker, run, {100: 3.5, 200: 3.2, 300: 3.3})
    assert aliases(tracker) == {"latest-verified": "300", "best": "200"}
    best = tracker.client.get_model_version_by_alias("small", "best")
    assert best.tags["smollm2.run_key"] == read_run(run).run_key
    assert (best.tags["smollm2.proof"], best.tags["smollm2.proof_tokens"]) == ("passed", "1024")
    assert best.tags["smollm2.validation_loss"] == "3.2"
    assert best.tags["smollm2.export"] == str(run / "exports" / "step-00000200")
    [logged] = tracker.client.search_runs([tracker.client.get_experiment_by_name("smollm2").experiment_id])
    assert (best.run_id, best.source) == (logged.info.run_id, f"runs:/{logged.info.run_id}/exports/step-00000200")


def test_registering_again_and_without_the_journal_makes_no_second_version(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run("small")
    for _ in range(2):
        register(tracker, run, {100: 3.5, 200: 3.2})
        journal_file(run).unlink()
    assert versions(tracker) == [("100", "passed"), ("200", "passed")]


def test_export_that_fails_a_later_proof_says_so_and_loses_its_aliases(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run("small")
    register(tracker, run, {100: 3.5, 200: 3.2})
    register(tracker, run, {100: 3.5, 200: 3.2}, step200="failed")
    assert versions(tracker) == [("100", "passed"), ("200", "failed")]
    assert aliases(tracker) == {"latest-verified": "100", "best": "100"}
    register(tracker, run, {100: 3.5, 200: 3.2}, step200="failed", step100="failed")
    assert aliases(tracker) == {}


def test_export_that_never_passed_is_no_version(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run("small")
    register(tracker, run, {100: 3.5}, step100="failed")
    assert versions(tracker) == []


def test_runs_of_one_name_share_a_model_and_the_newer_run_is_the_latest(tracker: Tracker, new_run: RunMaker) -> None:
    from checkpoint.run_record import write_run

    old, new = new_run("old", run_key="1" * 32), new_run("new", run_key="2" * 32)
    for created_ms, run in ((1, old), (2, new)):
        write_run(run, read_run(run).model_copy(update={"name": "team/small", "created_ms": created_ms}))
    register(tracker, new, {50: 3.5})
    register(tracker, old, {900: 3.1})
    assert model_name(read_run(old)) == "team_small"
    assert versions(tracker, "team_small") == [("50", "passed"), ("900", "passed")]
    assert aliases(tracker, "team_small") == {"latest-verified": "50", "best": "900"}


def test_a_name_with_a_quotation_mark_is_registered_once_and_has_its_aliases(
    tracker: Tracker, new_run: RunMaker
) -> None:
    run = new_run('bob\'s "best" run')
    name = model_name(read_run(run))
    for _ in range(2):
        register(tracker, run, {100: 3.5})
        journal_file(run).unlink()
    assert name == 'bob_s "best" run'
    assert versions(tracker, name) == [("100", "passed")]
    assert aliases(tracker, name) == {"latest-verified": "100", "best": "100"}


def test_a_version_whose_making_was_not_answered_is_one_version(
    tracker: Tracker, new_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the client does it: it asks again when the answer is lost."""
    create = tracker.client.create_model_version

    def create_twice(*arguments: Any, **settings: Any) -> Any:
        create(*arguments, **settings)
        return create(*arguments, **settings)

    monkeypatch.setattr(tracker.client, "create_model_version", create_twice)
    register(tracker, new_run("small"), {100: 3.5, 200: 3.2})
    assert versions(tracker) == [("100", "passed"), ("200", "passed")]


def test_best_goes_by_the_metric_and_the_order_that_it_is_told(tracker: Tracker, new_run: RunMaker) -> None:
    run = new_run("small")
    register(tracker, run, {100: 3.5, 200: 3.2})
    exports = {step: prove(run, step) for step in (100, 200)}
    accuracy = BestConfig(metric="lm_eval/arc_easy/acc", order="highest")
    tracker.ship_exports(run, exports, scores={}, best=accuracy)
    assert "best" not in aliases(tracker)
    tracker.ship_exports(run, exports, scores={100: 0.4, 200: 0.3}, best=accuracy)
    assert aliases(tracker)["best"] == "100"
    best = tracker.client.get_model_version_by_alias("small", "best")
    assert best.tags["smollm2.lm_eval/arc_easy/acc"] == "0.4"
    lowest = accuracy.model_copy(update={"order": "lowest"})
    tracker.ship_exports(run, exports, scores={100: 0.4, 200: 0.3}, best=lowest)
    assert aliases(tracker)["best"] == "200"
