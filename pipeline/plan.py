"""How a run is cut into units of work: a pure function of the config and the input files, not of the workers.

A unit's documents go to shards of its own, so units can be done in any order, anywhere, and again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.document import PipelineError, SourceError
from pipeline.report import MAX_EXAMPLES, examples_per_unit
from pipeline.sources.catalog import reader_of
from pipeline.sources.piece import Piece

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
    units: list[Unit] = []
    for source in config.sources:
        pieces = reader_of(source).find_pieces(source, unit_size_bytes=config.unit_size_bytes)
        groups = list(group_pieces(pieces, unit_size_bytes=config.unit_size_bytes))
        for group in groups:
            units.append(
                Unit(index=len(units), source=source.name, pieces=group, max_examples=examples_per_unit(len(groups)))
            )
        if not groups:
            raise SourceError(f"source {source.name!r} is empty: none of its files holds a record")
    return Plan(tuple(units))


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


def plan_to_json(plan: Plan) -> bytes:
    return json.dumps([asdict(unit) for unit in plan.units]).encode()


def changed_inputs(path: Path, plan: Plan) -> list[str]:
    """What differs between the inputs that a run began with and those of now, a line a file.

    Raises PipelineError if `path`, the run's `plan.json`, is damaged.
    """
    try:
        before = _versions(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError):
        raise PipelineError(
            f"{path}, the list of the input that the run began with, is damaged; if no input file has changed since, "
            "remove that file and run the same command to go on, else start over in another output_dir"
        ) from None
    after = _versions([asdict(unit) for unit in plan.units])
    lines = [f"{path} is gone" for path in before if path not in after]
    lines += [f"{path} is new" for path in after if path not in before]
    lines += [
        f"{path} has changed ({before[path]} → {after[path]})"
        for path in after
        if path in before and before[path] != after[path]
    ]
    return sorted(lines)


def _versions(units: list[dict[str, Any]]) -> dict[str, str]:
    return {piece["path"]: piece["version"] for unit in units for piece in unit["pieces"]}
