"""Leaving a step out, and finding what is no number, inside of DeepSpeed's real optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

STAGES = (1, 2, 3)
pytestmark = pytest.mark.campaign  # half a minute; stage 3 is in test_supervision.py too


@pytest.fixture(scope="module")
def found(run_one_rank: Callable[..., dict[Any, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    cases = [*((stage, "adamw") for stage in STAGES), (3, "muon")]
    return run_one_rank("guards_rank.py", {"cases": cases}, tmp_path_factory.mktemp("guards"))


@pytest.mark.parametrize("stage", STAGES)
class TestStages:
    def test_gradient_that_is_no_number_shows_in_its_square(self, found: Any, stage: int) -> None:
        assert math.isnan(found[stage, "adamw"]["square"])

    def test_square_is_that_of_deepspeeds_norm(self, found: Any, stage: int) -> None:
        assert math.sqrt(found[stage, "adamw"]["next_square"]) == pytest.approx(
            found[stage, "adamw"]["next_norm"], rel=1e-5
        )

    def test_step_that_is_left_out_changes_nothing(self, found: Any, stage: int) -> None:
        before, after = found[stage, "adamw"]["before"], found[stage, "adamw"]["after"]
        assert len(before) >= 3
        assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))

    def test_step_that_is_left_out_is_counted(self, found: Any, stage: int) -> None:
        assert found[stage, "adamw"]["counts"] == (2, 1, False)

    def test_next_step_is_as_if_nothing_had_been(self, found: Any, stage: int) -> None:
        for before, now in zip(found[stage, "adamw"]["before"], found[stage, "adamw"]["next"], strict=True):
            assert torch.isfinite(now).all()
            assert not torch.equal(before, now)

    def test_state_of_numbers_is_finite(self, found: Any, stage: int) -> None:
        assert found[stage, "adamw"]["finite"] is None

    def test_weight_that_is_no_number_is_named(self, found: Any, stage: int) -> None:
        # the first layer's weight has places 0 to 11, its bias 12 to 14
        assert found[stage, "adamw"]["weight"] == "0.bias"

    def test_moment_that_is_no_number_is_named(self, found: Any, stage: int) -> None:
        assert found[stage, "adamw"]["moment"] == "exp_avg of 0.weight"


def test_muons_momentum_is_not_spoilt_by_a_step_that_is_left_out(found: Any) -> None:
    muon = found[3, "muon"]
    assert all(torch.equal(left, right) for left, right in zip(muon["before"], muon["after"], strict=True))
    assert all(torch.isfinite(tensor).all() for tensor in muon["next"])
