"""Changes of a run's data on the way: what is kept of what was read before, whatever is killed and taken back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkpoint.run_record import RunRecord, write_run
from launch.config import TrainConfig
from launch.trainer.data_history import Period, read_history, same_past, settle_history

DIGESTS = {"web": "sha256:1", "code": "sha256:2"}


@pytest.fixture
def config_of(train_config: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    def build(**data: Any) -> TrainConfig:
        sources = data.pop("sources", [{"name": name, "path": name} for name in DIGESTS])
        return train_config(data={"sources": sources, "sequence_length": 64, **data})

    return build


def load(path: Path) -> TrainConfig:
    return TrainConfig.model_validate(yaml.safe_load(path.read_text()))


class Run:
    """A run's folder as starts leave it: each go settles the history and then replaces the config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.held: Period | None = None

    def go(self, step: int, config: TrainConfig, digests: dict[str, str] = DIGESTS) -> list[int]:
        now = Period(step, config, digests)
        earlier = read_history(self.folder, load)
        periods = settle_history(self.folder, step=step, earlier=earlier, now=now, before=self.held)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        write_run(
            self.folder,
            RunRecord(run_key="k", name="n", created_ms=1, code_revision="c", versions={}, dataset_digests=digests),
        )
        self.held = now
        assert [period.until_step for period in read_history(self.folder, load)] == [p.until_step for p in periods]
        return [period.until_step for period in periods]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_an_unchanged_run_has_no_history(run: Run, config_of: Callable[..., TrainConfig]) -> None:
    assert [run.go(step, config_of()) for step in (0, 50, 100)] == [[], [], []]


def test_what_was_in_force_is_kept(run: Run, config_of: Callable[..., TrainConfig]) -> None:
    first, second, third = (config_of(sequence_length=length) for length in (16, 32, 64))
    run.go(0, first)
    assert run.go(50, second) == [50]
    assert run.go(70, second) == [50]
    assert run.go(100, third, {**DIGESTS, "code": "sha256:3"}) == [50, 100]
    periods = read_history(run.folder, load)
    assert [period.config.data.sequence_length for period in periods] == [16, 32]
    assert [period.dataset_digests for period in periods] == [DIGESTS, DIGESTS]


def test_a_dataset_of_other_contents_is_a_change(run: Run, config_of: Callable[..., TrainConfig]) -> None:
    run.go(0, config_of())
    assert run.go(50, config_of(), {**DIGESTS, "code": "sha256:3"}) == [50]


def test_a_moved_dataset_is_no_change(run: Run, config_of: Callable[..., TrainConfig]) -> None:
    run.go(0, config_of())
    moved = [{"name": name, "path": f"elsewhere/{name}"} for name in DIGESTS]
    assert run.go(50, config_of(sources=moved)) == []


def test_a_resume_from_before_a_change_makes_it_anew_or_takes_it_back(
    run: Run, config_of: Callable[..., TrainConfig]
) -> None:
    first, second = config_of(sequence_length=16), config_of(sequence_length=32)
    run.go(0, first)
    run.go(100, second)
    # the checkpoints of steps 60 to 100 are damaged: the first config was in force up to 50
    assert run.go(50, second) == [50]
    assert read_history(run.folder, load)[0].config.data.sequence_length == 16
    assert run.go(40, first) == []


def test_a_second_change_at_the_same_step_keeps_what_was_trained(
    run: Run, config_of: Callable[..., TrainConfig]
) -> None:
    first, second, third = (config_of(sequence_length=length) for length in (16, 32, 64))
    run.go(0, first)
    run.go(50, second)
    assert run.go(50, third) == [50]
    assert read_history(run.folder, load)[0].config.data.sequence_length == 16


def test_a_kill_before_the_config_is_replaced_changes_nothing(run: Run, config_of: Callable[..., TrainConfig]) -> None:
    first, second = config_of(sequence_length=16), config_of(sequence_length=32)
    run.go(0, first)
    now = Period(50, second, DIGESTS)
    settle_history(run.folder, step=50, earlier=[], now=now, before=run.held)
    assert run.go(50, second) == [50]
    assert read_history(run.folder, load)[0].config.data.sequence_length == 16


def test_a_half_written_folder_is_no_history(run: Run, config_of: Callable[..., TrainConfig]) -> None:
    (run.folder / "data_history" / ".partial-until-step-00000050").mkdir(parents=True)
    assert run.go(0, config_of()) == []


WEB_FIRST = {"until_tokens": 6400, "weights": {"web": 1, "code": 0}}
REST = {"weights": {"web": 1, "code": 1}}


@pytest.mark.parametrize(
    ("before", "now", "digests", "expected"),
    [
        # the first 100 samples are web's alone in all of these
        ({"stages": [WEB_FIRST, REST]}, {"stages": [WEB_FIRST, REST]}, DIGESTS, True),
        ({"stages": [{"weights": {"web": 2, "code": 0}}]}, {"stages": [WEB_FIRST, REST]}, DIGESTS, True),
        ({"stages": [WEB_FIRST, REST]}, {"stages": [WEB_FIRST, REST]}, {**DIGESTS, "code": "sha256:3"}, True),
        ({"stages": [WEB_FIRST, REST]}, {"stages": [WEB_FIRST, REST]}, {**DIGESTS, "web": "sha256:3"}, False),
        ({"stages": [WEB_FIRST, REST]}, {"stages": [{**WEB_FIRST, "until_tokens": 6336}, REST]}, DIGESTS, False),
        ({"stages": [WEB_FIRST, REST]}, {}, DIGESTS, False),
        ({}, {"sequence_length": 32}, DIGESTS, False),
    ],
)
def test_whether_what_was_read_is_the_same_by_both(
    config_of: Callable[..., TrainConfig],
    before: dict[str, Any],
    now: dict[str, Any],
    digests: dict[str, str],
    expected: bool,
) -> None:
    first, second = Period(50, config_of(**before), DIGESTS), Period(50, config_of(**now), digests)
    assert same_past(first, second, samples=100) is expected
