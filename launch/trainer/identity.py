"""What makes two starts the same run: which settings may differ, and what is said of those that do and may not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from checkpoint.events import RunRecord
from launch.config import TrainConfig, flatten
from launch.trainer.data_history import Period, same_past
from launch.trainer.inputs import Inputs
from pipeline.shards.format import digest_bytes

# What a resumed run may change; every other setting is part of what the run is.
_MAY_CHANGE = (
    "run_dir", "steps", "schedule", "optimizer.learning_rate", "optimizer.muon_learning_rate", "micro_batch_size",
    "attn_implementation", "activation_checkpointing", "compile", "loss_implementation", "zero", "checkpoint",
    "validation", "logging", "guards", "watchdog", "profile", "launcher", "data.tokenizer",
    "data.cache_dir", "data.cache_bytes", "allow_change",
)  # fmt: skip


def differences(before: TrainConfig, now: TrainConfig) -> list[tuple[str, str]]:
    """The key of each setting that is part of what a run is and that did change, and a line that says so."""
    old, new = _identity(before), _identity(now)
    return [
        (
            key,
            f"{key}={_shown(new.get(key))} but this run was started with {_shown(old.get(key))}; "
            "set it back, or choose another run_dir",
        )
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def config_digest(config: TrainConfig) -> str:
    """Equal for starts that are the same run, whatever they change of what may change."""
    return digest_bytes(json.dumps(_identity(config), sort_keys=True).encode())


def _identity(config: TrainConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    # one difference a stage
    stages = {f"data.stages.{number}": _stage_text(stage) for number, stage in enumerate(tree["data"].pop("stages"))}
    flat = flatten(tree) | stages
    return {
        key: value
        for key, value in flat.items()
        if not any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE)
        # a dataset may be moved: its digest is compared
        and not (key.startswith("data.sources.") and key.endswith((".path", ".max_epochs")))
    }


def _stage_text(stage: dict[str, Any]) -> str:
    end = "to the end" if stage["until_tokens"] is None else f"until {stage['until_tokens']} tokens"
    return f"({end}: {', '.join(f'{name} {weight:g}' for name, weight in sorted(stage['weights'].items()))})"


def is_data(key: str) -> bool:
    """Whether a setting, by its dotted key, is one of those that `allow_change: data` lets change."""
    return key.startswith("data.")


def data_changes(
    config: TrainConfig, previous: TrainConfig | None, inputs: Inputs, record: RunRecord | None
) -> list[str]:
    """One line for each difference in what is read: settings, and contents of datasets."""
    digests = {} if record is None else record.dataset_digests
    changes = [line for key, line in differences(previous, config) if is_data(key)] if previous is not None else []
    for name, digest in inputs.dataset_digests.items():
        if digests.get(name, digest) != digest:
            changes.append(
                f"dataset {name} has other contents ({digest[:19]}…) than when this run was started "
                f"({digests[name][:19]}…); put the old one back, or choose another run_dir"
            )
    return changes


def change_remarks(before: Period, now: Period, changes: Sequence[str], *, samples: int) -> list[str]:
    """What is said of changes that were allowed, at a step that both periods end with, after so many samples."""
    if not changes:
        return []
    what = [f"changed data: {line.rpartition('; ')[0]}" for line in changes]
    if same_past(before, now, samples=samples):
        return [*what, f"the first {now.until_step} steps have read what they would read by the changed data too"]
    return [
        *what,
        f"from step {now.until_step + 1} on samples are those of the changed data: sequences that were read before may "
        "come again (a stage that begins later changes a mixture without that)",
    ]


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
