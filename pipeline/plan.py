"""How a run is cut into units of work: a pure function of the config and the input files, not of the workers.

A unit's documents go to shards of its own, so units can be done in any order, anywhere, and again.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.document import PipelineError, SourceError
from pipeline.filter_config import look_into_text
from pipeline.report import MAX_EXAMPLES, examples_per_unit
from pipeline.sources.catalog import reader_of
from pipeline.sources.piece import PackedPieces, Piece

# what a kill costs a worker at most: less than ten seconds, whatever the engine (benchmarks/lost_work.py). Filters that
# look into a text go through some 2 to 7 MB/s, everything else through 7 to 45
UNIT_SIZE_BYTES = 32 << 20
FILTERED_UNIT_SIZE_BYTES = 8 << 20
# of an input too small for this many units they are smaller, down to a quarter: so many cores are busy to the end
FULL_SIZE_UNITS = 256
LARGEST_TO_SMALLEST = 4

# a unit is a shard of each split, and a trainer maps each shard: Linux lets a process have 65,530 maps
MAX_UNITS = 1 << 14

# whose pieces are ranges of a file or table, of bytes, row groups, record batches or rows, which joined read the same
_TYPES_OF_RANGES = ("jsonl", "parquet", "arrow", "huggingface")

MAX_NAMED_PIECES = 8


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive pieces of one source: the work of one worker at one time.

    `max_examples` is how many dropped records its record shows for each reason.
    """

    index: int
    source: str
    pieces: tuple[Piece, ...]
    max_examples: int = MAX_EXAMPLES

    @property
    def size_bytes(self) -> int:
        return sum(piece.size_bytes for piece in self.pieces)

    def __str__(self) -> str:
        """`unit 3 of web (a.jsonl 0-1000, b.jsonl 0-70, …)`."""
        named = [f"{piece.path} {piece.start}-{piece.stop}" for piece in self.pieces[:MAX_NAMED_PIECES]]
        more = len(self.pieces) - len(named)
        return f"unit {self.index} of {self.source} ({', '.join(named)}{f', and {more} more' if more else ''})"


@dataclass(frozen=True, slots=True)
class Plan:
    """All units of a run, in the order of the dataset's shards."""

    units: tuple[Unit, ...]

    @property
    def size_bytes(self) -> int:
        return sum(unit.size_bytes for unit in self.units)

    @property
    def size_bytes_by_source(self) -> dict[str, int]:
        sizes: Counter[str] = Counter()
        for unit in self.units:
            sizes[unit.source] += unit.size_bytes
        return dict(sizes)


def make_plan(config: PipelineConfig) -> Plan:
    """Lists the sources' input and groups it.

    Raises SourceError for a source that has no input or cannot be opened.
    """
    cut_bytes = config.unit_size_bytes or _largest_default(config) // LARGEST_TO_SMALLEST
    pieces: dict[str, PackedPieces] = {}
    for source in config.sources:
        found = reader_of(source).find_pieces(source, unit_size_bytes=cut_bytes)
        pieces[source.name] = PackedPieces(_outside(config.output_dir, found))
        if not pieces[source.name]:
            raise SourceError(f"source {source.name!r} is empty: none of its files holds a record")
    return Plan(units_of(pieces, config))


