from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.tokenizer import parity
from pipeline.tokenizer.encode import CHECK_EVERY, Encoder, EngineDifferenceError
from pipeline.tokenizer.engine import (
    FlatIds,
    SplintrEngine,
    TokenizersEngine,
    bytes_without_token,
    without_special_tokens,
)
from pipeline.tokenizer.parity import Guard, first_difference, hard_cases, ineligible
from pipeline.tokenizer.special_tokens import SPECIAL_TOKENS
from pipeline.tokenizer.train import TokenizerError

EOS = "<|endoftext|>"
# the bytes without a token in SmolLM2's published vocabulary
SMOLLM2_LACKS = bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)])

HARD = st.sampled_from([case for case in hard_cases(SPECIAL_TOKENS, long_characters=500) if len(case) < 600])
WORDS = st.sampled_from(["def ", "the", " shard", "\n\n    ", "  ", "1", "'s", "'ll", "\u0301", "\u200d", "👩", "x"])
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(st.one_of(WORDS, HARD, st.characters(codec="utf-8")), max_size=12).map("".join)
)


def spelled(byte: int) -> str:
    """How byte-level BPE spells a byte, by asking the library."""
    from tokenizers import pre_tokenizers

    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {chr(code) for code in printable})
    return chr(byte) if byte in printable else others[[b for b in range(256) if b not in printable].index(byte)]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def library_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 entries trained on the standard library: real merges, letters and spaces among them."""
    from pipeline.tokenizer.train import train_tokenizer

    path = tmp_path_factory.mktemp("library") / "tokenizer.json"
    path.write_bytes(train_tokenizer(library_texts(2_000_000), vocab_size=2000))
    return path


@pytest.fixture(scope="session")
def lacking_tokenizer(library_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without tokens for the 21 bytes that SmolLM2's vocabulary lacks."""
    tree = json.loads(library_tokenizer.read_bytes())
    lacking = {spelled(byte) for byte in SMOLLM2_LACKS}
    vocab = tree["model"]["vocab"]
    for name in [name for name in vocab if lacking & set(name)]:
        del vocab[name]
    tree["model"]["merges"] = [pair for pair in tree["model"]["merges"] if not lacking & set("".join(pair))]
    path = tmp_path_factory.mktemp("lacking") / "tokenizer.json"
    path.write_text(json.dumps(tree))
    return path


def library_texts(size_bytes: int) -> list[str]:
    import sysconfig

    texts: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if "site-packages" in file.parts:
            continue
        texts.append(file.read_bytes().decode("utf-8", errors="replace"))
        size_bytes -= len(texts[-1])
        if size_bytes < 0:
            break
    return texts


def fast_encoder(path: Path) -> Encoder:
    encoder = Encoder(path.read_bytes(), eos_token=EOS)
    encoder.use("splintr")
    return encoder


ENCODERS: dict[Path, Encoder] = {}
TOKENIZERS: dict[Path, Tokenizer] = {}


