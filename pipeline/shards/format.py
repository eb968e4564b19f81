"""The dataset contract between the pipeline, which writes it, and the trainer, which reads it.

A dataset directory is a Hugging Face dataset with a manifest beside it:

    DATASET/data-00000-000.arrow …   Arrow IPC stream: one row a document
    DATASET/dataset_info.json, state.json      what `datasets.load_from_disk` wants
    DATASET/validation/…             the same for the validation split
    DATASET/tokenizer.json           the tokenizer that made the ids
    DATASET/manifest.json            written last: a dataset, or its next version, exists when its manifest does
    DATASET/units.jsonl              of a run's dataset: what it was made of, for `run --append` alone

Rows: `input_ids: list<uint16>`, ending in the end-of-sequence id and containing it nowhere else, so that the stream
of ids alone tells where documents end; `document_id: string`. A record batch holds at least about a million ids, so
that a sequence almost never crosses one.

Imports the standard library, numpy, pyarrow and pydantic only. Does not read or write shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
# beside a manifest: a run adds to the dataset, or was interrupted while it did
WORK_DIRECTORY = ".work"
MAX_VOCAB_SIZE = 1 << 16

TOKEN_DTYPE = np.dtype(np.uint16)
SCHEMA = pa.schema([pa.field("input_ids", pa.list_(pa.uint16())), pa.field("document_id", pa.string())])

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class DatasetError(ValueError):
    """A dataset directory that is missing, unfinished, damaged or of another format."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardRecord(_Record):
    """One Arrow file: its path below the dataset directory, its contents and its digest."""

    path: str
    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    size_bytes: int = Field(ge=1)
    digest: str
    source: str | None = Field(
        default=None, description="the source of all its documents; None: not of one, or unknown"
    )


class SplitRecord(_Record):
    """The shards of one split in stream order, and their sums."""

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    shards: tuple[ShardRecord, ...]


class TokenizerRecord(_Record):
    """The identity of the tokenizer: two datasets may be mixed only if their digests are equal."""

    digest: str
    vocab_size: int = Field(ge=1, le=MAX_VOCAB_SIZE)
    eos_token_id: int = Field(ge=0)


class DroppedRecord(_Record):
    """Documents and bytes of text that were not kept, under the reason's name."""

    documents: int = Field(ge=0)
    text_bytes: int = Field(ge=0)


class EncodingRecord(_Record):
    """What made ids, and how often that was compared with the reference; a piece is a document or a part of one."""

    engine: str
    pieces: int = Field(ge=0)
    pieces_checked: int = Field(default=0, ge=0)
    pieces_by_reference: int = Field(default=0, ge=0, description="of those of a fast engine")
    difference: str | None = Field(default=None, description="why units were done again by the reference: the first")


class SourceRecord(_Record):
    """What a source gave to all splits together."""

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    text_bytes: int = Field(ge=0)


class OriginRecord(_Record):
    """The verb that made a dataset of others, what it was told, and the digests of those others in their order."""

    verb: Literal["merge", "split", "sample", "shuffle"]
    options: dict[str, int | float | str] = Field(default_factory=dict)
    datasets: tuple[str, ...] = Field(min_length=1)


class DatasetManifest(_Record):
    """All that a reader needs to know of a dataset without opening a shard.

    `version` counts what `run --append` added; `previous` is the digest of the version before. `text_bytes_kept` and
    the bytes of `sources` are estimates, in proportion to the tokens, where `origin` took a part of a dataset.
    `sources` is empty where shares are not known.
    """

    format_version: int = FORMAT_VERSION
    name: str
    tokenizer: TokenizerRecord
    splits: dict[Split, SplitRecord]
    documents_in: int = Field(ge=0)
    text_bytes_kept: int = Field(ge=0)
    dropped: dict[str, DroppedRecord] = Field(default_factory=dict)
    config_digest: str
    encoding: tuple[EncodingRecord, ...] = ()
    sources: dict[str, SourceRecord] = Field(default_factory=dict)
    version: int = Field(default=1, ge=1)
    previous: str | None = None
    origin: OriginRecord | None = None

    @property
    def documents(self) -> int:
        return sum(split.documents for split in self.splits.values())

    @property
    def tokens(self) -> int:
        return sum(split.tokens for split in self.splits.values())

    def digest(self) -> str:
        """The identity of the contents: equal for equal ids in equal order, whatever made them."""
        content = {
            "tokenizer": self.tokenizer.digest,
            "splits": {name: [shard.digest for shard in split.shards] for name, split in sorted(self.splits.items())},
        }
        return digest_bytes(json.dumps(content, sort_keys=True).encode())


