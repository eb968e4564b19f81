"""What is due in a run, and in which order. Jobs are stand-ins, but for pruning and for the renewal of cards."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoint import evaluate, export, failures
from checkpoint.config import ServiceConfig
from checkpoint.evaluation import Evaluation, evaluation_file, write_evaluation
from checkpoint.export_folder import ProofReport
from checkpoint.jobs import Context, Job, JobKind, Outcome, Performer
from checkpoint.managed_run import ManagedRun
from checkpoint.manifest import CheckpointManifest, checkpoint_directory, encode_manifest, export_directory, list_steps
from checkpoint.publication import note_published
from checkpoint.verdicts import Verdict, manifest_mtime_ns, remember

MEASURED: dict[str, Any] = {"evaluation": {"lm_eval_tasks": ["arc_easy"]}}
Act = Callable[[Job], Outcome]


class Clock:
    """Stands in for `time` where failures are taken down; it begins when the test does."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of failures."""
    clock = Clock()
    monkeypatch.setattr(failures, "time", clock)
    return clock


@pytest.fixture
def run(new_run: Callable[..., Path]) -> Path:
    """A run with whole checkpoints of steps 100, 200 and 300, which no job here reads."""
    run = new_run()
    for step in (100, 200, 300):
        add_checkpoint(run, step)
    return run


def add_checkpoint(run: Path, step: int) -> None:
    manifest = CheckpointManifest(
        run_key="f" * 32, step=step, tokens_consumed=step, samples_consumed=step, world_size=1, zero_stage=3,
        dtype="float32", config_digest="", dataset_digests={}, tokenizer_digest="", model={}, files=(),
    )  # fmt: skip
    checkpoint_directory(run, step).mkdir(parents=True)
    (checkpoint_directory(run, step) / "manifest.json").write_bytes(encode_manifest(manifest))
    remember(run, step, Verdict(manifest_mtime_ns=manifest_mtime_ns(run, step), checked_s=time.time()))


def add_export(run: Path, step: int) -> None:
    proof = ProofReport(
        verdict="passed", reasons=(), step=step, expected=1.0, got=1.0, difference=0.0,
        tolerance=0.1, probe_tokens=1, dtype="float32", transformers_version="", torch_version="",
    )  # fmt: skip
    folder = export_directory(run, step)
    folder.mkdir(parents=True)
    (folder / "README.md").touch()
    (folder / "proof.json").write_text(proof.model_dump_json())


def measure(run: Path, step: int, config: ServiceConfig) -> Evaluation:
    """What an evaluation leaves behind, but for the card."""
    assert config.evaluation is not None
    found = Evaluation(
        step=step, timestamp_ms=int(1000 * time.time()), metrics={}, config=config.evaluation, versions={}
    )
    write_evaluation(run, found)
    return found


def renew_card(run: Path, step: int) -> None:
    """A card that is as young as what was measured."""
    measured_ns = evaluation_file(run, step).stat().st_mtime_ns
    os.utime(export_directory(run, step) / "README.md", ns=(measured_ns, measured_ns))


class Driver:
    """Does what is due in a run, as the service would: `acts` say how the jobs of a kind end; else they do nothing."""

    def __init__(self, run: Path, acts: dict[JobKind, Act] | None = None, **settings: Any) -> None:
        self.config = ServiceConfig.model_validate({"redraw_seconds": 1e9, **settings})
        self.performer = Performer(Context(config=self.config, tracking_uri=""))
        self.managed = ManagedRun(run, self.config)
        self.done: list[str] = []
        self.acts: dict[JobKind, Act] = {"prune": self.performer.perform, **(acts or {})}
        self.percent_above_mark = 0

    def look(self) -> list[str]:
        """The heavy jobs that were done."""
        before = len(self.done)
        while jobs := [job for job in self.due() if job.kind != "ship"]:
            assert len(self.done) - before < 30
            for job in jobs:
                self.perform(job)
        return self.done[before:]

    def due(self) -> list[Job]:
        return self.managed.look(percent_above_mark=self.percent_above_mark, sweeping=False)

    def perform(self, job: Job) -> None:
        assert self.managed.begin(job)
        self.done.append(job.what)
        self.managed.end(job, self.acts.get(job.kind, lambda _: Outcome())(job))

    def ask_for(self, kind: JobKind, step: int) -> None:
        """As the service does for a person."""
        job = Job(kind=kind, run=self.managed.run, step=step)
        self.managed.failures.forget(job)
        self.perform(job)

    def troubles(self) -> list[tuple[str, bool]]:
        self.due()
        return [(trouble.what, trouble.is_final) for trouble in self.managed.status.troubles]


