"""The `smollm2 model` command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.command import CommandParser, run_room
from configs.load import ConfigError, load
from model.config import SmolLM2Config
from model.describe import describe, format_table
from model.hf_config import WeightsError, read_config


def build_parser() -> argparse.ArgumentParser:
    """The room's verbs."""
    parser: argparse.ArgumentParser = CommandParser(
        prog="smollm2 model",
        description="What a model costs, from its config alone.",
        epilog="example: smollm2 model describe configs/model/smollm2-135m.yaml",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser(
        "describe",
        help="parameters by part, FLOPs a token, memory of the training states",
        description="Print a model's parameters by part, its FLOPs a token and the memory of its training states.",
        epilog="example: smollm2 model describe configs/model/smollm2-135m.yaml num_hidden_layers=12 --json",
    )
    verb.add_argument(
        "config",
        metavar="CONFIG",
        help="a model's YAML file, such as configs/model/smollm2-135m.yaml, or a Hugging Face model directory",
    )
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="changes to the file, such as hidden_size=768")
    verb.add_argument(
        "--sequence-length",
        type=_positive,
        metavar="TOKENS",
        help="length that attention's FLOPs are counted for (default: the model's max_position_embeddings)",
    )
    verb.add_argument(
        "--document-length",
        type=_positive,
        metavar="TOKENS",
        help="length of the packed documents, for the FLOPs that are needed (default: one document a sequence)",
    )
    verb.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    verb.set_defaults(run=_run_describe)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_room(build_parser(), user_errors=(WeightsError,), arguments=arguments)


def _run_describe(arguments: argparse.Namespace) -> int:
    config = _read(arguments.config, arguments.overrides)
    sequence_length = arguments.sequence_length or config.max_position_embeddings
    document_length = arguments.document_length
    if document_length is not None and document_length > sequence_length:
        raise ConfigError(
            f"--document-length {document_length} is longer than a sequence of {sequence_length} tokens; "
            f"give at most {sequence_length}, or a longer --sequence-length"
        )
    figures = describe(config, sequence_length=sequence_length, document_length=document_length)
    sys.stdout.write((json.dumps(figures, indent=2) if arguments.json else format_table(config, figures)) + "\n")
    return 0


def _read(name: str, overrides: list[str]) -> SmolLM2Config:
    """Of a YAML file, or of the config.json in a folder of published or exported weights."""
    folder = Path(name)
    if not folder.is_dir():
        return load(name, SmolLM2Config, overrides)
    if overrides:
        raise ConfigError(
            f"{folder} is a folder of weights, which takes no overrides (got {overrides[0]}); leave them out, or "
            "name a model's YAML file"
        )
    return read_config(folder)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of tokens")
    return int(text)
