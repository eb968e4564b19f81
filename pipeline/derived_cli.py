"""The verbs of `smollm2 pipeline` that make something of finished datasets: merge, split, sample, shuffle, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.document import PipelineError
from pipeline.shards.format import DatasetManifest


def add_verbs(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add them to the command's."""
    _add_merge(verbs)
    _add_split(verbs)
    _add_sample(verbs)
    _add_shuffle(verbs)
    _add_export(verbs)


def _add_merge(verbs: argparse._SubParsersAction[Any]) -> None:
    merge = verbs.add_parser(
        "merge",
        help="one dataset of several; shards are linked, not rewritten",
        description="Make OUT of the documents of all DATASETs, in their order. They must be of one tokenizer.",
        epilog="example: smollm2 pipeline merge data/all data/web data/code",
    )
    _add_output(merge)
    merge.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    _add_copy(merge)
    merge.set_defaults(run=_merge)


def _add_split(verbs: argparse._SubParsersAction[Any]) -> None:
    split = verbs.add_parser(
        "split",
        help="several datasets of one, in its order",
        description="Cut DATASET into OUTs, in the order of its documents (for parts at random, shuffle it first). "
        "Sizes are given for all OUTs but the last, which takes the rest; they are counted on the training documents, "
        "and the validation documents are cut in proportion.",
        epilog="example: smollm2 pipeline split data/all data/most data/rest --fractions 0.9",
    )
    split.add_argument("dataset", type=Path, metavar="DATASET")
    split.add_argument("outputs", type=Path, nargs="+", metavar="OUT", help="folders to make")
    size = split.add_mutually_exclusive_group(required=True)
    size.add_argument("--fractions", metavar="F,…", help="shares of the documents, such as 0.8,0.1")
    size.add_argument("--documents", metavar="N,…")
    size.add_argument("--tokens", metavar="N,…", help="a part ends with the document that reaches so many")
    _add_copy(split)
    split.set_defaults(run=_split)


def _add_sample(verbs: argparse._SubParsersAction[Any]) -> None:
    sample = verbs.add_parser(
        "sample",
        help="a dataset of some documents of another, at random",
        description="Make OUT of documents of DATASET that are drawn by a seed, in their order. Sizes are counted on "
        "the training documents; of the validation documents the same share is drawn. A smaller sample of a seed is "
        "part of a larger one.",
        epilog="example: smollm2 pipeline sample data/all data/small --tokens 10000000 --seed 1",
    )
    sample.add_argument("dataset", type=Path, metavar="DATASET")
    _add_output(sample)
    size = sample.add_mutually_exclusive_group(required=True)
    size.add_argument("--fraction", type=float, metavar="F", help="a share of the documents, up to 1")
    size.add_argument("--documents", type=int, metavar="N")
    size.add_argument("--tokens", type=int, metavar="N", help="it ends with the document drawn that reaches so many")
    _add_seed(sample)
    sample.set_defaults(run=_sample)


def _add_shuffle(verbs: argparse._SubParsersAction[Any]) -> None:
    shuffle = verbs.add_parser(
        "shuffle",
        help="the same documents in a random order",
        description="Make OUT of the documents of DATASET in a random order, by a seed. Needs disk for them twice, and "
        "memory for about two buckets.",
        epilog="example: smollm2 pipeline shuffle data/all data/shuffled --seed 1",
    )
    shuffle.add_argument("dataset", type=Path, metavar="DATASET")
    _add_output(shuffle)
    _add_seed(shuffle)
    shuffle.add_argument(
        "--bucket-mib",
        type=_bucket_mib,
        default=128,
        metavar="N",
        help="up to 2048; more than N where there would be more than 2,048 buckets; the order does not depend on it "
        "(default: 128)",
    )
    shuffle.set_defaults(run=_shuffle)


