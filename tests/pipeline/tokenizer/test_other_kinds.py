"""Tokenizers that are not byte-level BPE: they work, by the reference, and give the ids of the library itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.config import PipelineConfig
from pipeline.run import run
from pipeline.tokenizer import encode
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.train import TokenizerError

EOS = "</s>"


def texts() -> Iterator[str]:
    return (f"the quick brown fox {number} jumps over Ünïcode 東京 dogs" for number in range(300))


def word_piece() -> Tokenizer:
    """As BERT's: lower case without accents, words cut from the left, [CLS] and [SEP] around a text if asked."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special_tokens = ["[UNK]", "[CLS]", "[SEP]", EOS]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special_tokens, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """As SentencePiece's: a space is ▁, one stands before the text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", EOS], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def bpe_with_byte_fallback() -> Tokenizer:
    """As Llama 2's: characters that it does not know become bytes; nothing splits the text into words."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special_tokens = ["<unk>", EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special_tokens, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


@pytest.fixture(scope="module", params=[word_piece, unigram, bpe_with_byte_fallback], ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Tokenizer = request.param()
    return made


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The library alone, on the whole text."""
    tokenizer.encode_special_tokens = True
    return [*tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.token_to_id(EOS)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["the fox", " ", "\n", "東京", "é", "<b>", "[x]", "🙂", "12", "\x00"]), max_size=12)
        .map("".join)
        .filter(bool),
        max_size=4,
    )
)
def test_ids_are_those_of_the_library(tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # a cut between words would change ids where words are not encoded alone
    monkeypatch.setattr(encode, "PIECE_CHARACTERS", 2)
    got = Encoder(tokenizer.to_str().encode(), eos_token=EOS).encode(texts)
    assert [ids.tolist() for ids in got] == [plain_ids(tokenizer, text) for text in texts]


def word_level() -> Tokenizer:
    """Whole words; those that it does not know are [UNK]."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", EOS, "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def bpe_that_looks_words_up() -> Tokenizer:
    """As Llama 3's, with its special tokens in the vocabulary of the model."""
    tokenizer = bpe_with_byte_fallback()
    tree = json.loads(tokenizer.to_str())
    tree["model"]["ignore_merges"] = True
    tree["normalizer"] = None
    return Tokenizer.from_str(json.dumps(tree))


@pytest.mark.parametrize(
    "make",
    [word_level, word_piece, unigram, bpe_with_byte_fallback, bpe_that_looks_words_up],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("text", [EOS, f"the {EOS} fox", f"{EOS}{EOS}", "fox [SEP] [UNK] <unk>", f"fox\n{EOS}\n"])
def test_literals_of_special_tokens_are_text(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = make()
    encoder = Encoder(tokenizer.to_str().encode(), eos_token=EOS)
    (ids,) = encoder.encode([text])
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    allowed = {"[UNK]", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))}
    assert ids[-1] == tokenizer.token_to_id(EOS)
    assert {tokenizer.id_to_token(number) for number in ids[:-1].tolist()} & (special - allowed) == set()


def test_auto_takes_the_reference_and_says_why(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    encoder = Encoder(tokenizer.to_str().encode(), eos_token=EOS)
    assert encoder.choose("auto", input_bytes=10) == "tokenizers"
    assert caplog.messages[0].endswith("the tokenizer is not byte-level BPE after GPT-2's pattern without a normalizer")
    with pytest.raises(TokenizerError, match=r"^tokenizer.engine=splintr: the tokenizer is not byte-level BPE"):
        encoder.choose("splintr", input_bytes=10)


def test_a_dataset_of_it_holds_the_ids_of_the_library(
    tmp_path: Path,
    tokenizer: Tokenizer,
    make_config: Callable[..., PipelineConfig],
    make_jsonl: Callable[[Path, list[str]], Path],
) -> None:
    tokenizer.save(str(tmp_path / "t.json"))
    make_jsonl(tmp_path / "corpus" / "a.jsonl", list(texts()))
    config = make_config(tokenizer={"path": tmp_path / "t.json", "eos_token": EOS}, validation_fraction=0)
    assert run(config).manifest.encoding[0].engine.startswith("tokenizers ")
    with pa.ipc.open_stream((config.output_dir / "data-00000-000.arrow").read_bytes()) as stream:
        rows = stream.read_all()["input_ids"].to_pylist()
    assert rows == [plain_ids(tokenizer, text) for text in texts()]
