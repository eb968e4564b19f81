"""What the end of a file's name says about how it is compressed, and of what is in it."""

from __future__ import annotations

import os
import re

# text is some three times as long as what it is compressed to: an estimate, of the work in a compressed file
EXPANSION = 3

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

# only of the web: names of local files, and of objects of stores, may hold these characters (`code/C#/a.jsonl.gz`)
_QUERY = re.compile(r"(https?://[^?#]*)[?#].*")


def suffix_of(path: str) -> str:
    """`.gz` of `a.gz` and of `https://host/a.gz?token=b.c`."""
    return os.path.splitext(_without_query(path))[1]  # noqa: PTH122  (a URL is no Path)


def is_compressed(path: str) -> bool:
    return suffix_of(path) in _COMPRESSED


def inner_suffix(path: str) -> str:
    """The suffix of what is in a file: `.tsv` of `a.tsv` and of `a.tsv.gz`."""
    return suffix_of(_without_query(path).removesuffix(suffix_of(path)) if is_compressed(path) else path)


def _without_query(path: str) -> str:
    return _QUERY.sub(r"\1", path)
