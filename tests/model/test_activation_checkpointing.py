"""The settings: what belongs together, and which layers they mean."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from model.activation_checkpointing import ActivationCheckpointing


def test_a_modes_name_is_enough() -> None:
    assert ActivationCheckpointing.model_validate("full") == ActivationCheckpointing(mode="full")


@pytest.mark.parametrize(
    ("settings", "recomputed"),
    [
        ("none", [False] * 5),
        ("full", [True] * 5),
        ("selective", [True] * 5),
        ({"mode": "every_n_layers", "every_n_layers": 2}, [False, True, False, True, False]),
        ({"mode": "every_n_layers", "every_n_layers": 3}, [False, False, True, False, False]),
    ],
)
def test_layers_that_are_recomputed(settings: Any, recomputed: list[bool]) -> None:
    checkpointing = ActivationCheckpointing.model_validate(settings)
    assert [checkpointing.recomputes(index) for index in range(5)] == recomputed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "every_n_layers"}, "mode=every_n_layers wants every_n_layers as well, for example 2"),
        ({"mode": "full", "every_n_layers": 2}, "every_n_layers=2 means nothing to mode=full; remove it, or take"),
        ({"mode": "every_n_layers", "every_n_layers": 1}, "greater than or equal to 2"),
        ({"mode": "full", "cpu_checkpointing": True}, "cpu_checkpointing=true means nothing to mode=full"),
        ({"partition_activations": True}, "partition_activations=true means nothing to mode=none; remove it, or take"),
        ("half", "Input should be 'none', 'full', 'every_n_layers', 'selective' or 'deepspeed'"),
    ],
)
def test_what_means_nothing_is_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ActivationCheckpointing.model_validate(settings)
