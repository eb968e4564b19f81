"""The model card of an export, `README.md` in the form of the Hugging Face hub: what the model is, and what it read.

It says what the checkpoint's manifest, the run's record and its config say, and is written anew when an evaluation has
come. The proof is of what computes, so that the card is none of its files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import yaml
from huggingface_hub.repocard import metadata_load

from checkpoint.evaluation import Evaluation, read_evaluation
from checkpoint.export_folder import CARD_FILE, PROOF_FILE
from checkpoint.manifest import MODEL_CONFIG_FILE, CheckpointError, CheckpointManifest, Probe, write_durably
from checkpoint.prove import TOLERANCE_NATS
from checkpoint.run_record import CONFIG_FILE, RunRecord, read_run
from model.config import SmolLM2Config
from model.cost import count_parameters


def write_model_card(folder: Path, run: Path, manifest: CheckpointManifest, *, license_name: str | None) -> None:
    """Replace `folder`'s card. `license_name` is an identifier of the hub's list ("apache-2.0"); where it is None, the
    card that is replaced keeps the one it states.

    Raises CheckpointError if that card or the folder's config.json cannot be read.
    """
    config = SmolLM2Config.model_validate(manifest.model)
    text = model_card(
        read_run(run),
        manifest,
        config,
        evaluation=read_evaluation(run, manifest.step),
        training_config=_read_text(run / CONFIG_FILE),
        dtype=_dtype(folder / MODEL_CONFIG_FILE),
        license_name=license_name or _stated_license(folder / CARD_FILE),
    )
    write_durably(folder / CARD_FILE, text.encode())


def model_card(
    record: RunRecord,
    manifest: CheckpointManifest,
    config: SmolLM2Config,
    *,
    evaluation: Evaluation | None,
    training_config: str,
    dtype: str,
    license_name: str | None,
) -> str:
    """The card's text; `dtype` is that of the weights beside it. The same arguments give the same text."""
    parts = [
        _metadata(license_name),
        f"# {record.name}, step {manifest.step:,}\n",
        f"A SmolLM2 model of {count_parameters(config).total:,} parameters, pretrained on {manifest.tokens_consumed:,} "
        "tokens. It continues text; it has not been taught to follow instructions.\n",
        _usage(dtype),
        "## Architecture\n",
        _table(("", ""), [*_architecture(config), ("dtype of these weights", dtype)]),
        "## Training data\n",
        _table(("source", "tokens read", "dataset"), _sources(record, manifest)),
        "## Training\n",
        _table(("", ""), _training(record, manifest)),
        "## Proof\n",
        _proof(manifest.probe),
        "## Evaluation\n",
        _evaluation(manifest, evaluation),
        "## Licence\n",
        (license_name or "None was stated when this model was exported.") + "\n",
    ]
    if training_config:
        parts += [
            "<details><summary>The whole training config</summary>\n",
            f"```yaml\n{training_config.strip()}\n```\n",
            "</details>\n",
        ]
    return "\n".join(parts)


def _metadata(license_name: str | None) -> str:
    fields = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["smollm2", "pretrained"]}
    text: str = yaml.safe_dump(fields | ({"license": license_name} if license_name else {}), sort_keys=True)
    return f"---\n{text}---\n"


def _usage(dtype: str) -> str:
    return (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # this directory\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="{dtype}")\n'
        'output = model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=50)\n'
        "print(tokenizer.decode(output[0]))\n"
        "```\n"
    )


def _architecture(config: SmolLM2Config) -> list[tuple[str, str]]:
    return [
        ("layers", f"{config.num_hidden_layers}"),
        ("hidden size", f"{config.hidden_size:,}"),
        ("intermediate size", f"{config.intermediate_size:,}"),
        ("attention heads, of which key and value", f"{config.num_attention_heads}, {config.num_key_value_heads}"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("positions", f"{config.max_position_embeddings:,}"),
        ("RoPE theta", f"{config.rope_theta:,.0f}"),
        ("embedding and head", "tied" if config.tie_word_embeddings else "of their own"),
    ]


def _sources(record: RunRecord, manifest: CheckpointManifest) -> list[tuple[str, str, str]]:
    digests = record.dataset_digests | manifest.dataset_digests
    names = sorted(digests.keys() | manifest.tokens_by_source.keys())
    read = manifest.tokens_by_source
    return [(name, f"{read[name]:,}" if name in read else "", f"`{digests.get(name, '')}`") for name in names]


def _training(record: RunRecord, manifest: CheckpointManifest) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    return [
        ("run", f"`{record.run_key}`"),
        ("step", f"{manifest.step:,}"),
        ("ranks, ZeRO stage", f"{manifest.world_size}, {manifest.zero_stage}"),
        ("dtype in training", manifest.dtype),
        ("config", f"`{manifest.config_digest}`"),
        ("tokenizer", f"`{manifest.tokenizer_digest}`"),
        ("code", f"`{record.code_revision}`"),
        ("packages", versions),
    ]


def _proof(probe: Probe | None) -> str:
    if probe is None:
        return "None: the checkpoint has no probe.\n"
    tokens = sum(len(row) for row in probe.token_ids)
    return (
        f"On {tokens:,} tokens of validation text the trainer found a loss of "
        f"{probe.mean_negative_log_likelihood:.4f} nats. `{PROOF_FILE}` says what transformers finds with the files of "
        f"this directory, their digests, and whether the two agree to within {TOLERANCE_NATS}.\n"
    )


def _evaluation(manifest: CheckpointManifest, evaluation: Evaluation | None) -> str:
    rows = []
    if manifest.validation_loss is not None:
        rows.append(("validation loss in training, nats a token", f"{manifest.validation_loss:.4f}"))
    if evaluation is not None:
        rows += [(name, f"{value:.4f}") for name, value in sorted(evaluation.metrics.items())]
    return _table(("", ""), rows) if rows else "None.\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _dtype(config: Path) -> str:
    """Of an export's weights, which need not be the training's."""
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["dtype"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{config} names no dtype; remove the export and make it again") from None


def _stated_license(card: Path) -> str | None:
    try:
        stated = (metadata_load(card) or {}).get("license")
    except FileNotFoundError:
        return None
    except (ValueError, yaml.YAMLError):
        raise CheckpointError(
            f"{card}: the front matter, which may state a licence, cannot be read; remove the card, or mend it"
        ) from None
    return stated if isinstance(stated, str) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
