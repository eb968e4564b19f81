"""Exports of real checkpoints: what is written, when it becomes visible, and what stops it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from checkpoint import export
from checkpoint.consolidate import DamagedCheckpointError
from checkpoint.export import export_checkpoint, prove_export
from checkpoint.export_folder import find_export, list_exports, quarantine_directory, read_proof
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import CheckpointError, Probe, checkpoint_directory, export_directory, read_manifest
from checkpoint.prove import examine

RunMaker = Callable[[str], Path]
ManifestEditor = Callable[..., None]


@pytest.fixture
def prove_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same proof without a process of its own, which takes seconds to load transformers."""
    monkeypatch.setattr(
        export, "prove_directory", lambda directory, checkpoint: examine(directory, read_manifest(checkpoint))
    )


def entries(run: Path) -> list[str]:
    """Everything below RUN/exports but its lock."""
    return sorted(path.name for path in (run / "exports").iterdir() if path.name != ".lock")


def read_json(path: Path) -> dict[str, object]:
    tree: dict[str, object] = json.loads(path.read_text())
    return tree


def test_export_holds_the_files_of_a_model_directory_and_its_proof(exported_run: Path) -> None:
    assert entries(exported_run) == ["step-00000004"]
    assert sorted(path.name for path in export_directory(exported_run, 4).iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "proof.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_proof_compares_with_the_trainers_loss(exported_run: Path) -> None:
    proof = read_proof(export_directory(exported_run, 4))
    probe = read_manifest(checkpoint_directory(exported_run, 4)).probe
    assert probe is not None
    assert proof.expected == probe.mean_negative_log_likelihood
    assert proof.probe_tokens == 4 * 257
    # fp32 against fp32: only the order of sums differs
    assert proof.difference == pytest.approx(0, abs=1e-4)


def test_config_has_both_spellings_of_rope_and_dtype(exported_run: Path) -> None:
    config = read_json(export_directory(exported_run, 4) / "config.json")
    assert config["rope_theta"] == 10_000.0
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")


def test_tokenizer_is_the_runs_own_under_a_class_that_all_versions_read(exported_run: Path) -> None:
    folder = export_directory(exported_run, 4)
    assert (folder / "tokenizer.json").read_bytes() == (exported_run / "tokenizer.json").read_bytes()
    assert read_json(folder / "tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
    }


def test_untied_head_is_exported(exported_run: Path) -> None:
    assert "lm_head.weight" in load_file(export_directory(exported_run, 4) / "model.safetensors")


def test_tied_sharded_bfloat16_export_proves_itself_without_a_head(make_run: RunMaker) -> None:
    run = make_run("bfloat16")
    made = export_checkpoint(run, 4, max_shard_bytes=60_000)
    assert made.passed
    assert made.proof.dtype == "bfloat16"
    index = json.loads((made.directory / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert "lm_head.weight" not in index["weight_map"]


def test_export_that_exists_is_left_alone(exported_run: Path) -> None:
    with pytest.raises(CheckpointError, match="step-00000004 exists already; remove it to export the step again"):
        export_checkpoint(exported_run, 4)


@pytest.mark.usefixtures("prove_in_process")
def test_failed_proof_is_quarantined_with_its_reasons(make_run: RunMaker, edit_manifest: ManifestEditor) -> None:
    run = make_run("float32")
    probe = read_manifest(checkpoint_directory(run, 4)).probe
    assert probe is not None
    wrong = Probe(token_ids=probe.token_ids, mean_negative_log_likelihood=probe.mean_negative_log_likelihood + 0.02)
    edit_manifest(run, 4, probe=wrong)
    made = export_checkpoint(run, 4)
    assert not made.passed
    assert entries(run) == [".quarantine-step-00000004"]
    loss, tensors = read_proof(quarantine_directory(run, 4)).reasons
    assert "wanted a difference of at most 0.01" in loss
    assert tensors == "every tensor is the checkpoint's: look at the other files"
    assert list_exports(run)[0][4].directory == quarantine_directory(run, 4)


@pytest.mark.usefixtures("prove_in_process")
def test_failed_proof_names_the_first_tensor_that_differs(exported_run: Path) -> None:
    path = export_directory(exported_run, 4) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.q_proj.weight"].zero_()
    save_file(tensors, path, metadata={"format": "pt"})
    assert (
        prove_export(exported_run, 4)
        .proof.reasons[-1]
        .startswith("model.layers.1.self_attn.q_proj.weight is the first tensor that differs from the checkpoint: ")
    )


@pytest.mark.usefixtures("prove_in_process")
def test_failed_proof_without_its_checkpoint_says_so(exported_run: Path) -> None:
    config = export_directory(exported_run, 4) / "config.json"
    config.write_text(config.read_text().replace("10000.0", "100000.0"))
    for path in (checkpoint_directory(exported_run, 4) / "zero").iterdir():
        path.unlink()
    reason = prove_export(exported_run, 4).proof.reasons[-1]
    assert reason.startswith("its tensors could not be compared with the checkpoint's (")


@pytest.mark.usefixtures("prove_in_process")
def test_quarantined_export_is_published_when_it_proves_itself_after_all(exported_run: Path) -> None:
    export_directory(exported_run, 4).rename(quarantine_directory(exported_run, 4))
    assert prove_export(exported_run, 4).directory == export_directory(exported_run, 4)
    assert entries(exported_run) == ["step-00000004"]


@pytest.mark.usefixtures("prove_in_process")
def test_published_export_that_was_spoilt_is_taken_back(exported_run: Path) -> None:
    config = export_directory(exported_run, 4) / "config.json"
    config.write_text(config.read_text().replace("10000.0", "100000.0"))
    assert not prove_export(exported_run, 4).passed
    assert entries(exported_run) == [".quarantine-step-00000004"]


@pytest.mark.usefixtures("prove_in_process")
def test_new_proof_replaces_the_old_one_at_once(exported_run: Path) -> None:
    path = export_directory(exported_run, 4) / "proof.json"
    old = path.read_text().replace('"torch_version": "', '"torch_version": "older than ')
    path.write_text(old)
    with path.open() as reader:
        prove_export(exported_run, 4)
        assert reader.read() == old
    assert "older than" not in path.read_text()


def test_spoilt_proof_is_one_line(exported_run: Path) -> None:
    (export_directory(exported_run, 4) / "proof.json").write_bytes(b"\xff")
    with pytest.raises(
        CheckpointError, match=r"proof\.json is not a proof \(.*0xff.*\); `smollm2 checkpoint prove` makes"
    ):
        find_export(exported_run, 4)


def test_proof_of_a_step_that_is_not_exported_says_what_to_run(make_run: RunMaker) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000002 of .* is not exported; run `smollm2 checkpoint export"):
        prove_export(make_run("float32"), 2)


def test_export_without_proof_is_not_taken_for_one(exported_run: Path) -> None:
    (export_directory(exported_run, 4) / "proof.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no proof\.json; `smollm2 checkpoint prove` makes one"):
        find_export(exported_run, 4)


def assert_refused(run: Path, message: str, error: type[CheckpointError] = CheckpointError) -> None:
    """The export says so in one line and leaves nothing behind."""
    with pytest.raises(error, match=message) as caught:
        export_checkpoint(run, 4)
    assert "\n" not in str(caught.value)
    assert not (run / "exports").exists() or entries(run) == []


def test_flipped_byte_is_refused(make_run: RunMaker) -> None:
    run = make_run("float32")
    path = checkpoint_directory(run, 4) / read_manifest(checkpoint_directory(run, 4)).files[0].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert_refused(run, r"contents changed .*; take another step", DamagedCheckpointError)


def test_missing_rank_file_is_refused(make_run: RunMaker) -> None:
    run = make_run("float32")
    (checkpoint_directory(run, 4) / "zero" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    assert_refused(run, r"zero_pp_rank_1_mp_rank_00_optim_states\.pt: missing; take another step")


def test_manifest_that_forgets_a_rank_is_refused(make_run: RunMaker, edit_manifest: ManifestEditor) -> None:
    run = make_run("float32")
    edit_manifest(run, 4, world_size=3)
    assert_refused(run, "holds the files of 2 ranks, its manifest says 3")


def test_manifest_of_another_model_is_refused(make_run: RunMaker, edit_manifest: ManifestEditor) -> None:
    run = make_run("float32")
    model = read_manifest(checkpoint_directory(run, 4)).model
    edit_manifest(run, 4, model={**model, "intermediate_size": 200})
    assert_refused(
        run, r"layers\.0\.mlp\.down_proj\.weight is 64 by 160 in the rank files and 64 by 200 by the manifest"
    )


def test_manifest_whose_model_is_none_is_refused(make_run: RunMaker, edit_manifest: ManifestEditor) -> None:
    run = make_run("float32")
    edit_manifest(run, 4, model={"hidden_size": 64})
    assert_refused(run, "the manifest's model is no SmolLM2")


def test_checkpoint_without_probe_is_refused(make_run: RunMaker, edit_manifest: ManifestEditor) -> None:
    run = make_run("float32")
    edit_manifest(run, 4, probe=None)
    assert_refused(run, "step 4 has no probe, so an export of it cannot be proven; train with a validation split")


def test_probe_too_short_to_show_a_wrong_rope_is_refused(make_run: RunMaker, edit_manifest: ManifestEditor) -> None:
    run = make_run("float32")
    edit_manifest(run, 4, probe=Probe(token_ids=((1, 2, 3, 4),), mean_negative_log_likelihood=5.0))
    assert_refused(run, "the probe has 4 tokens, wanted 1024 or more")


def test_run_without_tokenizer_is_refused(make_run: RunMaker) -> None:
    run = make_run("float32")
    (run / "tokenizer.json").unlink()
    assert_refused(run, r"tokenizer\.json is missing; copy it from the dataset")


def test_tokenizer_that_is_none_is_refused(make_run: RunMaker) -> None:
    run = make_run("float32")
    (run / "tokenizer.json").write_text("{}")
    assert_refused(run, r"tokenizer\.json is not a tokenizer \(.*\); copy it from the run's dataset again")


def test_second_export_at_the_same_time_is_refused(make_run: RunMaker) -> None:
    run = make_run("float32")
    with exclusive_lock(run / "exports" / ".lock", busy="held by the test"):
        assert_refused(run, "another export of .* is under way; wait for its end")


def test_full_disk_leaves_nothing(make_run: RunMaker, mount_tmpfs: Callable[[str], Path]) -> None:
    run = make_run("float32")
    # room for an export's description and not for its weights
    (run / "exports").symlink_to(mount_tmpfs("size=128k"))
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(run, 4)
    assert entries(run) == []


def test_leftover_of_a_crash_is_replaced(
    make_run: RunMaker, exported_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("bfloat16")
    partial = run / "exports" / ".partial-step-00000004"
    partial.mkdir(parents=True)
    (partial / "leftover.safetensors").touch()
    proof = read_proof(export_directory(exported_run, 4))
    monkeypatch.setattr(export, "prove_directory", lambda directory, checkpoint: proof)
    export_checkpoint(run, 4)
    assert "leftover.safetensors" not in [path.name for path in export_directory(run, 4).iterdir()]


def test_consumers_generate_from_a_published_export(exported_run: Path, tmp_path: Path) -> None:
    import transformers

    # a copy somewhere else: nothing in it may point back into the run
    folder = shutil.copytree(export_directory(exported_run, 4), tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer("the loss falls", return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3
    assert tokenizer.decode(inputs["input_ids"][0]) == "the loss falls"
