"""The proof of an export: transformers, in a process of its own, must find the loss that the trainer found.

    python -m checkpoint.prove EXPORT MANIFEST      prints the report as JSON

The process loads a finished model directory as any user would and compares the mean negative log-likelihood over the
manifest's probe. The configuration, the tokenizer and the tensors' names are checked beside it, because a short or an
untrained probe may hide what they get wrong. The process imports transformers; the service does not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint.child_environment import child_environment
from checkpoint.export_folder import ProofReport
from checkpoint.manifest import (
    MANIFEST_FILE,
    MIN_PROBE_TOKENS,
    MODEL_CONFIG_FILE,
    TOKENIZER_FILE,
    CheckpointError,
    CheckpointManifest,
    Probe,
)

# Nats. Kernels that sum in another order move the mean of 1,024 tokens by about 0.001 in bfloat16; a wrong RoPE theta
# or a tensor in the wrong place moves a trained model by 0.1 and more.
TOLERANCE_NATS = 0.01

# Fields of the model's configuration that transformers must read back as the trainer had them.
_SAME_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)


class ProofError(CheckpointError):
    """The proof could not be carried out, which says nothing about the export."""


def prove_directory(directory: Path, checkpoint: Path) -> ProofReport:
    """Run the proof of a model directory against a checkpoint's manifest.

    Raises ProofError if the proof could not be carried out.
    """
    command = [sys.executable, "-m", "checkpoint.prove", str(directory), str(checkpoint / MANIFEST_FILE)]
    environment = child_environment(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ProofError(f"the proof of {directory} could not be carried out: {last_line}")
    return ProofReport.model_validate_json(done.stdout.splitlines()[-1])


def probe_of(manifest: CheckpointManifest) -> Probe:
    """The probe of a checkpoint. Raises CheckpointError if there is none or one too short to show a wrong RoPE."""
    probe = manifest.probe
    if probe is None:
        raise CheckpointError(
            f"step {manifest.step} has no probe, so an export of it cannot be proven; "
            "train with a validation split, or use `smollm2 checkpoint consolidate`"
        )
    tokens = sum(len(row) for row in probe.token_ids)
    if tokens < MIN_PROBE_TOKENS:
        raise CheckpointError(f"step {manifest.step}: the probe has {tokens} tokens, wanted {MIN_PROBE_TOKENS} or more")
    return probe


def examine(directory: Path, manifest: CheckpointManifest) -> ProofReport:
    """The proof itself, in this process: loads the directory with transformers, on the CPU."""
    import torch
    import transformers

    probe = probe_of(manifest)
    reasons: list[str] = []
    got: float | None = None
    dtype = "unknown"
    try:
        dtype = json.loads((directory / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))["dtype"]
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, dtype=getattr(torch, dtype), output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    # whatever transformers trips over is the export's failure, and the report must say so
    except Exception as error:
        if _is_machines(error):
            raise
        reasons.append(f"transformers cannot load it: {' '.join(str(error).split())[:200]}")
    else:
        reasons += _loading_reasons(loading)
        reasons += _config_reasons(directory, model, manifest.model)
        reasons += _tokenizer_reasons(directory, tokenizer, manifest)
        got = mean_negative_log_likelihood(model.eval(), probe)
        if not abs(got - probe.mean_negative_log_likelihood) <= TOLERANCE_NATS:  # also true of NaN
            reasons.append(
                f"loss {got:.4f}, the trainer's is {probe.mean_negative_log_likelihood:.4f}; "
                f"wanted a difference of at most {TOLERANCE_NATS}"
            )
    finite = got is not None and math.isfinite(got)
    return ProofReport(
        verdict="failed" if reasons else "passed",
        reasons=tuple(reasons),
        step=manifest.step,
        expected=probe.mean_negative_log_likelihood,
        got=got if finite else None,
        difference=got - probe.mean_negative_log_likelihood if finite and got is not None else None,
        tolerance=TOLERANCE_NATS,
        probe_tokens=sum(len(row) for row in probe.token_ids),
        dtype=dtype,
        transformers_version=transformers.__version__,
        torch_version=torch.__version__,
    )


def _is_machines(error: Exception) -> bool:
    """Whether it says nothing of the export: memory that ran out, a file that is there and cannot be read. What
    transformers itself finds missing it raises as an OSError without a number."""
    if isinstance(error, OSError):
        return error.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def mean_negative_log_likelihood(model: Any, probe: Probe) -> float:
    """The probe's loss in nats, as `Probe` defines it, under a transformers model; a row at a time."""
    import torch

    total, positions = 0.0, 0
    with torch.inference_mode():
        for row in probe.token_ids:
            token_ids = torch.tensor([row])
            logits = model(input_ids=token_ids, use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, token_ids[0, 1:], reduction="sum"))
            positions += len(row) - 1
    return total / positions


def _loading_reasons(loading: Mapping[str, Any]) -> list[str]:
    return [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, loading[kind]))[:3])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if loading.get(kind)
    ]


def _config_reasons(directory: Path, model: Any, wanted: Mapping[str, Any]) -> list[str]:
    import torch

    config = model.config
    reasons = [
        f"config.json: {name} reads back as {getattr(config, name, None)}, the trainer's is {wanted[name]}"
        for name in _SAME_FIELDS
        if name in wanted and getattr(config, name, None) != wanted[name]
    ]
    theta = float(wanted["rope_theta"])
    # transformers 4 reads one spelling and 5 the other, so that both must be right
    written = json.loads((directory / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))
    spellings = {
        "rope_theta": written.get("rope_theta"),
        "rope_parameters.rope_theta": (written.get("rope_parameters") or {}).get("rope_theta"),
    }
    reasons += [
        f"config.json: {name} is {got}, the trainer's is {theta}" for name, got in spellings.items() if got != theta
    ]
    frequencies = model.model.rotary_emb.inv_freq.float()
    head_dim = wanted["hidden_size"] // wanted["num_attention_heads"]
    right = theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    if frequencies.shape != right.shape or not torch.allclose(frequencies, right, rtol=1e-4):
        reasons.append(f"the loaded model does not rotate with rope_theta {theta}")
    return reasons


def _tokenizer_reasons(directory: Path, tokenizer: Any, manifest: CheckpointManifest) -> list[str]:
    reasons = []
    vocab_size, eos_token_id = manifest.model["vocab_size"], manifest.model["eos_token_id"]
    if len(tokenizer) > vocab_size:
        reasons.append(f"tokenizer.json has {len(tokenizer)} tokens, the model's vocab_size is {vocab_size}")
    if tokenizer.eos_token_id != eos_token_id:
        reasons.append(f"the tokenizer's eos id is {tokenizer.eos_token_id}, the trainer's is {eos_token_id}")
    digest = f"sha256:{hashlib.sha256((directory / TOKENIZER_FILE).read_bytes()).hexdigest()}"
    if digest != manifest.tokenizer_digest:
        reasons.append("tokenizer.json is not the one that the datasets were made with")
    return reasons


def main() -> None:
    """Entry point of the proof's own process."""
    directory, manifest_file = Path(sys.argv[1]), Path(sys.argv[2])
    manifest = CheckpointManifest.model_validate_json(manifest_file.read_text(encoding="utf-8"))
    print(examine(directory, manifest).model_dump_json())


if __name__ == "__main__":
    main()
