from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.tokenizer import encode
from pipeline.tokenizer.encode import Encoder, read_tokenizer
from pipeline.tokenizer.engine import EngineName
from pipeline.tokenizer.train import TokenizerError

EOS_ID = 0
PIECES = st.sampled_from(
    ["\n    ", "   \n", "a", "b", " ", "\n", "  ", "1", "'s", "é", "\x1c", "\u3000", "<|endoftext|>", "<filename>", "."]
)
TEXTS = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=60).map("".join))


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> Encoder:
    return Encoder(tokenizer_file.read_bytes(), eos_token="<|endoftext|>")


@pytest.fixture
def edited(tokenizer_file: Path) -> Callable[[Callable[[dict[str, Any]], object]], bytes]:
    """The contents of a tokenizer.json after a change."""

    def edit(change: Callable[[dict[str, Any]], object]) -> bytes:
        tree = json.loads(tokenizer_file.read_bytes())
        change(tree)
        return json.dumps(tree).encode()

    return edit


def plain_ids(tokenizer_file: Path, text: str) -> list[int]:
    """The reference: one document, whole, by the library alone."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    return [*tokenizer.encode(text, add_special_tokens=False).ids, EOS_ID]


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), piece_characters=st.integers(1, 20))
def test_ids_are_those_of_encoding_each_document_whole(
    tokenizer_file: Path, encoder: Encoder, texts: list[str], piece_characters: int
) -> None:
    # pieces of a few characters, so that cuts fall everywhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "PIECE_CHARACTERS", piece_characters)
        patch.setattr(encode, "BATCH_CHARACTERS", 2 * piece_characters)
        got = [ids.tolist() for ids in encoder.encode(texts)]
    assert got == [plain_ids(tokenizer_file, text) for text in texts]


def test_a_tokenizer_that_adds_a_prefix_space_encodes_whole(
    edited: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = edited(lambda tree: tree["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True))
    monkeypatch.setattr(encode, "PIECE_CHARACTERS", 2)
    text = "the\nshard\nreturn\n1 2"
    whole = Tokenizer.from_str(content.decode()).encode(text, add_special_tokens=False).ids
    assert Encoder(content, eos_token="<|endoftext|>").encode([text])[0].tolist() == [*whole, EOS_ID]


def test_literals_of_special_tokens_are_text(encoder: Encoder) -> None:
    (ids,) = encoder.encode(["a<|endoftext|>b<filename>"])
    assert ids[-1] == EOS_ID
    assert np.count_nonzero(ids <= 16) == 1
    assert encoder.tokenizer.decode(ids[:-1].tolist()) == "a<|endoftext|>b<filename>"


def test_ids_are_16_bits_wide(encoder: Encoder) -> None:
    assert encoder.encode(["the"])[0].dtype == np.uint16


def test_truncation_and_padding_of_the_file_are_off(edited: Callable[..., bytes]) -> None:
    tokenizer = Tokenizer.from_str(edited(lambda tree: None).decode())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    (ids,) = Encoder(tokenizer.to_str().encode(), eos_token="<|endoftext|>").encode(["the shard the shard"])
    assert ids.tolist() == [*tokenizer_ids(edited(lambda tree: None), "the shard the shard"), EOS_ID]


def tokenizer_ids(content: bytes, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_str(content.decode()).encode(text).ids
    return ids


def test_digest_is_that_of_the_file(tokenizer_file: Path, encoder: Encoder) -> None:
    import hashlib

    assert encoder.record.digest == f"sha256:{hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()}"
    assert (encoder.record.vocab_size, encoder.record.eos_token_id) == (300, 0)


def test_a_vocabulary_over_65536_is_refused(edited: Callable[..., bytes]) -> None:
    content = edited(lambda tree: tree["model"]["vocab"].update({f"extra{id}": id for id in range(300, 65_537)}))
    with pytest.raises(
        TokenizerError, match=r"^big.json has 65,537 entries; ids are stored in 16 bits, wanted 1 to 65,536"
    ):
        Encoder(content, eos_token="<|endoftext|>", origin="big.json")


def test_a_missing_eos_token_is_named(tokenizer_file: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no token '</s>'; set tokenizer.eos_token"):
        Encoder(tokenizer_file.read_bytes(), eos_token="</s>")


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"^tokenizer.json is not a tokenizer.json of the tokenizers library: "):
        Encoder(b'{"vocab": []}', eos_token="<|endoftext|>")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"tokenizer.path=.*none.json: No such file or directory; name a tokenizer"
    ):
        read_tokenizer(tmp_path / "none.json")


def test_an_eos_out_of_text_is_an_error(edited: Callable[..., bytes]) -> None:
    # an added token that is not special is matched in text
    encoder = Encoder(edited(lambda tree: tree["added_tokens"][0].update(special=False)), eos_token="<|endoftext|>")
    with pytest.raises(TokenizerError, match=r"makes '<\|endoftext\|>' out of text; mark it as"):
        encoder.encode(["a <|endoftext|> b"])


def test_bytes_without_a_token_are_counted(encoder: Encoder, edited: Callable[..., bytes]) -> None:
    def drop_two_bytes(tree: dict[str, Any]) -> None:
        vocab = tree["model"]["vocab"]
        for name in ("Ā", "ā"):  # how byte-level BPE spells the bytes 00 and 01
            del vocab[name]

    assert encoder.missing_byte_tokens() == 0
    assert Encoder(edited(drop_two_bytes), eos_token="<|endoftext|>").missing_byte_tokens() == 2


def test_a_tokenizer_that_encodes_otherwise_each_time_is_refused(edited: Callable[..., bytes]) -> None:
    with pytest.raises(TokenizerError, match=r"^bpe\.json has model\.dropout=0\.1, .*; set it to null there$"):
        Encoder(edited(lambda tree: tree["model"].update(dropout=0.1)), eos_token="<|endoftext|>", origin="bpe.json")
    Encoder(edited(lambda tree: tree["model"].update(dropout=None)), eos_token="<|endoftext|>")


@pytest.mark.parametrize("engine", ["tokenizers", "splintr"])
def test_a_worker_s_encoder_gives_the_same_ids(tokenizer_file: Path, engine: EngineName) -> None:
    first = Encoder(tokenizer_file.read_bytes(), eos_token="<|endoftext|>")
    assert first.choose(engine, input_bytes=100) == engine
    second = pickle.loads(pickle.dumps(first))
    assert second.record == first.record
    texts = ["the shard 12 <|endoftext|>", "return 東京"]
    for encoder in (first, second):
        encoder.use(engine)
    assert [ids.tolist() for ids in second.encode(texts)] == [ids.tolist() for ids in first.encode(texts)]
    assert second.special_id("<filename>") == first.special_id("<filename>")


def test_a_tokenizer_that_does_not_load_is_refused_every_time() -> None:
    for _ in range(2):
        with pytest.raises(TokenizerError, match=r"is not a tokenizer.json of the tokenizers library"):
            Encoder(b'{"model": {"vocab": {"a": 0}}}', eos_token="a")