def reference_ids(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """One document at a time, whole, by the library alone."""
    if path not in TOKENIZERS:
        TOKENIZERS[path] = Tokenizer.from_file(str(path))
        TOKENIZERS[path].encode_special_tokens = True
    return [[*TOKENIZERS[path].encode(text, add_special_tokens=False).ids, 0] for text in texts]


class Wrong:
    """An engine that gives the reference's ids until a text holds `on`."""

    name = "splintr"
    version = "0.0"

    def __init__(self, content: bytes, on: str = "shard") -> None:
        self._engine = TokenizersEngine(Tokenizer.from_str(content.decode()))
        self._on = on

    def encode(self, texts: Sequence[str]) -> FlatIds:
        flat = self._engine.encode(texts)
        for row, text in enumerate(texts):
            if self._on in text:
                flat.row(row)[:1] += np.uint16(1)
        return flat


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
@pytest.mark.parametrize("vocabulary", ["library_tokenizer", "lacking_tokenizer"])
def test_ids_equal_the_reference_on_any_text(texts: list[str], vocabulary: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(vocabulary)
    if path not in ENCODERS:
        ENCODERS[path] = fast_encoder(path)
    assert [ids.tolist() for ids in ENCODERS[path].encode(texts)] == reference_ids(path, texts)


@pytest.mark.parametrize("vocabulary", ["library_tokenizer", "lacking_tokenizer"])
def test_ids_equal_the_reference_on_the_hard_cases_and_the_standard_library(
    vocabulary: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(vocabulary)
    texts = [*hard_cases(SPECIAL_TOKENS, long_characters=50_000), *library_texts(3_000_000)]
    encoder = fast_encoder(path)
    assert [ids.tolist() for ids in encoder.encode(texts)] == reference_ids(path, texts)
    assert encoder.unit_record().engine.startswith("splintr ")


def test_without_the_guard_a_byte_without_a_token_makes_other_ids(lacking_tokenizer: Path) -> None:
    content = lacking_tokenizer.read_bytes()
    reference = TokenizersEngine(Tokenizer.from_str(content.decode()))
    fast = SplintrEngine(without_special_tokens(json.loads(content)))
    # "==" has a token, and only the reference makes it of what is left
    cases = ["=\x04=", "=\x1d="]
    assert first_difference(reference, fast, Guard(b""), cases) is not None
    assert first_difference(reference, fast, Guard(SMOLLM2_LACKS), cases) is None


def test_the_bytes_without_a_token_are_found(lacking_tokenizer: Path) -> None:
    assert bytes_without_token(json.loads(lacking_tokenizer.read_bytes())["model"]["vocab"]) == SMOLLM2_LACKS


def test_the_guard_stops_what_holds_an_unsafe_byte_and_nothing_else() -> None:
    guard = Guard(SMOLLM2_LACKS)
    assert [guard.stops(text) for text in ("a\x04", "\U00040000", "\U000bffff", "naïve 🙂 \x01", "\U000c0000", "")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@given(texts=st.lists(TEXTS, max_size=6))
def test_the_guard_looks_at_many_texts_as_at_each_alone(texts: list[str]) -> None:
    expected = [not set(SMOLLM2_LACKS).isdisjoint(text.encode()) for text in texts]
    assert Guard(SMOLLM2_LACKS).stopped(texts) == expected
    assert Guard(b"").stopped(texts) == [False] * len(texts)


def test_pieces_that_the_guard_stops_are_counted(lacking_tokenizer: Path) -> None:
    encoder = fast_encoder(lacking_tokenizer)
    texts = ["the", "=\x04=", "", "\x1d", "shard"]
    assert [ids.tolist() for ids in encoder.encode(texts)] == reference_ids(lacking_tokenizer, texts)
    assert [ids.tolist() for ids in encoder.encode(["\x04x"])] == reference_ids(lacking_tokenizer, ["\x04x"])
    record = encoder.unit_record()
    assert (record.pieces, record.pieces_by_reference) == (6, 3)


def test_the_hard_cases_use_every_byte_of_utf_8() -> None:
    used = set("".join(hard_cases([])).encode())
    # C0, C1 and F5 to FF are in no UTF-8
    assert used == set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}


def test_the_first_piece_and_each_1024th_after_it_are_checked(tokenizer_file: Path) -> None:
    encoder = fast_encoder(tokenizer_file)
    for count in (1, CHECK_EVERY - 1, CHECK_EVERY, 3):  # pieces 0, 1024 and 2048
        encoder.encode(["the"] * count)
    assert encoder.unit_record().pieces_checked == 3
    encoder.begin_unit()
    encoder.encode(["the"])
    assert encoder.unit_record().pieces_checked == 1


def test_a_difference_in_a_checked_piece_is_an_error(tokenizer_file: Path) -> None:
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token=EOS)
    encoder.use(Wrong(tokenizer_file.read_bytes()))
    encoder.encode(["the"] * CHECK_EVERY)
    with pytest.raises(EngineDifferenceError, match=r"^splintr 0.0 differs from tokenizers .* on 'a shard'$") as caught:
        encoder.encode(["a shard"])
    encoder.begin_unit(after=caught.value)
    assert encoder.encode(["a shard"])[0].tolist() == reference_ids(tokenizer_file, ["a shard"])[0]
    assert encoder.unit_record().engine.startswith("tokenizers ")
    assert encoder.unit_record().difference == str(caught.value)


def test_auto_takes_splintr_and_says_so(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token=EOS)
    assert encoder.choose("auto", input_bytes=1000) == "splintr"
    (message,) = caplog.messages
    assert message.startswith("tokenizer: encoding with splintr ")
    assert message.endswith(" hard cases")


def test_what_was_found_equal_is_not_compared_again(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token=EOS)
    encoder.choose("auto", input_bytes=1000)
    monkeypatch.setattr(parity, "SplintrEngine", lambda content: pytest.fail("it was compared"))
    # 900 and 1,000 bytes share the power of two above them
    assert encoder.choose("auto", input_bytes=900) == "splintr"
    assert caplog.messages[1] == f"{caplog.messages[0]} before"


@pytest.mark.parametrize("changed", ["tokenizer", "version", "cases", "size of the input"])
def test_another_tokenizer_version_case_or_size_is_compared(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    caplog.set_level(logging.INFO)
    content, input_bytes = tokenizer_file.read_bytes(), 1000
    Encoder(content, eos_token=EOS).choose("auto", input_bytes=input_bytes)
    if changed == "tokenizer":
        content += b"\n"
    elif changed == "version":
        monkeypatch.setattr(parity, "splintr_version", lambda: "0.22.999")
    elif changed == "cases":
        monkeypatch.setattr(parity, "hard_cases", lambda tokens, long_characters: ["x"])
    else:
        input_bytes = 2000
    Encoder(content, eos_token=EOS).choose("auto", input_bytes=input_bytes)
    assert caplog.messages[1].endswith(" hard cases")


def test_a_difference_is_not_remembered(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token=EOS)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(parity, "SplintrEngine", lambda tree: Wrong(tree, on="'s"))
            assert encoder.choose("auto", input_bytes=1000) == "tokenizers"
            with pytest.raises(
                TokenizerError, match=r"^tokenizer.engine=splintr: splintr .* differs .* or set tokenizer.engine"
            ):
                encoder.choose("splintr", input_bytes=1000)
    assert encoder.choose("auto", input_bytes=1000) == "splintr"


@pytest.mark.parametrize("on", ["'s", "  \n", "👩", "\x1d", "<filename>", "aaa", "\U000e0067", "\ufffd"])
def test_an_engine_that_is_wrong_on_a_hard_case_is_not_taken(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    monkeypatch.setattr(parity, "SplintrEngine", lambda content: Wrong(content, on=on))
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token=EOS)
    assert encoder.choose("auto", input_bytes=1000) == "tokenizers"


def test_without_splintr_auto_says_once_what_to_install(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "splintr", None)
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token=EOS)
    assert encoder.choose("auto", input_bytes=0) == "tokenizers"
    (message,) = caplog.messages
    assert message.startswith(
        "tokenizer: encoding with tokenizers, some ten times slower than splintr: splintr is not "
    )
    with pytest.raises(
        TokenizerError, match=r"tokenizer.engine=splintr: splintr is not installed .*pip install splintr"
    ):
        encoder.choose("splintr", input_bytes=0)


def test_the_reference_is_taken_when_asked_for(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token=EOS)
    assert encoder.choose("tokenizers", input_bytes=0) == "tokenizers"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ignore_merges": True}, "the tokenizer's model sets ignore_merges"),
        ({"dropout": 0.1}, "the tokenizer's model sets dropout"),
        ({"unk_token": EOS}, "the tokenizer's model sets unk_token"),
        ({"type": "WordPiece"}, "the tokenizer is not byte-level BPE after GPT-2's pattern without a normalizer"),
        ({}, None),
    ],
)
def test_only_the_known_shape_is_eligible(tokenizer_file: Path, change: dict[str, Any], reason: str | None) -> None:
    tree = json.loads(tokenizer_file.read_bytes())
    tree["model"].update(change)
    assert ineligible(tree) == reason
