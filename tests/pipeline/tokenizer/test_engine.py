from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipeline.tokenizer.engine import (
    Engine,
    SplintrEngine,
    TokenizersEngine,
    is_plain_byte_level_bpe,
    vocabulary_of,
    without_special_tokens,
)
from pipeline.tokenizer.train import TokenizerError


@pytest.fixture(params=["tokenizers", "splintr"])
def engine(request: pytest.FixtureRequest, tokenizer_file: Path) -> Engine:
    content = tokenizer_file.read_bytes()
    if request.param == "splintr":
        return SplintrEngine(without_special_tokens(json.loads(content)))
    return TokenizersEngine(Tokenizer.from_str(content.decode()))


def test_ids_come_as_one_array_of_16_bits_with_offsets(engine: Engine) -> None:
    flat = engine.encode(["12", "", "3"])
    assert (flat.ids.dtype, flat.offsets.tolist()) == (np.uint16, [0, 2, 2, 3])
    one, two, three = (engine.encode([digit]).ids[0] for digit in "123")
    assert flat.ids.tolist() == [one, two, three]
    assert flat.row(1).tolist() == []


def test_no_texts_are_no_ids(engine: Engine) -> None:
    flat = engine.encode([])
    assert (flat.ids.tolist(), flat.offsets.tolist()) == ([], [0])


def test_a_special_token_in_text_is_text(engine: Engine) -> None:
    # the special tokens have the ids 0 to 16
    assert engine.encode(["<|endoftext|> x<filename>"]).ids.min() > 16


def test_a_file_that_splintr_refuses_is_one_line() -> None:
    with pytest.raises(TokenizerError, match=r"^splintr cannot read the tokenizer: ") as caught:
        SplintrEngine(without_special_tokens({"model": {"type": "Nothing", "vocab": {}}}))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_from_before_use_regex_is_what_the_library_takes_it_for() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tree = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": byte_level}
    library = Tokenizer.from_str(json.dumps(tree)).pre_tokenizer
    assert library is not None
    assert library.pre_tokenize_str("a-b") == [("a", (0, 1)), ("-", (1, 2)), ("b", (2, 3))]
    assert is_plain_byte_level_bpe(tree)
    assert not is_plain_byte_level_bpe(tree | {"pre_tokenizer": byte_level | {"use_regex": False}})


def test_the_file_tells_the_vocabulary_if_every_added_token_is_an_entry_of_the_model(tokenizer_file: Path) -> None:
    tree = json.loads(tokenizer_file.read_bytes())
    library = Tokenizer.from_file(str(tokenizer_file))
    assert vocabulary_of(tree) == library.get_vocab(with_added_tokens=True)
    added = {"id": 300, "content": "<new>", "special": True}
    assert vocabulary_of(tree | {"added_tokens": [*tree["added_tokens"], added]}) is None
    moved = [tree["added_tokens"][0] | {"id": 5}]
    assert vocabulary_of(tree | {"added_tokens": moved}) is None
    assert vocabulary_of(tree | {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}) is None
