"""`smollm2 pipeline fertility`: tokens per byte and per word by source, beside a reference tokenizer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import PipelineConfig
from pipeline.config_arguments import add_config_arguments
from pipeline.document import PipelineError
from pipeline.shards.format import TOKENIZER_FILE
from pipeline.text_table import aligned

if TYPE_CHECKING:
    from pipeline.tokenizer.fertility import Fertility

LoadConfig = Callable[[str, type[PipelineConfig], Sequence[str]], PipelineConfig]

SAMPLE_BYTES = 8 << 20
OWN, REFERENCE = "tokenizer", "reference"


def add_verbs(verbs: Any, *, load: LoadConfig) -> None:
    fertility = verbs.add_parser(
        "fertility",
        help="tokens per byte and per word of each source, beside a reference tokenizer",
        description="Encode a sample of each source of CONFIG, the first documents of every unit of work, and show how "
        "many tokens a byte and a word takes.",
        epilog="example: smollm2 pipeline fertility configs/data/demo.yaml --reference data/smollm2/tokenizer.json",
    )
    add_config_arguments(fertility)
    fertility.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: the config's, or its dataset's)")
    fertility.add_argument("--reference", type=Path, help="a tokenizer.json to compare with")
    fertility.add_argument(
        "--sample-bytes", type=int, default=SAMPLE_BYTES, help=f"of text of each source (default: {SAMPLE_BYTES:,})"
    )
    fertility.add_argument("--json", action="store_true", help="the same as JSON")

    def run(arguments: argparse.Namespace) -> None:
        config = load(arguments.config, PipelineConfig, arguments.overrides)
        paths = {OWN: arguments.tokenizer or tokenizer_of(config)}
        options = {OWN: "--tokenizer" if arguments.tokenizer else "tokenizer.path", REFERENCE: "--reference"}
        if arguments.reference is not None:
            paths[REFERENCE] = arguments.reference
        by_source = _measure(config, paths, options, sample_bytes=arguments.sample_bytes)
        if arguments.json:
            print(json.dumps(tree(by_source, paths), indent=1))
        else:
            print("\n".join(lines(by_source, paths)))

    fertility.set_defaults(run=run)


def tokenizer_of(config: PipelineConfig) -> Path:
    """The tokenizer that the config names, or the one that was trained for it.

    Raises PipelineError if there is none yet.
    """
    if config.tokenizer.path is not None:
        return config.tokenizer.path
    beside = config.output_dir.with_name(f"{config.output_dir.name}-tokenizer.json")
    for path in (config.output_dir / TOKENIZER_FILE, beside):
        if path.is_file():
            return path
    raise PipelineError(
        f"no tokenizer yet: neither {config.output_dir / TOKENIZER_FILE} nor {beside} is there; "
        "make one with `smollm2 pipeline train-tokenizer`, or name one with --tokenizer"
    )


def _measure(
    config: PipelineConfig, paths: Mapping[str, Path], options: Mapping[str, str], *, sample_bytes: int
) -> dict[str, Fertility]:
    from pipeline.plan import Plan, make_plan
    from pipeline.sample import sample_texts
    from pipeline.tokenizer.fertility import load_tokenizer, measure

    tokenizers = {name: load_tokenizer(path, option=options[name]) for name, path in paths.items()}
    units = make_plan(config).units
    return {
        source.name: measure(
            sample_texts(
                config, Plan(tuple(unit for unit in units if unit.source == source.name)), sample_bytes=sample_bytes
            ),
            tokenizers,
        )
        for source in config.sources
    }


def tree(by_source: Mapping[str, Fertility], paths: Mapping[str, Path]) -> dict[str, Any]:
    """The contents of `--json`."""
    return {
        "tokenizers": {name: str(path) for name, path in paths.items()},
        "sources": {
            source: {
                "documents": fertility.documents,
                "text_bytes": fertility.text_bytes,
                "words": fertility.words,
                **{
                    name: {
                        "tokens": fertility.tokens[name],
                        "tokens_per_byte": round(fertility.tokens_per_byte(name), 6),
                        "tokens_per_word": round(fertility.tokens_per_word(name), 6),
                    }
                    for name in paths
                },
            }
            for source, fertility in by_source.items()
        },
    }


def lines(by_source: Mapping[str, Fertility], paths: Mapping[str, Path]) -> Iterator[str]:
    """What the command prints."""
    for name, path in paths.items():
        yield f"{name:<9}  {path}"
    compared = REFERENCE in paths
    ratio = ["tokens/reference"] if compared else []
    units = [f"{name} tokens/{unit}" for unit in ("byte", "word") for name in paths]
    rows = [["source", "sample bytes", *units, *ratio]]
    for source, fertility in by_source.items():
        per_byte = [f"{fertility.tokens_per_byte(name):.4f}" for name in paths]
        per_word = [f"{fertility.tokens_per_word(name):.3f}" for name in paths]
        ratio = [f"{fertility.tokens[OWN] / max(1, fertility.tokens[REFERENCE]):.3f}"] if compared else []
        rows.append([source, f"{fertility.text_bytes:,}", *per_byte, *per_word, *ratio])
    yield ""
    yield from aligned(rows)
