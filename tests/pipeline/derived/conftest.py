"""Small datasets that are written by hand, and the one way in which the tests read one: a list of documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models

from pipeline.shards.format import (
    SPLITS,
    TOKENIZER_FILE,
    DatasetManifest,
    DroppedRecord,
    EncodingRecord,
    SourceRecord,
    Split,
    TokenizerRecord,
    digest_bytes,
    read_manifest,
    split_directory,
    split_record,
    write_all_durably,
    write_manifest,
)
from pipeline.shards.hugging_face import hugging_face_files
from pipeline.shards.writer import ShardWriter

EOS = 0
VOCAB_SIZE = 50

# name and ids, EOS included
Document = tuple[str, tuple[int, ...]]


def tokenizer_content(*, vocab_size: int = VOCAB_SIZE) -> bytes:
    """A tokenizer whose id 7 is the text ` w7`."""
    vocab = {"<|endoftext|>": EOS} | {f" w{index}": index for index in range(1, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer.to_str().encode()


def random_documents(count: int, *, seed: int, most: int = 9) -> list[Document]:
    draw = random.Random(seed)
    return [
        (f"{seed}:{index}", (*(draw.randrange(1, VOCAB_SIZE) for _ in range(draw.randint(1, most))), EOS))
        for index in range(count)
    ]


def documents_of(dataset: Path, split: Split = "train") -> list[Document]:
    """All documents in stream order, by Arrow alone."""
    found: list[Document] = []
    for shard in read_manifest(dataset).splits[split].shards:
        with pa.ipc.open_stream((dataset / shard.path).read_bytes()) as stream:
            for row in stream.read_all().to_pylist():
                found.append((row["document_id"], tuple(row["input_ids"])))
    return found


def write_dataset(
    dataset: Path,
    train: Sequence[Sequence[Document]],
    validation: Sequence[Sequence[Document]] = (),
    *,
    sources: Sequence[str] = ("web",),
    vocab_size: int = VOCAB_SIZE,
) -> Path:
    """Each inner list is a shard; shard k is of source k modulo their number. A token counts 4 bytes of text."""
    content = tokenizer_content(vocab_size=vocab_size)
    splits, sums = {}, dict.fromkeys(sources, (0, 0))
    for split, groups in zip(SPLITS, (train, validation), strict=True):
        split_directory(dataset, split).mkdir(parents=True, exist_ok=True)
        shards = []
        for unit, documents in enumerate(groups):
            source = sources[unit % len(sources)]
            with ShardWriter(dataset, split=split, unit=unit, shard_size_bytes=1 << 20, source=source) as writer:
                for name, ids in documents:
                    writer.add(name, np.array(ids, dtype=np.uint16))
                shards += writer.finish()
            tokens = sum(len(ids) for _, ids in documents)
            sums[source] = (sums[source][0] + len(documents), sums[source][1] + tokens)
        splits[split] = split_record(shards)
        if shards:
            write_all_durably(hugging_face_files(split_directory(dataset, split), splits[split]))
        else:
            split_directory(dataset, split).rmdir()
    (dataset / TOKENIZER_FILE).write_bytes(content)
    documents = sum(record.documents for record in splits.values())
    manifest = DatasetManifest(
        name=dataset.name,
        tokenizer=TokenizerRecord(digest=digest_bytes(content), vocab_size=vocab_size, eos_token_id=EOS),
        splits=splits,
        documents_in=documents + 3,
        text_bytes_kept=sum(4 * record.tokens for record in splits.values()),
        dropped={"too_short": DroppedRecord(documents=3, text_bytes=5)},
        config_digest="sha256:0",
        encoding=(EncodingRecord(engine="tokenizers 0", pieces=documents),),
        sources={
            source: SourceRecord(documents=documents, tokens=tokens, text_bytes=4 * tokens)
            for source, (documents, tokens) in sums.items()
        },
    )
    write_manifest(dataset, manifest)
    return dataset


@pytest.fixture(scope="session")
def make_documents() -> Callable[..., list[Document]]:
    """`make_documents(count, seed=…)`."""
    return random_documents


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    """`make_dataset(path, shards, validation_shards, sources=…)`."""
    return write_dataset


@pytest.fixture(scope="session")
def read_documents() -> Callable[..., list[Document]]:
    """`read_documents(path, split)`."""
    return documents_of


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """40 training documents in 4 shards of two sources, 12 for validation in 2."""
    train = [random_documents(10, seed=seed) for seed in range(4)]
    validation = [random_documents(6, seed=seed) for seed in (10, 11)]
    return write_dataset(tmp_path / "dataset", train, validation, sources=("web", "code"))
