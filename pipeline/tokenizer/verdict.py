"""Remembers, in the user's cache folder, which comparisons of engines found them equal, and which tokenizers could be
loaded, a byte-level BPE of its parts as of its file, so that each is found out once.

A verdict is known by a digest of all that went into it, so that it never speaks for another tokenizer, another version
or other cases. Only what was found in order is remembered. A cache that cannot be read or written is no cache: one
looks again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Literal


class Verdict:
    """Whether something, named by everything that it depends on, was looked at and found in order."""

    def __init__(self, *ingredients: bytes | str, finding: Literal["equal", "loads"] = "equal") -> None:
        sha256 = hashlib.sha256()
        for ingredient in ingredients:
            content = ingredient.encode() if isinstance(ingredient, str) else ingredient
            sha256.update(len(content).to_bytes(8, "little") + content)
        self._name = f"{finding}-{sha256.hexdigest()}"

    def is_known(self) -> bool:
        with contextlib.suppress(OSError, RuntimeError):
            return (cache_directory() / self._name).is_file()
        return False

    def remember(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            cache_directory().mkdir(parents=True, exist_ok=True)
            (cache_directory() / self._name).touch()


def cache_directory() -> Path:
    """`~/.cache/smollm2/encoding`, or where XDG_CACHE_HOME says. Raises RuntimeError if there is no home."""
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path("~/.cache").expanduser()) / "smollm2" / "encoding"
