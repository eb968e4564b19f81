"""A git checkout: every file that git tracks or would track (its ignore files are respected), one document each.

Submodules and links are left out. A document is named by its path in the checkout, and its version is the file's, not
the commit's: what is read is what lies in the folder.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.document import Record, SourceError, one_line
from pipeline.source_config import GitConfig
from pipeline.sources.code_header import with_header
from pipeline.sources.languages import LANGUAGE_SUFFIXES
from pipeline.sources.piece import Piece, whole_file
from pipeline.sources.source_tree import is_chosen
from pipeline.sources.storage import readable, stored_file
from pipeline.sources.text import read_document


def find_pieces(config: GitConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Each chosen file is a piece, in the order of the sorted paths.

    Raises SourceError if the folder is no checkout, a language is not known, or no file is chosen.
    """
    suffixes = _suffixes(config)
    root = Path(config.root)
    chosen = [
        path
        for path in _listed(config)
        if is_chosen(path, include=config.include, exclude=config.exclude)
        and (suffixes is None or path.endswith(suffixes))
        and (root / path).is_file()
        and not (root / path).is_symlink()
    ]
    if not chosen:
        raise SourceError(f"source {config.name!r}: no file that git lists below {root} is chosen")
    for path in chosen:
        yield whole_file(stored_file(root / path))


def read_piece(config: GitConfig, piece: Piece) -> Iterator[Record]:
    document_id = readable(Path(piece.path).relative_to(config.root))
    yield with_header(read_document(piece, document_id=document_id), config)


def _suffixes(config: GitConfig) -> tuple[str, ...] | None:
    if config.languages is None:
        return None
    for language in config.languages:
        if language not in LANGUAGE_SUFFIXES:
            raise SourceError(
                f"source {config.name!r}: language {language!r} is not known; "
                f"known are {', '.join(LANGUAGE_SUFFIXES)}; others can be chosen with include"
            )
    return tuple(suffix for language in config.languages for suffix in LANGUAGE_SUFFIXES[language])


def _listed(config: GitConfig) -> list[str]:
    """Paths relative to the root, sorted."""
    command = ["git", "-C", config.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise SourceError(f"source {config.name!r}: there is no git on this machine; install it") from None
    if result.returncode != 0:
        reason = one_line(result.stderr.decode(errors="backslashreplace"))
        raise SourceError(f"source {config.name!r}: root {config.root} cannot be listed: {reason}")
    return sorted({os.fsdecode(path) for path in result.stdout.split(b"\0") if path})