def split_record(shards: Iterable[ShardRecord]) -> SplitRecord:
    """Shards in stream order, with their sums."""
    shards = tuple(shards)
    return SplitRecord(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        shards=shards,
    )


def split_directory(dataset: Path, split: Split) -> Path:
    """Where the shards of a split lie: the training split at the top, so that it is what `load_from_disk` opens."""
    return dataset if split == "train" else dataset / split


def read_manifest(dataset: Path) -> DatasetManifest:
    """Raises DatasetError, saying what to run, if there is no manifest or none that this version reads."""
    path = dataset / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(_why_no_manifest(dataset)) from None
    try:
        version = json.loads(content)["format_version"]
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{path}: format version {version}, wanted {FORMAT_VERSION}; update this program, or {_again(dataset)}"
            )
        return DatasetManifest.model_validate_json(content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(
            f"{path} is not a dataset manifest ({reason}); copy it again from where the dataset came from, or "
            f"{_again(dataset)}"
        ) from None


def _why_no_manifest(dataset: Path) -> str:
    try:
        # the record of a run: a data run's names the dataset that it makes
        made = json.loads((dataset / "run.json").read_bytes()).get("dataset")
    except (OSError, ValueError, AttributeError):
        what = "is not finished (no manifest.json)" if dataset.is_dir() else "does not exist"
        return f"dataset {dataset} {what}; make it with `smollm2 pipeline run`"
    fix = f"its dataset is {made}" if made else "wanted the output_dir of a `smollm2 pipeline run`"
    return f"{dataset} is the folder of a run, not a dataset; {fix}"


def _again(dataset: Path) -> str:
    """A run alone does not help: it leaves a folder that has a manifest alone."""
    return f"make the dataset again: rm -r {shlex.quote(str(dataset))}, then `smollm2 pipeline run CONFIG`"


def write_manifest(dataset: Path, manifest: DatasetManifest) -> None:
    """The last act of a pipeline run: from here on the dataset exists."""
    write_durably(dataset / MANIFEST_FILE, (manifest.model_dump_json(indent=1) + "\n").encode())


def digest_bytes(content: bytes) -> str:
    """`sha256:` and the hexadecimal digest."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_file(path: Path) -> str:
    """`sha256:` and the hexadecimal digest of a file, read in pieces."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file at once and for good: a temporary name, fsync, rename, fsync of the folder."""
    _replace({path: (content,)}, durably=True)


def write_parts_durably(path: Path, parts: Iterable[bytes]) -> None:
    """As `write_durably`, content that is too large to be joined in memory."""
    _replace({path: parts}, durably=True)


def write_all_durably(contents: Mapping[Path, bytes]) -> None:
    """As `write_durably`, several files: each at once, and all for good when this returns.

    All are written before the first fsync, which takes milliseconds and which a journal answers for all of them.
    """
    _replace({path: (content,) for path, content in contents.items()}, durably=True)


def write_for_now(path: Path, content: bytes) -> None:
    """Replace a file at once. A power cut may take it back or damage it: for what is made again then."""
    _replace({path: (content,)}, durably=False)


def _replace(contents: Mapping[Path, Iterable[bytes]], *, durably: bool) -> None:
    with ExitStack() as undo:
        descriptors, renames = [], []
        for path, parts in contents.items():
            temporary = partial_path(path)
            undo.callback(temporary.unlink, missing_ok=True)
            file = undo.enter_context(temporary.open("wb"))
            file.writelines(parts)
            file.flush()
            descriptors.append(file.fileno())
            renames.append((temporary, path))
        for descriptor in descriptors if durably else ():
            os.fsync(descriptor)
        for temporary, path in renames:
            temporary.replace(path)
    for folder in {path.parent for path in contents} if durably else ():
        sync_directory(folder)


def partial_path(path: Path) -> Path:
    """A name beside a file for what is to become it. No other writer has the same, be it on another machine: one that
    is thought dead may still be writing."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def sync_directory(directory: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
