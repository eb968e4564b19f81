"""Bytes by token against the bytes of the texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from launch.data.token_bytes import read_token_bytes

TEXTS = ["def main():\n    return 'Grüße, 世界'\n", "naïve café\t\t 🙂🙂 x = 10**9\n" * 3, ""]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(TEXTS * 20, trainer)
    file = tmp_path / "tokenizer.json"
    made.save(str(file))
    return file


@pytest.mark.parametrize("text", TEXTS)
def test_the_ids_of_a_text_have_its_bytes(tokenizer: Path, text: str) -> None:
    lengths = read_token_bytes(tokenizer)
    assert lengths is not None
    ids = Tokenizer.from_file(str(tokenizer)).encode(text).ids
    assert lengths[ids].sum() == len(text.encode())


def test_a_special_token_is_no_text(tokenizer: Path) -> None:
    lengths = read_token_bytes(tokenizer)
    assert lengths is not None
    assert lengths[0] == 0
    assert lengths[1:].min() == 1


@pytest.mark.parametrize(
    "content", [None, b"{", json.dumps({"made_for": "tests"}).encode(), json.dumps({"decoder": None}).encode()]
)
def test_another_kind_of_tokenizer_tells_nothing(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_bytes(content)
    assert read_token_bytes(file) is None
