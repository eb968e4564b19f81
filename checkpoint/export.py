"""A checkpoint into a Hugging Face model directory that has proven itself: `RUN/exports/step-00000100/`.

The directory is built and proven as `.partial-step-…` and appears by one rename, `proof.json` inside. One that fails
its proof becomes `.quarantine-step-…`, where the reasons can be read, and is never published.
"""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from checkpoint.consolidate import (
    MAX_SHARD_BYTES,
    Dtype,
    as_dtype,
    hidden_folder,
    publish_folder,
    verified_layout,
    write_file,
    write_weights,
)
from checkpoint.export_folder import (
    PROOF_FILE,
    Export,
    digest_export,
    find_export_directory,
    quarantine_directory,
)
from checkpoint.first_difference import first_difference
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import (
    MODEL_CONFIG_FILE,
    TOKENIZER_FILE,
    CheckpointError,
    CheckpointManifest,
    checkpoint_directory,
    export_directory,
    exports_directory,
    read_manifest,
    step_name,
    write_durably,
)
from checkpoint.model_card import write_model_card
from checkpoint.prove import probe_of, prove_directory
from checkpoint.run_record import LOCK_FILE
from checkpoint.zero3_layout import ParameterLayout, Zero3Layout
from model.config import SmolLM2Config
from model.hf_config import huggingface_config
from model.parameters import parameter_shapes, to_huggingface_name


