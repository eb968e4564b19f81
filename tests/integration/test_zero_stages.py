"""ZeRO stages 1 and 2 as a setting: two real ranks train, save, resume bit for bit, and what they saved is read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from checkpoint.consolidate import consolidate_checkpoint
from checkpoint.manifest import checkpoint_directory, list_steps, read_manifest
from model.config import SmolLM2Config
from model.transformer import SmolLM2

COMMON = ("steps=6", "checkpoint.every_steps=3", "schedule.warmup_steps=0", "schedule.decay_steps=0")


@pytest.fixture(scope="module")
def sharded_state(train_on_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stage 1 in bfloat16, which DeepSpeed gives to another optimizer class than stage 2."""
    run = tmp_path_factory.mktemp("stage-1") / "run"
    return train_on_ranks(2, run, *COMMON, "zero.stage=1", "precision=bfloat16")


@pytest.fixture(scope="module")
def sharded_gradients(train_on_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stage 2 in float32."""
    return train_on_ranks(2, tmp_path_factory.mktemp("stage-2") / "run", *COMMON, "zero.stage=2")


def probe_loss(run: Path, folder: Path) -> tuple[float, float]:
    """In the trainer, and by the plain model with the consolidated weights."""
    manifest = read_manifest(checkpoint_directory(run, 6))
    dtype: Any = manifest.dtype
    consolidate_checkpoint(run, 6, folder, dtype=dtype)
    model = SmolLM2(SmolLM2Config.model_validate(manifest.model)).to(getattr(torch, dtype))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert manifest.probe is not None
    rows = torch.tensor(manifest.probe.token_ids)
    labels = torch.full_like(rows, -100)
    labels[:, :-1] = rows[:, 1:]
    with torch.no_grad():
        return manifest.probe.mean_negative_log_likelihood, float(model(rows, labels=labels))


@pytest.mark.parametrize("stage", [1, 2])
def test_consolidated_weights_have_the_trainers_loss(
    stage: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    ended = request.getfixturevalue("sharded_state" if stage == 1 else "sharded_gradients")
    assert ended.code == 0, ended.err
    assert read_manifest(checkpoint_directory(ended.run, 6)).zero_stage == stage
    trained, consolidated = probe_loss(ended.run, tmp_path / "weights")
    assert trained < ended.metric("validation/loss")[0] - 0.1, "something was learnt"
    assert consolidated == pytest.approx(trained, abs=5e-3 if stage == 1 else 1e-5)


def test_resume_of_stage_1_goes_on_bit_for_bit_and_another_stage_is_refused(
    start_training: Any, train_on_ranks: Any, sharded_state: Any, tmp_path: Path
) -> None:
    run = shutil.copytree(sharded_state.run, tmp_path / "run")
    shutil.rmtree(checkpoint_directory(run, 6))
    refused = start_training(run, *COMMON, "zero.stage=3", "precision=bfloat16").end()
    assert refused.code == 2
    assert "was saved with zero.stage=1 and this start has zero.stage=3; start it with zero.stage=1" in refused.err
    resumed = train_on_ranks(2, run, *COMMON, "zero.stage=1", "precision=bfloat16")
    assert resumed.code == 0, resumed.err
    assert "resuming from step-00000003" in resumed.out
    assert list_steps(run) == [3, 6]
    for key in ("train/loss", "train/grad_norm", "validation/loss"):
        assert resumed.metric(key)[6] == sharded_state.metric(key)[6], key
