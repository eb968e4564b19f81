"""What was published where: `RUN/service/published.json`, and the errors of publishing. No network.

The file may be deleted at any time: the destinations are then compared with the exports again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from checkpoint.manifest import CheckpointError, write_durably

LATEST = "latest"
OWNER = "run-key"
_STEP = re.compile(r"step-(\d+)")
_PUBLISHED = TypeAdapter(dict[str, frozenset[int]])


class Destination(Protocol):
    """A place for one run's exports. Files are created, never replaced; what is there is told by its digest.

    The file `run-key` says whose place it is: two runs may have one name, and their steps are then not to be mixed.
    """

    def claim(self, run_key: str) -> AbstractContextManager[None]:
        """Have the place for this run, from now on, and as far as it can be had alone, while the block runs.

        Raises PublicationError if it is another run's, LockBusyError if another process publishes there.
        """

    def location(self, step: int) -> str:
        """Where the export of a step is, for people."""

    def digest(self, step: int, name: str) -> str | None:
        """`sha256:…` of what is stored under a name, found by the place or by reading it back; None if nothing is."""

    def create(self, step: int, files: Mapping[str, Path]) -> None:
        """Store files under names that are free.

        Raises PublicationError if a name was taken meanwhile, UnreachableError if the place does not answer.
        """

    def complete(self, step: int) -> None:
        """All files of a step are there, with the right digests: let it be seen."""

    def move_latest(self, step: int, files: Mapping[str, Path]) -> int:
        """Let `latest` name the step and its files, if it names no newer one; the step that it names now."""


@dataclass(frozen=True)
class Publication:
    """What was done: `sent` files were stored, `found` ones were there before; `latest` is a step."""

    location: str
    sent: int
    found: int
    latest: int


class PublicationError(CheckpointError):
    """A publication that is refused: an unproven export, or another content in its place."""


class UnreachableError(CheckpointError):
    """A destination that does not answer or refuses this user; it says nothing of the export."""


def require_owner(place: str, *, owner: str, run_key: str) -> None:
    if owner != run_key:
        raise PublicationError(
            f"{place} is of another run of this name ({OWNER} is {owner[:80]!r}, wanted {run_key!r}); change "
            "`name` in this run's run.json, or publish elsewhere"
        )


def named_step(place: str, text: str) -> int:
    """The step that the text of `latest` names; -1 for none. Raises PublicationError for a text that names nothing."""
    if not text:
        return -1
    if not (match := _STEP.fullmatch(text)):
        raise PublicationError(
            f"{place}/{LATEST} is {text[:80]!r}, wanted step-NUMBER; remove it, or publish elsewhere"
        )
    return int(match[1])


def publication_file(run: Path) -> Path:
    return run / "service" / "published.json"


def read_published(run: Path) -> dict[str, frozenset[int]]:
    """Steps by destination; nothing where the file is missing or spoilt."""
    try:
        return _PUBLISHED.validate_json(publication_file(run).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}


def note_published(run: Path, step: int, destination: str) -> None:
    published = read_published(run)
    published[destination] = published.get(destination, frozenset()) | {step}
    publication_file(run).parent.mkdir(exist_ok=True)
    write_durably(publication_file(run), _PUBLISHED.dump_json(published))
