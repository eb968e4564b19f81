"""What the end of a file's name says about how it is compressed, and of what is in it."""

from __future__ import annotations

import os

# text is some three times as long as what it is compressed to: an estimate, of the work in a compressed file
EXPANSION = 3

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def suffix_of(path: str) -> str:
    return os.path.splitext(path)[1]  # noqa: PTH122  (a URL is no Path)


def is_compressed(path: str) -> bool:
    return suffix_of(path) in _COMPRESSED


def inner_suffix(path: str) -> str:
    """The suffix of what is in a file: `.tsv` of `a.tsv` and of `a.tsv.gz`."""
    return suffix_of(os.path.splitext(path)[0] if is_compressed(path) else path)  # noqa: PTH122
