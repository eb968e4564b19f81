"""A run whose documents are written in a random order (`shuffle_seed`): a run in order, then a shuffle of what it made.

    .NAME.unshuffled    beside the output folder: the dataset in order, made by a run like any other, which resumes
    NAME                appears whole, by one rename, when all documents are in their order; then the other goes

So the bytes depend on the config and the input only, as those of any run. Needs disk for the documents three times. A
shuffle that was interrupted begins again, the run before it does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfileobj, rmtree
from typing import TYPE_CHECKING

from pipeline.config import PipelineConfig, config_digest, content_of
from pipeline.deduplication.duplicate_report import CONTAMINATED_FILE
from pipeline.deduplication.duplicate_report import REPORT_FILE as DEDUPLICATION_FILE
from pipeline.derived.new_dataset import NewDataset, read_tokenizer_of
from pipeline.derived.new_directory import new_directory, refuse_existing
from pipeline.derived.shuffle import add_shuffled
from pipeline.document import PipelineError
from pipeline.shards.format import DatasetManifest, write_durably
from pipeline.workspace import CONFIG_FILE, REPORT_FILE, REPORT_PAGE_FILE, Workspace, is_finished

if TYPE_CHECKING:
    from pipeline.run import RunResult


def run_shuffled(config: PipelineConfig, run: Callable[[PipelineConfig], RunResult], *, append: bool) -> RunResult:
    """Make `config.output_dir` by `run` in order and a shuffle.

    Raises what `run` does, and PipelineError if the folder is there and is not of this config, or `append` is asked
    for.
    """
    assert config.shuffle_seed is not None
    output = config.output_dir
    if append:
        raise PipelineError(
            f"shuffle_seed={config.shuffle_seed}: new documents would all come last; make a dataset of the new files, "
            "merge the two, and shuffle that"
        )
    in_order = config.model_copy(
        update={"shuffle_seed": None, "output_dir": output.with_name(f".{output.name}.unshuffled")}
    )
    if is_finished(output):
        finished = _check_finished(config)
        rmtree(in_order.output_dir, ignore_errors=True)
        return finished
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    refuse_existing(output)
    result = run(in_order)
    manifest = _shuffle(config, in_order.output_dir, result.manifest)
    rmtree(in_order.output_dir)
    return replace(result, manifest=manifest, was_finished=False)


def _shuffle(config: PipelineConfig, dataset: Path, whole: DatasetManifest) -> DatasetManifest:
    assert config.shuffle_seed is not None
    with (
        new_directory(config.output_dir) as directory,
        NewDataset(directory, shard_size_bytes=config.shard_size_bytes) as new,
    ):
        add_shuffled(
            new,
            dataset,
            whole,
            scratch=directory,
            seed=config.shuffle_seed,
            bucket_size_bytes=config.shuffle_bucket_bytes,
        )
        for report in (REPORT_FILE, REPORT_PAGE_FILE, DEDUPLICATION_FILE, CONTAMINATED_FILE):
            if (dataset / report).is_file():
                _copy_durably(dataset / report, directory / report)
        content = json.dumps(content_of(config), indent=1, ensure_ascii=False) + "\n"
        write_durably(directory / CONFIG_FILE, content.encode())
        manifest = whole.model_copy(update={"config_digest": config_digest(config)})
        return new.finish(manifest, read_tokenizer_of(dataset, whole))


def _copy_durably(source: Path, target: Path) -> None:
    """In pieces: a list of contaminated documents may be long."""
    with source.open("rb") as old, target.open("wb") as new:
        copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def _check_finished(config: PipelineConfig) -> RunResult:
    """What any run finds out about a finished dataset. Raises PipelineError if it is another's."""
    from pipeline.run import RunResult, check_finished

    manifest = check_finished(config, Workspace(config.output_dir))
    return RunResult(manifest, was_finished=True, tokens=0, seconds=0.0)
