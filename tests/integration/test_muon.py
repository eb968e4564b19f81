"""Muon as a user starts it: two ranks of ZeRO-3 on a tiny model, its checkpoints, and going on from one."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from checkpoint.consolidate import consolidate_checkpoint
from checkpoint.manifest import read_manifest
from model.config import SmolLM2Config
from model.init import fill_parameter_
from model.parameters import parameter_shapes, row_of

MUON_LEARNING_RATE = 0.02
SETTINGS = (
    "optimizer.name=muon",
    f"optimizer.muon_learning_rate={MUON_LEARNING_RATE}",
    "optimizer.gradient_clipping=0",
    "optimizer.weight_decay=0",
    "z_loss_coefficient=1e-3",
    "schedule.warmup_steps=0",
    "schedule.decay_steps=0",
    "checkpoint.every_steps=1",
    "steps=3",
)


@pytest.fixture(scope="module")
def runs(train_on_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Three steps at once, and a copy that lost all but the first checkpoint and went on from it."""
    folder = tmp_path_factory.mktemp("muon")
    with pytest.MonkeyPatch.context() as environment:
        # DeepSpeed's Newton–Schulz without the minute that it takes to compile
        environment.setenv("TORCHDYNAMO_DISABLE", "1")
        whole = train_on_ranks(2, folder / "whole", *SETTINGS)
        assert whole.code == 0, whole.err
        shutil.copytree(whole.run, folder / "resumed")
        for step in (2, 3):
            shutil.rmtree(folder / "resumed" / "checkpoints" / f"step-{step:08d}")
        resumed = train_on_ranks(2, folder / "resumed", *SETTINGS)
    return whole, resumed


def weights(run: Path, step: int, output: Path) -> dict[str, torch.Tensor]:
    """By name, through the reader of checkpoints."""
    consolidate_checkpoint(run, step, output, dtype="float32")
    return dict(safetensors.torch.load_file(output / "model.safetensors"))


def test_the_first_update_of_a_layers_matrix_is_orthogonal_and_of_no_other(
    runs: tuple[Any, Any], tmp_path: Path
) -> None:
    run = runs[0].run
    config = SmolLM2Config.model_validate(read_manifest(run / "checkpoints" / "step-00000001").model)
    after = weights(run, 1, tmp_path / "first")
    assert set(after) == set(parameter_shapes(config))
    for name, shape in parameter_shapes(config).items():
        before = torch.empty(shape)
        fill_parameter_(name, before, config=config, seed=7)
        update = before - after[name]
        if row_of(name).part in ("attention", "mlp"):
            singular_values = torch.linalg.svdvals(update) / MUON_LEARNING_RATE / math.sqrt(max(1, shape[0] / shape[1]))
            # the published coefficients bring singular values to about 0.7 … 1.2, the smallest ones less far
            assert 0.3 < singular_values.median() < 1.3, name
            assert singular_values.max() < 1.3, name
        else:
            # AdamW's first update is the learning rate with the gradient's sign, and less where that is near eps
            assert update.abs().max() < 1.001e-2, name
            assert update.abs().median() > 0.999e-2, name


def test_it_goes_on_from_a_checkpoint_bit_for_bit(runs: tuple[Any, Any], tmp_path: Path) -> None:
    whole, resumed = runs
    assert "resuming from step-00000001" in resumed.out
    assert set(whole.metric("train/z_loss")) == {1, 2, 3}
    assert whole.metric("train/muon_learning_rate") == pytest.approx(dict.fromkeys((1, 2, 3), MUON_LEARNING_RATE))
    assert "  lr 1.00e-02, Muon's 2.00e-02  grad norm " in whole.out
    for key in ("train/loss", "train/z_loss", "train/grad_norm", "validation/loss"):
        assert resumed.metric(key) == whole.metric(key)
    ours, theirs = (weights(ended.run, 3, tmp_path / ended.run.name) for ended in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