def _add_export(verbs: argparse._SubParsersAction[Any]) -> None:
    export = verbs.add_parser(
        "export",
        help="Parquet, JSON lines, or Megatron-LM's .bin and .idx",
        description="Write the documents of DATASET into the folder OUT, in the format of other tools.",
        epilog="example: smollm2 pipeline export data/all data/all-parquet --format parquet --content both",
    )
    export.add_argument("dataset", type=Path, metavar="DATASET")
    _add_output(export)
    export.add_argument("--format", choices=("parquet", "jsonl", "megatron"), required=True)
    export.add_argument(
        "--content",
        choices=("ids", "text", "both"),
        default="ids",
        help="columns: input_ids, or the text that they decode to, or both (default: ids)",
    )
    export.set_defaults(run=_export)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder to make")


def _add_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--copy", action="store_true", help="copy shards, instead of hard links where the file system allows them"
    )


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="(default: 0)")


def _seed(text: str) -> int:
    value = _whole_number(text)
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{value} is not in 0 to 2**64 - 1")
    return value


def _bucket_mib(text: str) -> int:
    value = _whole_number(text)
    if not 0 < value <= 2048:  # Arrow counts the ids of a bucket in 32 bits
        raise argparse.ArgumentTypeError(f"{value} is not in 1 to 2048")
    return value


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _merge(arguments: argparse.Namespace) -> None:
    from pipeline.derived.merge import merge

    result = merge(arguments.output, arguments.datasets, placement="copy" if arguments.copy else "link")
    how = f"{result.linked_shards:,} shards linked, {result.copied_shards:,} copied"
    print(f"{_counts(result.manifest, arguments.output)} ({how})")


def _split(arguments: argparse.Namespace) -> None:
    from pipeline.derived.split import Cuts, split

    if arguments.fractions is not None:
        cuts = Cuts("fractions", tuple(_numbers(arguments.fractions, float, option="--fractions")))
    elif arguments.documents is not None:
        cuts = Cuts("documents", tuple(_numbers(arguments.documents, int, option="--documents")))
    else:
        cuts = Cuts("tokens", tuple(_numbers(arguments.tokens, int, option="--tokens")))
    parts = split(arguments.dataset, arguments.outputs, cuts=cuts, placement="copy" if arguments.copy else "link")
    for part, output in zip(parts, arguments.outputs, strict=True):
        print(_counts(part, output))


def _numbers(text: str, of: type[int] | type[float], *, option: str) -> list[Any]:
    try:
        numbers = [of(part) for part in text.split(",")]
    except ValueError:
        wanted = "whole numbers" if of is int else "numbers"
        raise PipelineError(f"{option} {text}: wanted {wanted} with commas between them") from None
    if not all(0 < number < float("inf") for number in numbers):
        raise PipelineError(f"{option} {text}: wanted numbers above 0")
    return numbers


def _sample(arguments: argparse.Namespace) -> None:
    from pipeline.derived.sample import SampleSize, sample

    if arguments.fraction is not None:
        size = SampleSize("fraction", arguments.fraction)
    elif arguments.documents is not None:
        size = SampleSize("documents", arguments.documents)
    else:
        size = SampleSize("tokens", arguments.tokens)
    manifest = sample(arguments.dataset, arguments.output, size=size, seed=arguments.seed)
    print(_counts(manifest, arguments.output))


def _shuffle(arguments: argparse.Namespace) -> None:
    from pipeline.derived.shuffle import shuffle

    bucket_size_bytes = arguments.bucket_mib << 20
    manifest = shuffle(arguments.dataset, arguments.output, seed=arguments.seed, bucket_size_bytes=bucket_size_bytes)
    print(_counts(manifest, arguments.output))


def _export(arguments: argparse.Namespace) -> None:
    from pipeline.derived.export import export

    manifest = export(arguments.dataset, arguments.output, to=arguments.format, content=arguments.content)
    print(f"{_counts(manifest, arguments.output)} ({arguments.format})")


def _counts(manifest: DatasetManifest, output: Path) -> str:
    return f"{output}: {manifest.documents:,} documents, {manifest.tokens:,} tokens"