def export_checkpoint(
    run: Path,
    step: int,
    *,
    dtype: Dtype | None = None,
    license_name: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Export:
    """Build, prove, and publish or quarantine. The dtype is the training's unless one is given.

    `license_name` is what the model card says of the weights (see `model_card.py`).

    Raises CheckpointError for an export that exists, a damaged checkpoint, one of another model than its manifest
    describes, one without a probe, and a run without its tokenizer.
    """
    final = export_directory(run, step)
    if final.exists():
        raise CheckpointError(f"{final} exists already; remove it to export the step again")
    manifest = read_manifest(checkpoint_directory(run, step))
    probe_of(manifest)
    config, dtype = _model_config(manifest, run), dtype or as_dtype(manifest.dtype)
    with _exclusive(run), hidden_folder(final) as partial:
        # what can be wrong at once comes before what takes minutes
        _write_description(partial, run, config, dtype=dtype)
        write_model_card(partial, run, manifest, license_name=license_name)
        layout = verified_layout(run, step)
        _check_parameters(layout, config, manifest)
        write_weights(partial, parameters_as_exported(layout, config), dtype=dtype, max_shard_bytes=max_shard_bytes)
        return _settle(partial, run, manifest, published=final)


def prove_export(run: Path, step: int) -> Export:
    """Prove a published or quarantined export again; it changes sides if the verdict does.

    Raises CheckpointError if the step has not been exported.
    """
    directory = find_export_directory(run, step)
    if directory is None:
        raise CheckpointError(f"{step_name(step)} of {run} is not exported; run `smollm2 checkpoint export {run}`")
    manifest = read_manifest(checkpoint_directory(run, step))
    with _exclusive(run):
        return _settle(directory, run, manifest, published=export_directory(run, step))


def renew_model_card(run: Path, step: int, *, license_name: str | None) -> None:
    """Write a published export's card anew, with an evaluation that has come since; None keeps the card's licence.

    Raises CheckpointError if the step is not published, its checkpoint is gone, or its card cannot be read.
    """
    directory = export_directory(run, step)
    manifest = read_manifest(checkpoint_directory(run, step))
    with _exclusive(run):
        if not directory.is_dir():
            raise CheckpointError(f"{step_name(step)} of {run} is not exported; run `smollm2 checkpoint export {run}`")
        write_model_card(directory, run, manifest, license_name=license_name)


def parameters_as_exported(layout: Zero3Layout, config: SmolLM2Config) -> dict[str, ParameterLayout]:
    """The parameters under the names of Hugging Face, in the network's order."""
    return {to_huggingface_name(name): layout.parameters[name] for name in parameter_shapes(config)}


def _exclusive(run: Path) -> AbstractContextManager[None]:
    busy = f"another export of {run} is under way; wait for its end"
    return exclusive_lock(exports_directory(run) / LOCK_FILE, busy=busy)


def _settle(directory: Path, run: Path, manifest: CheckpointManifest, *, published: Path) -> Export:
    """Prove a directory, write the proof into it, and give it the name that the verdict earns."""
    # before the proof: what is changed while it runs is not what was proven
    digests = digest_export(directory)
    proof = prove_directory(directory, checkpoint_directory(run, manifest.step)).model_copy(update={"files": digests})
    if proof.verdict == "failed":
        proof = proof.model_copy(update={"reasons": (*proof.reasons, _compare_tensors(directory, run, manifest))})
    # the directory may be published, and a proof cut short would spoil it
    write_durably(directory / PROOF_FILE, (proof.model_dump_json(indent=1) + "\n").encode())
    quarantine = quarantine_directory(run, manifest.step)
    final = published if proof.verdict == "passed" else quarantine
    if final != directory:
        if final == quarantine:
            shutil.rmtree(quarantine, ignore_errors=True)
        publish_folder(directory, final)
    if final == published:
        shutil.rmtree(quarantine, ignore_errors=True)
    return Export(final, proof)


def _compare_tensors(directory: Path, run: Path, manifest: CheckpointManifest) -> str:
    """Where to look after a failed proof, in one line."""
    try:
        layout = verified_layout(run, manifest.step)
        parameters = parameters_as_exported(layout, _model_config(manifest, run))
    except (CheckpointError, KeyError) as error:
        return f"its tensors could not be compared with the checkpoint's ({' '.join(str(error).split())[:150]})"
    return first_difference(directory, parameters) or "every tensor is the checkpoint's: look at the other files"


def _write_description(folder: Path, run: Path, config: SmolLM2Config, *, dtype: Dtype) -> None:
    _write_json(folder / MODEL_CONFIG_FILE, huggingface_config(config, dtype=dtype))
    _write_json(
        folder / "generation_config.json", {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    )
    _write_tokenizer(folder, run, config)


def _model_config(manifest: CheckpointManifest, run: Path) -> SmolLM2Config:
    try:
        return SmolLM2Config.model_validate(manifest.model)
    except ValidationError as error:
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(
            f"{checkpoint_directory(run, manifest.step)}: the manifest's model is no SmolLM2 ({reason})"
        ) from None


def _check_parameters(layout: Zero3Layout, config: SmolLM2Config, manifest: CheckpointManifest) -> None:
    """The checkpoint must hold exactly the model that its manifest describes, name by name and shape by shape."""
    wanted = parameter_shapes(config)
    held = {name: parameter.shape for name, parameter in layout.parameters.items()}
    for name in sorted(wanted.keys() | held.keys()):
        if held.get(name) != wanted.get(name):
            raise CheckpointError(
                f"step {manifest.step}: parameter {name} is {_shape(held.get(name))} in the rank files and "
                f"{_shape(wanted.get(name))} by the manifest's model; take another step"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " by ".join(map(str, shape))


def _write_tokenizer(folder: Path, run: Path, config: SmolLM2Config) -> None:
    source = run / TOKENIZER_FILE
    if not source.is_file():
        raise CheckpointError(f"{source} is missing; copy it from the dataset that the run was trained on")
    content = source.read_bytes()
    write_file(folder / TOKENIZER_FILE, content)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    # tokenizers raises a bare Exception for a file that it cannot read
    except Exception as error:
        raise CheckpointError(f"{source} is not a tokenizer ({error}); copy it from the run's dataset again") from None
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "bos_token": _token(tokenizer, config.bos_token_id, source),
        "eos_token": _token(tokenizer, config.eos_token_id, source),
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _token(tokenizer: Tokenizer, token_id: int, source: Path) -> str:
    token = tokenizer.id_to_token(token_id)
    if token is None:
        raise CheckpointError(f"{source} has no token of id {token_id}, which the model's config names as special")
    return str(token)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    write_file(path, (json.dumps(tree, indent=2) + "\n").encode())
