"""A run that a start adds a few dozen steps to in a second: its dataset, with a real tokenizer, and its config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.shards import format as contract

VOCAB_SIZE = 320
CONFIG = """
run_dir: {run}
name: faults
seed: 7
model: {{vocab_size: 320, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
  num_key_value_heads: 2, max_position_embeddings: 64, initializer_range: 0.15}}
data: {{sources: [{{name: text, path: {data}}}], sequence_length: 64}}
batch_tokens: 256
micro_batch_size: 2
precision: float32
steps: 1000000
optimizer: {{learning_rate: 1e-4}}
schedule: {{name: linear, warmup_steps: 3}}
checkpoint: {{every_steps: 2}}
validation: {{every_steps: 4, sequences: 4}}
logging: {{every_steps: 1000, system_every_s: 0}}
launcher: {{ranks_per_node: 1}}
"""


def write_tiny_run(folder: Path) -> Path:
    """Returns the config file; the run is to be in `folder/runs/run`."""
    data = folder / "data"
    data.mkdir(parents=True)
    tokenizer = _tokenizer()
    (data / contract.TOKENIZER_FILE).write_text(tokenizer.to_str())
    random = np.random.default_rng(0)
    splits = {
        split: _write_split(data, split, [[*random.integers(1, 280, size=99).tolist(), 0] for _ in range(documents)])
        for split, documents in (("train", 400), ("validation", 40))
    }
    record = contract.TokenizerRecord(
        digest=contract.digest_file(data / contract.TOKENIZER_FILE),
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_id=0,
    )
    manifest = contract.DatasetManifest(
        name="text", tokenizer=record, splits=splits, documents_in=440, text_bytes_kept=0, config_digest=""
    )
    contract.write_manifest(data, manifest)
    config = folder / "tiny.yaml"
    config.write_text(CONFIG.format(run=folder / "runs" / "run", data=data))
    return config


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the loss falls while the model learns the text " * 20], trainer)
    return tokenizer


def _write_split(dataset: Path, split: contract.Split, documents: list[list[int]]) -> contract.SplitRecord:
    folder = contract.split_directory(dataset, split)
    folder.mkdir(exist_ok=True)
    file = folder / "data-00000-000.arrow"
    names = [f"{split}-{number}" for number in range(len(documents))]
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA) as writer:
        writer.write_batch(pa.record_batch([documents, names], schema=contract.SCHEMA))
    tokens = sum(map(len, documents))
    shard = contract.ShardRecord(
        path=file.relative_to(dataset).as_posix(),
        documents=len(documents),
        tokens=tokens,
        size_bytes=file.stat().st_size,
        digest=contract.digest_file(file),
    )
    return contract.SplitRecord(documents=len(documents), tokens=tokens, shards=(shard,))