def _outside(dataset: Path, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Those that are no files of the dataset itself: a pattern may match what stands beside its shards."""
    own = f"{os.path.abspath(dataset)}{os.sep}"  # noqa: PTH100, which also resolves `..`
    return (piece for piece in pieces if not os.path.abspath(piece.path).startswith(own))  # noqa: PTH100, URLs too


def units_of(
    pieces: Mapping[str, Sequence[Piece] | PackedPieces], config: PipelineConfig, *, first_index: int = 0
) -> tuple[Unit, ...]:
    """Units of the pieces of each source, numbered on; of the config's size, or of `default_unit_size_bytes`."""
    unit_size_bytes = config.unit_size_bytes
    if unit_size_bytes is None:
        total_bytes = sum(piece.size_bytes for of_source in pieces.values() for piece in of_source)
        unit_size_bytes = default_unit_size_bytes(total_bytes, largest=_largest_default(config))
    types = {source.name: source.type for source in config.sources}
    units: list[Unit] = []
    for source, of_source in pieces.items():
        joins = types[source] in _TYPES_OF_RANGES
        # joined as they come: all pieces of a corpus of many TB are millions of row groups
        groups = [
            _joined(group) if joins else group for group in group_pieces(of_source, unit_size_bytes=unit_size_bytes)
        ]
        max_examples = examples_per_unit(len(groups)) if groups else 0
        units += [
            Unit(index=index, source=source, pieces=group, max_examples=max_examples)
            for index, group in enumerate(groups, start=first_index + len(units))
        ]
    return tuple(units)


def default_unit_size_bytes(input_bytes: int, *, largest: int) -> int:
    """`largest`, less of a small input, and more of one that would have more than about MAX_UNITS."""
    if input_bytes > largest * MAX_UNITS:
        return largest * math.ceil(input_bytes / (largest * MAX_UNITS))
    return max(largest // LARGEST_TO_SMALLEST, min(largest, math.ceil(input_bytes / FULL_SIZE_UNITS)))


def _largest_default(config: PipelineConfig) -> int:
    return FILTERED_UNIT_SIZE_BYTES if look_into_text(config.filters) else UNIT_SIZE_BYTES


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Ranges of a file that follow each other, as one: what is read is the same, and a plan of many TB stays small."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is not None and (last.path, last.stop) == (piece.path, piece.start):
            joined[-1] = replace(last, stop=piece.stop, size_bytes=last.size_bytes + piece.size_bytes)
        else:
            joined.append(piece)
    return tuple(joined)


def group_pieces(pieces: Iterable[Piece], *, unit_size_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """Consecutive pieces of at most `unit_size_bytes` together; a larger piece stands alone."""
    group: list[Piece] = []
    size_bytes = 0
    for piece in pieces:
        if group and size_bytes + piece.size_bytes > unit_size_bytes:
            yield tuple(group)
            group, size_bytes = [], 0
        group.append(piece)
        size_bytes += piece.size_bytes
    if group:
        yield tuple(group)


def json_parts(plan: Plan) -> Iterator[bytes]:
    """A run's `plan.json`, a unit at a time: all of them as dicts are ten times the text."""
    yield b"["
    for number, unit in enumerate(plan.units):
        yield (b", " if number else b"") + json.dumps(_as_dict(unit)).encode()
    yield b"]"


def is_stored_in(path: Path, plan: Plan) -> bool:
    """Whether a `plan.json` holds this plan, to the byte."""
    with path.open("rb") as file:
        return all(file.read(len(part)) == part for part in json_parts(plan)) and not file.read(1)


def _as_dict(unit: Unit) -> dict[str, Any]:
    """As `dataclasses.asdict`, which copies every value and takes ten times as long."""
    return {
        "index": unit.index,
        "source": unit.source,
        "pieces": [
            {
                "path": piece.path,
                "version": piece.version,
                "start": piece.start,
                "stop": piece.stop,
                "size_bytes": piece.size_bytes,
            }
            for piece in unit.pieces
        ],
        "max_examples": unit.max_examples,
    }


def changed_inputs(path: Path, plan: Plan) -> list[str]:
    """What differs between the inputs that a run began with and those of now, a line a file.

    Raises PipelineError if `path`, the run's `plan.json`, is damaged.
    """
    try:
        before = {piece["path"]: piece["version"] for unit in json.loads(path.read_bytes()) for piece in unit["pieces"]}
    except (ValueError, TypeError, KeyError):
        raise PipelineError(
            f"{path}, the list of the input that the run began with, is damaged; if no input file has changed since, "
            "remove that file and run the same command to go on, else start over in another output_dir"
        ) from None
    after = {piece.path: piece.version for unit in plan.units for piece in unit.pieces}
    lines = [f"{path} is gone" for path in before if path not in after]
    lines += [f"{path} is new" for path in after if path not in before]
    lines += [
        f"{path} has changed ({before[path]} → {after[path]})"
        for path in after
        if path in before and before[path] != after[path]
    ]
    return sorted(lines)
