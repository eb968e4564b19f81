"""The probe of a checkpoint. Its weights and moments are looked at in tests/integration/test_guards_of_stages.py."""

from __future__ import annotations

import math

import pytest

from checkpoint.manifest import Probe
from launch.trainer.finite_state import check_probe
from launch.trainer.guards import DivergedError


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_probe_without_a_loss_is_not_saved(loss: float) -> None:
    probe = Probe(token_ids=((1, 2),), mean_negative_log_likelihood=loss)
    with pytest.raises(
        DivergedError, match=rf"step 7: the loss on the probe is {loss}, so nothing was saved; .* step 5$"
    ):
        check_probe(probe, step=7, last_checkpoint=5)


def test_a_probe_with_a_loss_is() -> None:
    check_probe(Probe(token_ids=((1, 2),), mean_negative_log_likelihood=11.0), step=7, last_checkpoint=None)
