"""What `smollm2 launch trace` tells: the documents of a step, or the steps that see a document; as text or JSON.

Needs a run's config.yaml and run.json, and the datasets: no checkpoint, no log, no torch. Loads no config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launch.config import TrainConfig, TrainingError
from launch.data.run_samples import dataset_directory, run_samples
from launch.data.trace import document_batches, trace_samples
from launch.trainer.data_history import Period
from launch.trainer.rewinds import Rewind, batch_number, batches_between
from pipeline.shards.format import read_manifest


def trace_step(periods: Sequence[Period], step: int, rewinds: Sequence[Rewind] = ()) -> dict[str, Any]:
    """The samples of a step, counted from 1. The last of the `periods` has the run's steps for its end.

    Raises TrainingError for a step that the run does not have, and for datasets that are not those that it read.
    """
    steps = periods[-1].until_step
    if not 1 <= step <= steps:
        raise TrainingError(f"--step {step}: the run has steps 1 to {steps}; name one of them")
    period = next(period for period in periods if step <= period.until_step)
    _check_datasets(period)
    config, length = period.config, period.config.samples_per_step
    batch = batch_number(step, rewinds)
    indices = range((batch - 1) * length, batch * length)
    found = trace_samples(run_samples(config, "train"), indices)
    return {
        "step": step,
        "sequence_length": config.data.sequence_length,
        "samples": [asdict(sample) for sample in found],
    }


def trace_document(periods: Sequence[Period], document_id: str, rewinds: Sequence[Rewind] = ()) -> dict[str, Any]:
    """The steps, past and to come, that see a document. Raises TrainingError if no dataset has it."""
    found, seen, first_step = False, set(), 0
    for period in periods:
        _check_datasets(period)
        config = period.config
        samples = run_samples(config, "train")
        batches = document_batches(
            samples,
            document_id,
            samples_per_step=config.samples_per_step,
            batches=batch_number(period.until_step, rewinds),
        )
        found |= batches is not None
        for start, stop in batches_between(first_step, period.until_step, rewinds):
            seen |= {batch - start + first_step + 1 for batch in batches or () if start <= batch < stop}
            first_step += stop - start
    if not found:
        raise TrainingError(f"--document {document_id}: no dataset of the run has it in its training split")
    return {"document_id": document_id, "steps": sorted(seen)}


def format_step(trace: dict[str, Any]) -> str:
    """A line a sample, and below it a line a document."""
    samples = trace["samples"]
    lines = [f"step {trace['step']}: {len(samples)} samples of {trace['sequence_length']:,} tokens"]
    for sample in samples:
        where = f"epoch {sample['epoch']}, sample {sample['sample']:,} of the stream"
        lines.append(f"sample {sample['index']:,}: {sample['source']}, {where}")
        lines += [
            f"  {span['shard']}  {span['document_id']}  tokens {span['start']:,} to {span['stop']:,} of "
            f"{span['tokens']:,}"
            for span in sample["documents"]
        ]
    return "\n".join(lines)


def format_document(trace: dict[str, Any]) -> str:
    steps = trace["steps"]
    if not steps:
        return f"{trace['document_id']} is seen in no step of the run"
    return f"{trace['document_id']} is seen in step {', '.join(f'{step:,}' for step in steps)}"


def _check_datasets(period: Period) -> None:
    config: TrainConfig = period.config
    problems = []
    for source in config.data.sources:
        digest = read_manifest(dataset_directory(source, config)).digest()
        wanted = period.dataset_digests.get(source.name)
        if digest != wanted:
            problems.append(
                f"dataset {source.name} has other contents ({digest[:19]}…) than the run has read "
                f"({(wanted or 'unknown')[:19]}…); put the old one back at {source.path}"
            )
    if problems:
        raise TrainingError("\n".join(problems))
