"""The verbs of `smollm2 pipeline`: run, commit, train-tokenizer, verify, inspect; and those of the other `…_cli`."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.command import CommandParser, run_room
from configs.load import load
from pipeline import derived_cli, fertility_cli, mixture_cli
from pipeline.config import PipelineConfig
from pipeline.config_arguments import add_config_arguments
from pipeline.document import PipelineError
from pipeline.interruption import signals_interrupt
from pipeline.shards.format import DatasetError, digest_bytes, read_manifest, write_durably

if TYPE_CHECKING:
    from pipeline.run import RunResult

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    with signals_interrupt():
        return run_room(build_parser(), user_errors=(PipelineError, DatasetError), arguments=arguments)


def build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = CommandParser(
        prog="smollm2 pipeline",
        description="Corpora to tokenized Arrow shards with a manifest.",
        epilog="example: smollm2 pipeline run configs/data/demo.yaml",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    run = verbs.add_parser(
        "run",
        help="sources to Arrow shards; goes on where it was interrupted",
        description="Make the dataset that CONFIG describes. After an interruption of any kind the same command goes "
        "on and ends with the same bytes.",
        epilog="example: smollm2 pipeline run configs/data/demo.yaml output_dir=data/demo workers=2",
    )
    run.add_argument(
        "--shard", metavar="i/n", help="only the units whose index is i modulo n, for array jobs; then: commit"
    )
    add_config_arguments(run)
    run.add_argument(
        "--append",
        action="store_true",
        help="add input files that the finished dataset does not hold yet, as its next version",
    )
    run.set_defaults(run=_run)

    commit = verbs.add_parser(
        "commit",
        help="make the dataset when all its shards are done",
        description="Make the dataset of a run whose units were done by `run --shard i/n` for every i.",
        epilog="example: smollm2 pipeline commit configs/data/demo.yaml",
    )
    add_config_arguments(commit)
    commit.set_defaults(run=_commit)

    train = verbs.add_parser(
        "train-tokenizer",
        help="only the tokenizer of a config, to share it between datasets",
        description="Train the tokenizer that CONFIG describes (tokenizer.train) on its sources.",
        epilog="example: smollm2 pipeline train-tokenizer configs/data/demo.yaml --output data/demo-tokenizer.json",
    )
    add_config_arguments(train)
    train.add_argument("--output", type=Path, help="the file to write (default: OUTPUT_DIR-tokenizer.json)")
    train.set_defaults(run=_train_tokenizer)

    fertility_cli.add_verbs(verbs, load=load)
    mixture_cli.add_verbs(verbs, load=load)
    _add_looks(verbs)
    derived_cli.add_verbs(verbs)
    return parser


def _add_looks(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs that only look at a finished dataset."""
    verify = verbs.add_parser(
        "verify",
        help="re-read and re-hash a dataset; exit 1 names the bad shard",
        description="Re-read a dataset against its manifest: digests, rows, sums. Exit 1 if anything differs.",
        epilog="example: smollm2 pipeline verify data/demo",
    )
    verify.add_argument("dataset", type=Path, metavar="DATASET")
    verify.set_defaults(run=_verify)

    inspect = verbs.add_parser(
        "inspect",
        help="counts by split and source, document lengths, decoded samples",
        description="Print a dataset's counts, its sources, the lengths of its documents, and decoded samples.",
        epilog="example: smollm2 pipeline inspect data/demo --samples 5",
    )
    inspect.add_argument("dataset", type=Path, metavar="DATASET")
    inspect.add_argument("--samples", type=int, default=3, help="documents to decode (default: 3)")
    inspect.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the lengths of its documents as well")
    inspect.set_defaults(run=_inspect)


def _run(arguments: argparse.Namespace) -> None:
    config = load(arguments.config, PipelineConfig, arguments.overrides)
    if arguments.shard is not None:
        if arguments.append:
            raise PipelineError("--append does not go with --shard; run it without")
        from pipeline.array_job import RunShard, run_shard

        done = run_shard(config, RunShard.parse(arguments.shard))
        print(
            f"{config.name}: shard {arguments.shard} is done, {done.units:,} units, {done.tokens:,} tokens "
            f"in {done.seconds:.1f} s; when all are: smollm2 pipeline commit "
            + shlex.join([arguments.config, *arguments.overrides])
        )
        return
    from pipeline.run import run

    _print_result(config, run(config, append=arguments.append), appended=arguments.append)


def _commit(arguments: argparse.Namespace) -> None:
    config = load(arguments.config, PipelineConfig, arguments.overrides)
    from pipeline.array_job import commit

    _print_result(config, commit(config))


def _print_result(config: PipelineConfig, result: RunResult, *, appended: bool = False) -> None:
    from pipeline.empty_validation import empty_validation_warning

    if (warning := empty_validation_warning(config.output_dir, result.manifest)) is not None:
        log.warning("%s: %s", config.name, warning)
    documents, tokens = result.manifest.documents, result.manifest.tokens
    if result.was_finished:
        may_append = not appended and config.shuffle_seed is None and not config.deduplication.is_on
        hint = " (the sources are not looked at again; --append adds new files)" if may_append else ""
        print(f"{config.name}: already finished, {documents:,} documents, {tokens:,} tokens: {config.output_dir}{hint}")
        return
    print(
        f"{config.name}: {documents:,} documents, {tokens:,} tokens in {result.seconds:.1f} s "
        f"({result.tokens / result.seconds:,.0f} tokens/s): {config.output_dir}"
    )


def _train_tokenizer(arguments: argparse.Namespace) -> None:
    config = load(arguments.config, PipelineConfig, arguments.overrides)
    output: Path = arguments.output or config.output_dir.with_name(f"{config.output_dir.name}-tokenizer.json")
    if output.exists():
        raise PipelineError(f"{output} is there already; remove it, or choose another with --output")
    from pipeline.plan import make_plan
    from pipeline.run import make_tokenizer

    content = make_tokenizer(config, make_plan(config))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_durably(output, content)
    print(f"{output}: {digest_bytes(content)}")


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.executors import available_cores
    from pipeline.shards.verify import verify_dataset

    problems = verify_dataset(arguments.dataset, threads=available_cores())
    for problem in problems:
        print(problem, file=sys.stderr)
    manifest = read_manifest(arguments.dataset)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    print(f"{arguments.dataset}: {'DAMAGED' if problems else 'whole'}, {shards:,} shards, problems: {len(problems):,}")
    return 1 if problems else 0


def _inspect(arguments: argparse.Namespace) -> None:
    manifest = read_manifest(arguments.dataset)
    from pipeline.lengths import draw_lengths, measure_lengths
    from pipeline.summary import summary

    lengths = measure_lengths(arguments.dataset, manifest.splits["train"])
    for line in summary(arguments.dataset, manifest, lengths, samples=arguments.samples):
        print(line)
    if arguments.plot is not None:
        draw_lengths(lengths, manifest, arguments.plot)
