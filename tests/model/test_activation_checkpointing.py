"""The settings: what belongs together, and which layers they mean."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from model.activation_checkpointing import ActivationCheckpointing


def test_a_modes_name_is_enough() -> None:
    assert ActivationCheckpointing.model_validate("full") == ActivationCheckpointing(mode="full")


@pytest.mark.parametrize(
    ("settings", "modes"),
    [
        ("none", ["none"] * 5),
        ("full", ["full"] * 5),
        ("selective", ["selective"] * 5),
        ("deepspeed", ["deepspeed"] * 5),
        ({"mode": "every_n_layers", "every_n_layers": 2}, ["none", "full", "none", "full", "none"]),
        ({"mode": "every_n_layers", "every_n_layers": 3}, ["none", "none", "full", "none", "none"]),
        ({"mode": "selective", "every_n_layers": 2}, ["selective", "full", "selective", "full", "selective"]),
    ],
)
def test_what_each_layer_does(settings: Any, modes: list[str]) -> None:
    checkpointing = ActivationCheckpointing.model_validate(settings)
    assert [checkpointing.layer_mode(index) for index in range(5)] == modes


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "every_n_layers"}, "mode=every_n_layers wants every_n_layers as well, for example 2"),
        ({"mode": "full", "every_n_layers": 2}, "every_n_layers=2 means nothing to mode=full; set it to null, or take"),
        ({"mode": "every_n_layers", "every_n_layers": 1}, "greater than or equal to 2"),
        ({"mode": "full", "cpu_checkpointing": True}, "cpu_checkpointing=true means nothing to mode=full"),
        (
            {"partition_activations": True},
            "partition_activations=true means nothing to mode=none; set it to false, or take",
        ),
        ("half", "Input should be 'none', 'full', 'every_n_layers', 'selective' or 'deepspeed'"),
    ],
)
def test_what_means_nothing_is_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ActivationCheckpointing.model_validate(settings)
