"""A `tokenizer.json`, and what is loaded of it: each part when it is first asked for."""

from __future__ import annotations

import functools
import gc
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import tokenizers
from tokenizers import Tokenizer, models

from pipeline.shards.format import digest_bytes
from pipeline.tokenizer.engine import (
    SplintrEngine,
    TokenizersEngine,
    is_plain_byte_level_bpe,
    vocabulary_of,
    without_special_tokens,
)
from pipeline.tokenizer.literals import without_special_pieces
from pipeline.tokenizer.train import TokenizerError
from pipeline.tokenizer.verdict import Verdict

# of a BPE model in a file: its type, and all that the library takes from Python too
_PARTS = frozenset(
    {"type", "vocab", "merges", "dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"}
) | {
    "continuing_subword_prefix",
    "end_of_word_suffix",
}


class Definition:
    """The file. Its parts raise TokenizerError if they cannot be loaded.

    Pickled it is only told where the file lies: the process that it goes to has loaded it already, or reads it.
    """

    def __init__(self, content: bytes, *, origin: str, path: Path | None = None, way_out: str = "") -> None:
        """`origin` names the file in messages; `path` is where it stays, for other processes, and `way_out` what a
        message tells to do if it does not."""
        self.origin = origin
        self._way_out = way_out
        self.digest = digest_bytes(content)
        self._content = content
        self._path = path
        self._loads = Verdict(self.digest, f"tokenizers {tokenizers.__version__}", "of parts", finding="loads")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            return functools.partial(Definition, origin=self.origin), (self._content,)
        return definition_at, (self._path, self.digest, self.origin, self._way_out)

    @cached_property
    def tree(self) -> dict[str, Any]:
        """Parsed. 16 MB of SmolLM2's."""
        was_enabled = gc.isenabled()
        gc.disable()  # it would go through 150,000 new objects several times, in a third of the time that this takes
        try:
            tree: dict[str, Any] = orjson.loads(self._content)
        finally:
            if was_enabled:
                gc.enable()
        return tree

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The library's own, as it reads the file."""
        try:
            return Tokenizer.from_str(self._content.decode())
        except Exception as error:  # tokenizers raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise TokenizerError(f"{self.origin} is not a tokenizer.json of the tokenizers library: {reason}") from None

    @cached_property
    def reference(self) -> TokenizersEngine:
        """The library, which takes literals of special tokens as text."""
        literal = without_special_pieces(self.tree)
        if literal is not None:
            return TokenizersEngine(Tokenizer.from_str(orjson.dumps(literal).decode()))
        if "tokenizer" not in vars(self) and self._loads.is_known() and is_plain_byte_level_bpe(self.tree):
            return TokenizersEngine(_of_parts(self.tree))
        return TokenizersEngine(self.tokenizer)

    @cached_property
    def splintr(self) -> SplintrEngine:
        return SplintrEngine(without_special_tokens(self.tree))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """All entries and their ids. That the library can load the file is found out once, and remembered."""
        entries = vocabulary_of(self.tree) if self._loads.is_known() else None
        if entries is None:
            entries = self.tokenizer.get_vocab(with_added_tokens=True)
            if not self._loads.is_known() and (not is_plain_byte_level_bpe(self.tree) or self._is_the_same_of_parts()):
                self._loads.remember()
        return entries

    def _is_the_same_of_parts(self) -> bool:
        if not _PARTS.issuperset(self.tree["model"]):
            return False
        try:
            return _state(_of_parts(self.tree)) == _state(self.tokenizer)
        except Exception:  # the library raises bare Exception for what it does not take
            return False


# one at most, by its digest: what a process loads ahead, it finds here when it is told what for
_loaded: dict[str, Definition] = {}
_NOT_SHARED = "if this node does not share the folder with the others, choose an output_dir that all of them share"


def load_definition(path: Path) -> Definition:
    """Read the file, for every `definition_at` of it in this process. Raises OSError."""
    definition = Definition(path.read_bytes(), origin=str(path), path=path)
    _loaded.clear()
    _loaded[definition.digest] = definition
    return definition


def definition_at(path: Path, digest: str, origin: str, way_out: str) -> Definition:
    """That of the digest. Raises TokenizerError if the file is another by now, or gone."""
    if digest not in _loaded:
        try:
            load_definition(path)
        except OSError as error:
            raise TokenizerError(f"{path}: {error.strerror}; {_NOT_SHARED}, or run the same command again") from None
    if digest not in _loaded:
        raise TokenizerError(f"{path} is not what the run began with; {_NOT_SHARED}; if it was changed, {way_out}")
    _loaded[digest].origin = origin  # of a process that does one run after the other, this run's
    return _loaded[digest]


def _of_parts(tree: dict[str, Any]) -> Tokenizer:
    """A byte-level BPE for encoding without special tokens. The library takes a vocabulary and merges from Python in
    half the time in which it reads them in a file."""
    parts = dict(tree["model"])
    vocabulary, merges = parts.pop("vocab"), parts.pop("merges")
    # since 0.20 the library writes pairs, before it wrote texts
    pairs: Any = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    empty = tree | {"model": parts | {"vocab": {}, "merges": []}, "added_tokens": []}
    tokenizer = Tokenizer.from_str(orjson.dumps(empty).decode())
    options = {name: value for name, value in parts.items() if name != "type" and value}
    tokenizer.model = models.BPE(vocabulary, pairs, **options)
    return tokenizer


def _state(tokenizer: Tokenizer) -> tuple[Any, ...]:
    return tokenizer.model.__getstate__(), tokenizer.pre_tokenizer.__getstate__()
