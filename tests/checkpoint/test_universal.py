"""Universal Checkpoints that DeepSpeed's own converter made, against the checkpoints that it made them of."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoint.cli import main
from checkpoint.manifest import CheckpointError
from checkpoint.universal import read_universal_layout


@pytest.fixture
def convert(
    zero3_folder: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """`convert("tied-bfloat16")`: the Universal Checkpoint of a variant of two ranks."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    def run(variant: str) -> Path:
        from deepspeed.checkpoint.ds_to_universal import main as ds_to_universal

        output = tmp_path / variant
        settings = {"keep_temp_folder": False, "strict": True, "inject_missing_state": variant.startswith("stage")}
        folders = {"input_folder": str(zero3_folder(2) / variant / "zero"), "output_folder": str(output)}
        ds_to_universal(Namespace(**folders, num_extract_workers=1, num_merge_workers=1, **settings))
        return output

    return run


@pytest.mark.parametrize("variant", ["tied-bfloat16", "stage2-bfloat16"])
def test_weights_and_moments_are_those_that_deepspeed_gathers(
    zero3_folder: Callable[[int], Path],
    convert: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variant: str,
) -> None:
    universal, output, source = convert(variant), tmp_path / "weights", zero3_folder(2) / variant
    command = ["checkpoint", "consolidate", str(universal), "--output", str(output), "--optimizer"]
    monkeypatch.setattr(sys, "argv", command)
    capsys.readouterr()
    assert main() == 0
    assert " parameters in float32, " in capsys.readouterr().out
    moments = torch.load(source / "moments.pt", weights_only=True)
    weights = torch.load(source / "expected.pt", weights_only=True)
    if variant.startswith("tied"):
        del weights["lm_head.weight"]
    for stem, expected in (("model", weights), *moments.items()):
        got = load_file(output / f"{stem}.safetensors")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected), stem


def test_what_is_missing_or_leads_out_is_named(convert: Callable[[str], Path]) -> None:
    universal = convert("tied-bfloat16")
    (universal / "zero" / "scale" / "fp32.pt").unlink()
    with pytest.raises(CheckpointError, match=r"zero/scale/fp32\.pt is missing"):
        read_universal_layout(universal)
    for path in universal.glob("*_model_states.pt"):
        torch.save({"param_shapes": [{"../../scale": torch.Size([1])}]}, path)
    with pytest.raises(CheckpointError, match=r"name '\.\./\.\./scale' leads out of the folder; do not trust it"):
        read_universal_layout(universal)
