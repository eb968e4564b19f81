from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from pipeline.tokenizer.special_tokens import MIN_VOCAB_SIZE, SPECIAL_TOKENS
from pipeline.tokenizer.train import TokenizerError, train_tokenizer

TEXTS = [f"lines of text number {number}, and more of the same text\n" * 3 for number in range(50)]


@pytest.fixture(scope="module")
def content() -> bytes:
    return train_tokenizer(iter(TEXTS), vocab_size=300)


def test_the_same_texts_give_the_same_bytes(content: bytes) -> None:
    assert train_tokenizer(iter(TEXTS), vocab_size=300) == content


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_texts_does_not_matter(content: bytes, seed: int) -> None:
    shuffled = random.Random(seed).sample(TEXTS, len(TEXTS))
    assert shuffled != TEXTS
    assert train_tokenizer(shuffled, vocab_size=300) == content


def test_of_pairs_equally_frequent_that_of_the_smaller_ids_is_merged_first() -> None:
    tree = json.loads(train_tokenizer(["cd ab"] * 5, vocab_size=MIN_VOCAB_SIZE + 1))
    assert tree["model"]["merges"] == [["a", "b"]]


@pytest.mark.parametrize(
    "threads",
    [{"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "5"}, {"TOKENIZERS_PARALLELISM": "false"}],
    ids=lambda threads: "".join(threads.values()),
)
def test_the_number_of_threads_does_not_matter(content: bytes, threads: dict[str, str]) -> None:
    # the library reads these when it starts, so each is a process of its own
    program = (
        "import json, sys\nfrom pipeline.tokenizer.train import train_tokenizer\n"
        "sys.stdout.buffer.write(train_tokenizer(json.load(sys.stdin), vocab_size=300))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(TEXTS).encode(),
        env=os.environ | threads,
        capture_output=True,
        check=True,
    )
    assert done.stdout == content


def test_special_tokens_have_the_ids_0_to_16(content: bytes) -> None:
    tokenizer = Tokenizer.from_str(content.decode())
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(17))
    assert SPECIAL_TOKENS[0] == "<|endoftext|>"
    assert SPECIAL_TOKENS[16] == "<empty_output>"


def test_vocabulary_has_exactly_the_wanted_size(content: bytes) -> None:
    assert Tokenizer.from_str(content.decode()).get_vocab_size() == 300


def test_splitting_is_that_of_smollm2(content: bytes) -> None:
    tree = json.loads(content)
    digits, byte_level = tree["pre_tokenizer"]["pretokenizers"]
    assert digits == {"type": "Digits", "individual_digits": True}
    assert byte_level["type"] == "ByteLevel"
    assert byte_level["add_prefix_space"] is False
    assert byte_level["use_regex"] is True
    assert tree["normalizer"] is None
    assert tree["post_processor"] is None


def test_digits_are_never_merged() -> None:
    tokenizer = Tokenizer.from_str(
        train_tokenizer(["2024 2024 2024 abab"] * 50, vocab_size=MIN_VOCAB_SIZE + 2).decode()
    )
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]


def test_every_byte_survives(content: bytes) -> None:
    tokenizer = Tokenizer.from_str(content.decode())
    text = "".join(map(chr, range(0x250))) + "\u2028東\U0001f642"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_too_little_text_for_the_vocabulary_names_the_size_that_fits() -> None:
    # "ab" once: 273 entries, and one merge of a with b
    with pytest.raises(TokenizerError, match=r"gives only 274 tokenizer entries, wanted 5,000; .*vocab_size=274"):
        train_tokenizer(["ab"], vocab_size=5000)
