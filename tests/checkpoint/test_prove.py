"""The proof fails for every way in which an export may be wrong. In this process, but for what is about the process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from checkpoint.manifest import (
    CheckpointError,
    CheckpointManifest,
    Probe,
    checkpoint_directory,
    export_directory,
    read_manifest,
)
from checkpoint.prove import examine, mean_negative_log_likelihood, prove_directory

TensorChange = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture
def folder(exported_run: Path) -> Path:
    return export_directory(exported_run, 4)


@pytest.fixture
def manifest(exported_run: Path) -> CheckpointManifest:
    return read_manifest(checkpoint_directory(exported_run, 4))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: TensorChange) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reasons(folder: Path, manifest: CheckpointManifest) -> str:
    report = examine(folder, manifest)
    assert report.verdict == "failed"
    return "; ".join(report.reasons)


def test_sound_export_passes(folder: Path, manifest: CheckpointManifest) -> None:
    report = examine(folder, manifest)
    assert (report.verdict, report.reasons) == ("passed", ())


def test_loss_is_the_mean_over_all_positions_but_each_rows_last() -> None:
    class Favourite:
        """Logits that give id 0 a probability of one half, and the other three a sixth each."""

        def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            probabilities = torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6])
            return type("Output", (), {"logits": probabilities.log().expand(1, input_ids.shape[1], 4)})

    probe = Probe(token_ids=((3, 0, 0), (0, 2)), mean_negative_log_likelihood=0.0)
    # next ids 0, 0 and 2: (ln 2 + ln 2 + ln 6) / 3
    assert mean_negative_log_likelihood(Favourite(), probe) == pytest.approx(1.0593512767)


def test_wrong_rope_theta_fails_by_config_rotation_and_loss(folder: Path, manifest: CheckpointManifest) -> None:
    parameters = {"rope_type": "default", "rope_theta": 100_000.0}
    edit_json(folder / "config.json", rope_theta=100_000.0, rope_parameters=parameters)
    found = reasons(folder, manifest)
    assert "config.json: rope_theta is 100000.0, the trainer's is 10000.0" in found
    assert "the loaded model does not rotate with rope_theta 10000.0" in found
    assert "wanted a difference of at most 0.01" in found


@pytest.mark.parametrize("spelling", ["rope_theta", "rope_parameters"])
def test_one_spelling_of_rope_theta_is_not_enough(folder: Path, manifest: CheckpointManifest, spelling: str) -> None:
    edit_json(folder / "config.json", **{spelling: None})
    assert "is None, the trainer's is 10000.0" in reasons(folder, manifest)


def test_two_tensors_changed_for_each_other_fail_by_loss(folder: Path, manifest: CheckpointManifest) -> None:
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        first, second = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
        tensors[first], tensors[second] = tensors[second], tensors[first]

    edit_tensors(folder, swap)
    assert "wanted a difference of at most 0.01" in reasons(folder, manifest)


def test_missing_tensor_fails_by_name(folder: Path, manifest: CheckpointManifest) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    assert "missing keys: model.norm.weight" in reasons(folder, manifest)


def test_unexpected_tensor_fails_by_name(folder: Path, manifest: CheckpointManifest) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.extra": torch.ones(1)}))
    assert "unexpected keys: model.extra" in reasons(folder, manifest)


def test_tensor_that_is_not_a_number_fails(folder: Path, manifest: CheckpointManifest) -> None:
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(torch.nan))
    report = examine(folder, manifest)
    assert (report.verdict, report.got) == ("failed", None)


def test_another_epsilon_fails_by_config(folder: Path, manifest: CheckpointManifest) -> None:
    edit_json(folder / "config.json", rms_norm_eps=1e-6)
    assert "rms_norm_eps reads back as 1e-06, the trainer's is 1e-05" in reasons(folder, manifest)


def test_tokenizer_larger_than_the_vocabulary_fails(folder: Path, manifest: CheckpointManifest) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(100)])
    size = tokenizer.get_vocab_size()
    tokenizer.save(str(folder / "tokenizer.json"))
    found = reasons(folder, manifest)
    assert f"tokenizer.json has {size} tokens, the model's vocab_size is 320" in found
    assert "tokenizer.json is not the one that the datasets were made with" in found


def test_another_end_of_sequence_token_fails(folder: Path, manifest: CheckpointManifest) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token="!")
    assert "the tokenizer's eos id is 1, the trainer's is 0" in reasons(folder, manifest)


def test_file_that_transformers_cannot_read_fails(folder: Path, manifest: CheckpointManifest) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    assert "transformers cannot load it" in reasons(folder, manifest)


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_what_the_machine_does_is_no_verdict(
    folder: Path, manifest: CheckpointManifest, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(type(error)):
        examine(folder, manifest)


def test_a_missing_file_is_the_exports_failure(folder: Path, manifest: CheckpointManifest) -> None:
    (folder / "config.json").unlink()
    assert "transformers cannot load it" in reasons(folder, manifest)


def test_no_code_in_the_current_folder_is_executed(
    exported_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for who stands in a run folder that somebody else made."""
    (exported_run / "checkpoint").mkdir()
    for name in ("checkpoint/__init__", "pydantic", "torch", "xxhash"):
        (exported_run / f"{name}.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(exported_run)
    monkeypatch.setenv("PYTHONPATH", ":")  # of `export PYTHONPATH=$PYTHONPATH:`, which is the current folder too
    assert prove_directory(folder, checkpoint_directory(exported_run, 4)).verdict == "passed"


def test_manifest_that_is_none_is_an_error_and_no_verdict(exported_run: Path, folder: Path) -> None:
    (checkpoint_directory(exported_run, 4) / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the proof of .* could not be carried out"):
        prove_directory(folder, checkpoint_directory(exported_run, 4))