def evaluator(config: ServiceConfig, *, failing: Sequence[int] = ()) -> Act:
    """Stands in for the job; of `failing` steps it cannot reach the datasets."""

    def evaluate(job: Job) -> Outcome:
        assert job.step is not None
        if job.step in failing:
            return Outcome(blame="machine", reason="the datasets are away")
        measure(job.run, job.step, config)
        renew_card(job.run, job.step)
        return Outcome()

    return evaluate


def publisher(job: Job) -> Outcome:
    assert job.step is not None
    note_published(job.run, job.step, str(job.destination))
    return Outcome()


class TestMeasuring:
    """Each proven export is measured before it is published, and before its checkpoint goes."""

    def test_a_pruning_leaves_what_is_yet_to_be_measured_and_takes_it_afterwards(self, run: Path, clock: Clock) -> None:
        for step in (100, 200, 300):
            add_export(run, step)
        driver = Driver(run, exports="every", retention={"keep_last": 1}, publish_to=["/place"], **MEASURED)
        away = [100, 200]
        driver.acts |= {"evaluate": evaluator(driver.config, failing=away), "publish": publisher}
        # the pruning does not wait for what may take hours
        assert driver.look() == [
            "prune", "evaluate step-00000300", "evaluate step-00000200", "evaluate step-00000100",
            "publish step-00000300 to /place", "prune",
        ]  # fmt: skip
        assert list_steps(run) == [100, 200, 300]
        away.clear()
        clock.now_s += 60
        assert driver.look() == [
            "evaluate step-00000200", "evaluate step-00000100",
            "publish step-00000100 to /place", "publish step-00000200 to /place", "prune",
        ]  # fmt: skip
        assert (list_steps(run), driver.troubles()) == ([300], [])

    def test_what_cannot_be_measured_is_kept_for_it_no_longer(self, run: Path) -> None:
        for step in (100, 300):
            add_export(run, step)
        driver = Driver(run, retention={"keep_last": 1}, jobs={"attempts": 1}, **MEASURED)
        driver.acts["evaluate"] = lambda _: Outcome(blame="job", reason="it is odd")
        driver.look()
        assert list_steps(run) == [300]
        assert ("evaluate step-00000300", True) in driver.troubles()

    def test_above_the_mark_it_goes_and_is_told_before_it_is_published(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for step in (100, 200, 300):
            add_export(run, step)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(used=95, free=5))
        driver = Driver(run, exports="every", retention={"keep_last": 1}, publish_to=["/place"], **MEASURED)
        told_at_publication = {}

        def publish(job: Job) -> Outcome:
            told_at_publication[job.step] = {trouble.what for trouble in driver.managed.status.troubles}
            return publisher(job)

        driver.acts |= {"evaluate": evaluator(driver.config), "publish": publish}
        driver.percent_above_mark = 95
        assert driver.look()[:2] == ["prune", "evaluate step-00000300"]
        assert list_steps(run) == [300]
        unmeasured = {"evaluate step-00000100", "evaluate step-00000200"}
        assert told_at_publication == dict.fromkeys((100, 200, 300), unmeasured)
        again = Driver(run, exports="every", retention={"keep_last": 1}, publish_to=["/place"], **MEASURED)
        assert set(again.troubles()) == {(what, True) for what in unmeasured}

    def test_exports_that_were_published_before_anything_was_measured_are_no_trouble(self, run: Path) -> None:
        for step in (50, 300):
            add_export(run, step)
            note_published(run, step, "/place")
        driver = Driver(run, publish_to=["/place"], **MEASURED)
        driver.acts["evaluate"] = evaluator(driver.config)
        assert (driver.look(), driver.troubles()) == (["evaluate step-00000300"], [])


