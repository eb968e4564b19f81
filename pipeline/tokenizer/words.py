"""The reference, asked about every word once: texts repeat their words, and most of its time goes into splitting.

A text is cut where no match of GPT-2's pattern can reach across and none looks back, so that the ids of the whole are
those of the parts, one after the other: before a space or newline that follows a non-space, and between an ASCII letter
and an ASCII mark that is no apostrophe (`'s` and its like are the only matches of letters and marks together). That
holds for byte-level BPE without a normalizer or a prefix space; nothing else may be encoded so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pipeline.shards.format import TOKEN_DTYPE
from pipeline.tokenizer.engine import Engine, EngineName, FlatIds

MAX_WORD_CHARACTERS = 64
# some 200 bytes each
MAX_WORDS = 1 << 18

_MARK = "[!-&(-/:-@\\[-`{-~]"
_CUT = re.compile(rf"(?<=\S)(?=[ \n])|(?<=[A-Za-z])(?={_MARK})|(?<={_MARK})(?=[A-Za-z])")


class WordEngine:
    """Gives the ids of `reference`, and goes by its name."""

    def __init__(self, reference: Engine) -> None:
        self.name: EngineName = reference.name
        self.version = reference.version
        self._reference = reference
        self._ids: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> FlatIds:
        words_of = [_CUT.split(text) for text in texts]
        new = list(set().union(*words_of).difference(self._ids))
        flat = self._reference.encode(new)
        content, stops = flat.ids.tobytes(), (flat.offsets * TOKEN_DTYPE.itemsize).tolist()
        for index, word in enumerate(new):
            self._ids[word] = content[stops[index] : stops[index + 1]]
        rows = [b"".join(map(self._ids.__getitem__, words)) for words in words_of]
        self._forget(new)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) // TOKEN_DTYPE.itemsize for row in rows], out=offsets[1:])
        return FlatIds(np.frombuffer(b"".join(rows), dtype=TOKEN_DTYPE), offsets)

    def _forget(self, new: list[str]) -> None:
        """What would not come again, or more than there is room for."""
        for word in new:
            if len(word) > MAX_WORD_CHARACTERS:
                del self._ids[word]
        if len(self._ids) > MAX_WORDS:
            self._ids.clear()
