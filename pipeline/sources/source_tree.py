"""A tree of source code, chosen by globs below a root; each file is one document, named by its path in the tree.

`root: python:stdlib` is the standard library of the running interpreter, which every machine with this program has.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from pipeline.document import Record, SourceError
from pipeline.source_config import SourceTreeConfig
from pipeline.sources.code_header import with_header
from pipeline.sources.local_paths import is_absence
from pipeline.sources.piece import Piece, whole_file
from pipeline.sources.storage import cannot_be_listed, readable, stored_file
from pipeline.sources.text import read_document

PYTHON_STANDARD_LIBRARY = "python:stdlib"


def find_pieces(config: SourceTreeConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Each chosen file is a piece, in the order of the sorted paths. Raises SourceError if there is none."""
    root = _root(config)
    if not root.is_dir():
        raise SourceError(f"source {config.name!r}: root {root} is not a folder (from {Path.cwd()})")
    chosen = list(_walk(root, config))
    if not chosen:
        raise SourceError(
            f"source {config.name!r}: no file below {root} is included; include is {', '.join(config.include)}"
            + (f", exclude is {', '.join(config.exclude)}" if config.exclude else "")
        )
    for path in sorted(chosen):
        yield whole_file(stored_file(root / path))


def read_piece(config: SourceTreeConfig, piece: Piece) -> Iterator[Record]:
    document_id = readable(Path(piece.path).relative_to(_root(config)))
    yield with_header(read_document(piece, document_id=document_id), config)


def is_chosen(path: str, *, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a path (relative, with `/`) matches a glob of `include` and none of `exclude`.

    `*` and `?` stay within a folder, `**` spans any number of them, `[a-c]` is one of these characters.
    Raises SourceError for a glob that has no meaning.
    """
    return _matches(tuple(include), path) and not _matches(tuple(exclude), path)


def _root(config: SourceTreeConfig) -> Path:
    return Path(sysconfig.get_paths()["stdlib"] if config.root == PYTHON_STANDARD_LIBRARY else config.root)


def _walk(root: Path, config: SourceTreeConfig) -> Iterator[str]:
    """Paths of the chosen regular files. Links to folders are not followed: they may lead round in circles."""
    # globs that exclude all of a folder, such as **/site-packages/**, save the walk through it
    whole_folders = tuple(pattern for pattern in config.exclude if pattern.endswith("/**"))

    def refuse(error: OSError) -> None:
        if not is_absence(error):
            raise cannot_be_listed(error, source=config.name) from None

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        relative = Path(folder).relative_to(root)
        subfolders[:] = [name for name in subfolders if not _matches(whole_folders, f"{(relative / name).as_posix()}/")]
        for name in names:
            path = (relative / name).as_posix()
            if is_chosen(path, include=config.include, exclude=config.exclude) and (root / path).is_file():
                yield path


def _matches(globs: tuple[str, ...], path: str) -> bool:
    return _compiled(globs).fullmatch(path) is not None


@lru_cache
def _compiled(globs: tuple[str, ...]) -> re.Pattern[str]:
    nothing = "(?!)"
    for pattern in globs:
        try:
            re.compile(_expression(pattern))
        except re.error as error:
            raise SourceError(
                f"glob {pattern!r} cannot be used: {error.msg}; wanted characters in [ ], ranges upwards, as in [a-z]"
            ) from None
    return re.compile("|".join(map(_expression, globs)) or nothing, re.DOTALL)


def _expression(pattern: str) -> str:
    """A glob as a regular expression (the standard library has it from Python 3.13 on: glob.translate)."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    meaning = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    return "".join(
        meaning.get(part) or (_character_class(part) if index % 2 else re.escape(part))
        for index, part in enumerate(parts)
    )


def _character_class(part: str) -> str:
    inside = part[1:-1].replace("\\", r"\\")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