class TestCard:
    """What was measured is on the card, whoever was killed in between."""

    @pytest.fixture
    def driver(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
        """Step 300 was measured, and its card is older; the jobs are the real ones, over stand-ins that do the work."""
        add_export(run, 300)
        driver = Driver(run, {"publish": publisher}, publish_to=["/place"], **MEASURED)
        driver.acts["evaluate"] = driver.performer.perform
        measure(run, 300, driver.config)
        os.utime(export_directory(run, 300) / "README.md", (1, 1))
        self.measured, self.renewed = 0, 0

        def evaluate_again(run: Path, step: int, _: object) -> Evaluation:
            self.measured += 1
            return measure(run, step, driver.config)

        def renew(run: Path, step: int, **_: object) -> None:
            self.renewed += 1
            renew_card(run, step)

        monkeypatch.setattr(evaluate, "evaluate_export", evaluate_again)
        monkeypatch.setattr(export, "renew_model_card", renew)
        return driver

    def test_a_card_that_is_older_is_renewed_before_it_is_published_and_nothing_is_measured_again(
        self, driver: Driver
    ) -> None:
        assert driver.look() == ["evaluate step-00000300", "publish step-00000300 to /place"]
        assert (self.measured, self.renewed) == (0, 1)

    def test_a_card_that_cannot_be_renewed_yet_is_waited_for(
        self, driver: Driver, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fill(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(export, "renew_model_card", fill)
            assert driver.look() == ["evaluate step-00000300"]
        assert driver.troubles() == [("evaluate step-00000300", False)]
        clock.now_s += 60
        assert driver.look() == ["evaluate step-00000300", "publish step-00000300 to /place"]
        assert (self.measured, driver.troubles()) == (0, [])

    def test_who_asks_for_it_again_has_it_measured_again(self, driver: Driver) -> None:
        driver.look()
        driver.ask_for("evaluate", 300)
        assert (self.measured, self.renewed) == (1, 2)


class TestTryingAgain:
    """A failed job is tried again or told no longer (`test_failures.py`)."""

    def test_an_export_that_a_newer_one_has_overtaken(self, run: Path, clock: Clock) -> None:
        driver = Driver(run, {"export": lambda _: Outcome(blame="machine", reason="the disk is away")})
        assert (driver.look(), driver.troubles()) == (["export step-00000300"], [("export step-00000300", False)])
        add_checkpoint(run, 400)
        add_export(run, 400)
        clock.now_s += 600
        assert (driver.troubles(), driver.look()) == ([], [])

    @pytest.mark.parametrize("kind", ["verify", "export", "evaluate"])
    def test_what_a_person_asked_for_is_tried_again_until_it_is_done(
        self, run: Path, clock: Clock, kind: JobKind
    ) -> None:
        for step in (200, 300) if kind == "evaluate" else (300,):
            add_export(run, step)
        driver = Driver(run, **MEASURED)
        driver.acts["evaluate"] = evaluator(driver.config)
        driver.look()
        failing: dict[JobKind, Act] = {kind: lambda _: Outcome(blame="machine", reason="the disk is away")}
        well, driver.acts = driver.acts, driver.acts | failing
        clock.now_s = time.time()
        driver.ask_for(kind, 200)
        assert driver.troubles() == [(f"{kind} step-00000200", False)]
        assert driver.look() == []
        # another service goes on with it, and a second failure does not end it
        again = Driver(run, driver.acts, **MEASURED)
        for _ in range(2):
            clock.now_s += 600
            assert again.look() == [f"{kind} step-00000200"]
            assert again.troubles() == [(f"{kind} step-00000200", False)]
        again.acts = well
        clock.now_s += 600
        assert (again.look(), again.troubles()) == ([f"{kind} step-00000200"], [])
