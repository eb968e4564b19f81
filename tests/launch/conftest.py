"""Small datasets written straight from the contract, `pipeline/shards/format.py`, and nothing else of the pipeline.

And the config of a training on one, as a file and as a value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pytest

from checkpoint.manifest import CheckpointManifest, describe_files, partial_directory, publish_checkpoint
from checkpoint.run_record import read_run
from launch.config import TrainConfig
from launch.trainer.identity import config_digest
from launch.trainer.inputs import Inputs
from launch.trainer.run_folder import create_run_folder, prepare_run
from pipeline.shards import format as contract

EOS = 0
CONFIG = """
run_dir: {folder}/run
name: tiny
model: {{vocab_size: 256, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
  max_position_embeddings: 64}}
data: {{sources: [{{name: chain, path: {folder}/data}}], sequence_length: 64}}
batch_tokens: 1024
micro_batch_size: 4
steps: 20
optimizer: {{learning_rate: 1e-3}}
schedule: {{warmup_steps: 2, decay_steps: 4}}
checkpoint: {{every_steps: 10}}
validation: {{every_steps: 10, sequences: 8}}
launcher: {{ranks_per_node: 2}}
"""


class MakeDataset(Protocol):
    def __call__(
        self,
        path: Path,
        documents: Sequence[Sequence[int]],
        *,
        validation: Sequence[Sequence[int]] = (),
        vocab_size: int = 256,
        documents_per_shard: int = 1000,
        documents_per_batch: int = 1000,
    ) -> Path: ...


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """Writes documents of ids (without their end-of-sequence id, which is 0 and is added) as a dataset."""
    return _make_dataset


@pytest.fixture
def config(tmp_path: Path, make_dataset: MakeDataset) -> Path:
    """The config file of a tiny model that two ranks train for 20 steps, on data that is there."""
    documents = [[1 + number % 200] * 99 for number in range(40)]
    make_dataset(tmp_path / "data", documents, validation=documents)
    file = tmp_path / "tiny.yaml"
    file.write_text(CONFIG.format(folder=tmp_path))
    return file


@pytest.fixture
def train_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """`train_config(batch_tokens=512, zero={"reduce_dtype": "bfloat16"}, …)`: changes to top-level settings."""

    def build(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "run_dir": tmp_path / "run",
            "name": "tiny",
            "model": {
                "vocab_size": 256,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
            },
            "data": {"sources": [{"name": "chain", "path": tmp_path / "data"}], "sequence_length": 64},
            "batch_tokens": 1024,
            "micro_batch_size": 4,
            "steps": 100,
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"name": "wsd", "warmup_steps": 10, "decay_steps": 20},
            "checkpoint": {"every_steps": 50},
            "validation": {"every_steps": 50, "sequences": 8},
        }
        return TrainConfig.model_validate({**settings, **changes})

    return build


@pytest.fixture(scope="session")
def add_checkpoint() -> Callable[..., Path]:
    """`add_checkpoint(config, inputs, step)`: of the run that the folder holds, or of the one that begins with it."""

    def add(config: TrainConfig, inputs: Inputs, step: int) -> Path:
        if not (config.run_dir / "run.json").is_file():
            create_run_folder(config.run_dir)
            prepare_run(config, resolved="name: tiny\n", previous=None, inputs=inputs)
        file = partial_directory(config.run_dir, step) / "zero" / "weights.pt"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights of step %d" % step)
        manifest = CheckpointManifest(
            run_key=read_run(config.run_dir).run_key,
            step=step,
            tokens_consumed=0,
            samples_consumed=step * config.samples_per_step,
            world_size=2,
            zero_stage=3,
            dtype="float32",
            config_digest=config_digest(config),
            dataset_digests=inputs.dataset_digests,
            tokenizer_digest=inputs.tokenizer.digest,
            model={},
            files=tuple(describe_files(partial_directory(config.run_dir, step), [file])),
        )
        return publish_checkpoint(config.run_dir, manifest)

    return add


@pytest.fixture(scope="session")
def random_documents() -> Callable[..., list[list[int]]]:
    """`random_documents(count, seed=0, max_length=40, vocab_size=256)`: lists of ids without the id 0."""

    def draw(count: int, *, seed: int = 0, max_length: int = 40, vocab_size: int = 256) -> list[list[int]]:
        random = np.random.default_rng(seed)
        lengths = random.integers(0, max_length, size=count, endpoint=True)
        return [random.integers(1, vocab_size, size=length).tolist() for length in lengths]

    return draw


def _make_dataset(
    path: Path,
    documents: Sequence[Sequence[int]],
    *,
    validation: Sequence[Sequence[int]] = (),
    vocab_size: int = 256,
    documents_per_shard: int = 1000,
    documents_per_batch: int = 1000,
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = path / contract.TOKENIZER_FILE
    tokenizer.write_text(_word_level_tokenizer(vocab_size))
    splits: dict[contract.Split, contract.SplitRecord] = {}
    given: dict[contract.Split, Sequence[Sequence[int]]] = {"train": documents, "validation": validation}
    for split, rows in given.items():
        shards = [
            _write_shard(path, split, number, group, documents_per_batch)
            for number, group in enumerate(_groups(rows, documents_per_shard))
        ]
        _write_hugging_face_files(contract.split_directory(path, split), split, shards)
        splits[split] = contract.SplitRecord(
            documents=sum(shard.documents for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            shards=tuple(shards),
        )
    contract.write_manifest(
        path,
        contract.DatasetManifest(
            name=path.name,
            tokenizer=contract.TokenizerRecord(
                digest=contract.digest_file(tokenizer), vocab_size=vocab_size, eos_token_id=EOS
            ),
            splits=splits,
            documents_in=len(documents) + len(validation),
            text_bytes_kept=0,
            config_digest=contract.digest_bytes(b""),
        ),
    )
    return path


def _groups(rows: Sequence[Sequence[int]], size: int) -> Iterator[Sequence[Sequence[int]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _write_shard(
    dataset: Path, split: contract.Split, number: int, rows: Sequence[Sequence[int]], documents_per_batch: int
) -> contract.ShardRecord:
    folder = contract.split_directory(dataset, split)
    folder.mkdir(exist_ok=True)
    file = folder / f"data-{number:05d}-000.arrow"
    ended = [[*row, EOS] for row in rows]
    names = [f"{split}-{number}-{row}" for row in range(len(rows))]
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA) as writer:
        for start in range(0, len(rows), documents_per_batch):
            chosen = slice(start, start + documents_per_batch)
            writer.write_batch(pa.record_batch([ended[chosen], names[chosen]], schema=contract.SCHEMA))
    return contract.ShardRecord(
        path=file.relative_to(dataset).as_posix(),
        documents=len(rows),
        tokens=sum(map(len, ended)),
        size_bytes=file.stat().st_size,
        digest=contract.digest_file(file),
    )


def _write_hugging_face_files(folder: Path, split: str, shards: list[contract.ShardRecord]) -> None:
    folder.mkdir(exist_ok=True)
    features = {
        "input_ids": {"feature": {"dtype": "uint16", "_type": "Value"}, "_type": "List"},
        "document_id": {"dtype": "string", "_type": "Value"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    state = {
        "_data_files": [{"filename": Path(shard.path).name} for shard in shards],
        "_fingerprint": "0",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    (folder / "state.json").write_text(json.dumps(state))


def _word_level_tokenizer(vocab_size: int) -> str:
    """A tokenizer whose text for id 7 is `t7`; id 0 is `<|endoftext|>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<|endoftext|>": EOS} | {f"t{number}": number for number in range(1, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return str(tokenizer.to_str())
