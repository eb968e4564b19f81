"""A run of two ranks that goes on with one, then with three: the same samples, losses and counters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkpoint.manifest import list_steps, read_manifest, verify_checkpoint

STEPS, EVERY, MICRO_BATCHES = 12, 4, 6
# 24 samples in 6 micro-batches: 1, 2, 3 and 6 ranks share them
SETTINGS = (
    "batch_tokens=1536", f"steps={STEPS}", "schedule.decay_steps=4", f"checkpoint.every_steps={EVERY}",
    f"validation.every_steps={STEPS}",
)  # fmt: skip


def samples_of_steps(records: Path, *, first_step: int, micro_batches: int = MICRO_BATCHES) -> dict[int, list[str]]:
    """What the ranks together trained on, by step; a step that not all of them ended is left out."""
    ranks = [[json.loads(line) for line in file.read_text().splitlines()] for file in sorted(records.iterdir())]
    own = micro_batches // len(ranks)
    steps = min(len(lines) for lines in ranks) // own
    return {
        first_step + 1 + step: sorted(
            row for lines in ranks for micro_batch in lines[step * own : (step + 1) * own] for row in micro_batch
        )
        for step in range(steps)
    }


def go_on_from(run: Path, step: int) -> None:
    for later in list_steps(run):
        if later > step:
            shutil.rmtree(run / "checkpoints" / f"step-{later:08d}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def whole(train_on_ranks: Any, folder: Path) -> Any:
    ended = train_on_ranks(2, folder / "whole", *SETTINGS, records=folder / "two")
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="module")
def on_one(train_on_ranks: Any, folder: Path, whole: Any) -> Any:
    run = shutil.copytree(whole.run, folder / "elastic")
    go_on_from(run, EVERY)
    return train_on_ranks(1, run, *SETTINGS, records=folder / "one")


@pytest.fixture(scope="module")
def on_three(train_on_ranks: Any, folder: Path, on_one: Any) -> Any:
    go_on_from(on_one.run, 2 * EVERY)
    return train_on_ranks(3, on_one.run, *SETTINGS, records=folder / "three")


def test_it_says_what_it_does_in_one_line_and_as_an_event(on_one: Any, on_three: Any) -> None:
    for ended, step, before, now in ((on_one, 4, "2 ranks", 1), (on_three, 8, "1 rank", 3)):
        assert ended.code == 0, ended.err
        [line] = [line for line in ended.out.splitlines() if line.startswith("resuming")]
        assert line == (
            f"resuming from step-{step:08d}, which {before} saved, resharded to {now}: 24 samples a step and their "
            "order as before"
        )
    told = [event for event in on_three.events if "resharded_from" in event.fields]
    assert [(event.step, event.fields["resharded_from"], event.fields["resharded_to"]) for event in told] == [
        (4, 2, 1),
        (8, 1, 3),
    ]


def test_every_step_trains_on_the_same_samples(folder: Path, whole: Any, on_three: Any) -> None:
    expected = samples_of_steps(folder / "two", first_step=0)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert all(len(set(samples)) == 24 for samples in expected.values())
    assert samples_of_steps(folder / "one", first_step=4) == {step: expected[step] for step in range(5, 13)}
    assert samples_of_steps(folder / "three", first_step=8) == {step: expected[step] for step in range(9, 13)}


def test_losses_are_those_of_the_uninterrupted_run(whole: Any, on_three: Any) -> None:
    # the same numbers, summed in another order
    for key in ("train/loss", "train/grad_norm", "validation/loss"):
        assert on_three.metric(key) == pytest.approx(whole.metric(key), rel=1e-3)
    assert on_three.metric("train/learning_rate") == whole.metric("train/learning_rate")


def test_the_first_step_after_it_is_no_different_from_the_last_bit_of_its_sums(whole: Any, on_three: Any) -> None:
    # a moment or a weight in another place would show at once, long before 1e-3
    for step in (5, 9):
        assert on_three.metric("train/loss")[step] == pytest.approx(whole.metric("train/loss")[step], rel=1e-5)
    assert on_three.metric("train/grad_norm")[5] == pytest.approx(whole.metric("train/grad_norm")[5], rel=1e-4)


def test_checkpoints_go_on_with_the_new_number_of_ranks(on_three: Any) -> None:
    run = on_three.run / "checkpoints"
    manifests = [read_manifest(run / f"step-{step:08d}") for step in (4, 8, 12)]
    assert [manifest.world_size for manifest in manifests] == [2, 1, 3]
    assert [manifest.samples_consumed for manifest in manifests] == [96, 192, 288]
    assert verify_checkpoint(run / "step-00000012") == []
    # nothing was written for the conversion
    assert sorted(path.name for path in run.iterdir()) == ["latest", *(f"step-{step:08d}" for step in (4, 8, 12))]
