"""`smollm2 pipeline mixture`: a table, or JSON, of what a training config will read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from pipeline.config_arguments import add_config_arguments
from pipeline.mixture import MixtureFields, MixturePreview, SourcePreview, preview
from pipeline.quantities import share, short_number
from pipeline.text_table import aligned

LoadConfig = Callable[[str, type[MixtureFields], Sequence[str]], MixtureFields]


def add_verbs(verbs: Any, *, load: LoadConfig) -> None:
    mixture = verbs.add_parser(
        "mixture",
        help="what a training config reads: epochs, tokens by stage, what runs out when",
        description="Show how often a training run goes through each of its datasets, how many tokens of each a stage "
        "reads, and at which step a dataset begins again. CONFIG is a training config.",
        epilog="example: smollm2 pipeline mixture configs/train/smollm2-135m.yaml steps=100_000",
    )
    add_config_arguments(mixture, examples="configs/train/")
    mixture.add_argument("--json", action="store_true", help="the same as JSON")

    def run(arguments: argparse.Namespace) -> None:
        result = preview(load(arguments.config, MixtureFields, arguments.overrides))
        print(json.dumps(asdict(result), indent=1) if arguments.json else "\n".join(lines(result)))

    mixture.set_defaults(run=run)


def lines(result: MixturePreview) -> Iterator[str]:
    """What the command prints."""
    ends = list(accumulate(stage.samples for stage in result.stages))
    steps = -(-ends[-1] // result.samples_per_step)
    tokens_per_step = result.samples_per_step * result.sequence_length
    yield (
        f"{result.name}: {steps:,} steps of {result.samples_per_step:,} sequences of {result.sequence_length:,} "
        f"tokens: {short_number(steps * tokens_per_step)} tokens\n"
    )
    yield from aligned(
        [
            ["stage", "last step", "tokens", *(source.name for source in result.sources)],
            *(
                [
                    stage.name,
                    f"{-(-ends[index] // result.samples_per_step):,}",
                    short_number(stage.samples * result.sequence_length),
                    *(short_number(source.tokens_by_stage[index]) for source in result.sources),
                ]
                for index, stage in enumerate(result.stages)
            ),
        ]
    )
    yield ""
    total = steps * tokens_per_step
    yield from aligned(
        [
            ["source", "share", "reads", "has", "epochs", "begins again"],
            *(
                [
                    source.name,
                    share(source.tokens_read, total),
                    short_number(source.tokens_read),
                    "?" if source.tokens_available is None else short_number(source.tokens_available),
                    "?" if source.epochs is None else f"{source.epochs:.2f}",
                    _begins_again(source, steps, stages=len(result.stages)),
                ]
                for source in result.sources
            ),
        ]
    )
    if result.remarks:
        yield ""
        yield from result.remarks


def _begins_again(source: SourcePreview, steps: int, *, stages: int) -> str:
    if source.epochs is None:
        return "?"
    if source.repeats_at_step is None:
        return "never"
    stage = f", stage {source.repeats_in_stage}" if stages > 1 else ""
    return f"step {source.repeats_at_step:,} ({source.repeats_at_step / steps:.0%} of the run{stage})"
