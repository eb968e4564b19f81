from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.document import LongText
from pipeline.tokenizer import encode
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.pieces import DIGITS, LETTERS, MARKS, Cutter

ALONE = {"type": "Digits", "individual_digits": True}
IN_A_ROW = {"type": "Digits", "individual_digits": False}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "digits alone": {"type": "Sequence", "pretokenizers": [ALONE, GPT2]},
    "digits in a row": {"type": "Sequence", "pretokenizers": [IN_A_ROW, GPT2]},
    "no digits": GPT2,
}

# of every class, with what contractions and spaces do between them, and characters that are in none of the sets
HARD = "'srtvemldSLxZéж東あไ1907²٣½Ⅷ.([\"-_।ัé\u0301\u2019、\uff01😀👍\t\n\r\v\f \x1c\x85\xa0\u3000\u200b\x00"
TEXTS = st.one_of(st.text(alphabet=HARD, max_size=40), st.text(alphabet="ab1'. \n", max_size=40), st.text(max_size=40))


def cutter(name: str) -> Cutter:
    return Cutter({"pre_tokenizer": PRE_TOKENIZERS[name]})


def cut(text: str, *, name: str = "digits alone", characters: int = 4) -> list[str]:
    return list(cutter(name).pieces(text, characters=characters))


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tokenizer_file: Path) -> tuple[str, Tokenizer, Encoder]:
    """The name of the pre-tokenizer, the library alone, and ours."""
    tree = json.loads(tokenizer_file.read_bytes()) | {"pre_tokenizer": PRE_TOKENIZERS[request.param]}
    content = json.dumps(tree)
    library = Tokenizer.from_str(content)
    library.encode_special_tokens = True
    return request.param, library, Encoder(content.encode(), eos_token="<|endoftext|>")


def words(library: Tokenizer, text: str) -> list[str]:
    """What the library itself encodes one by one, spelled as byte-level BPE does."""
    return [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)]


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, characters=st.integers(1, 8))
def test_the_library_s_words_of_a_text_are_those_of_its_pieces(
    tokenizer: tuple[str, Tokenizer, Encoder], text: str, characters: int
) -> None:
    name, library, _ = tokenizer
    pieces = cut(text, name=name, characters=characters)
    assert "".join(pieces) == text
    assert [word for piece in pieces for word in words(library, piece)] == words(library, text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, characters=st.integers(1, 8))
def test_ids_of_a_text_are_those_of_the_library_for_the_whole(
    tokenizer: tuple[str, Tokenizer, Encoder], text: str, characters: int
) -> None:
    _, library, encoder = tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "PIECE_CHARACTERS", characters)
        (ids,) = encoder.encode([text])
    assert ids.tolist() == [*library.encode(text, add_special_tokens=False).ids, 0]


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(TEXTS.filter(bool), min_size=1, max_size=6), characters=st.integers(1, 8))
@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_text_in_parts_is_cut_as_one_string(name: str, parts: list[str], characters: int) -> None:
    text = LongText(list(parts))
    assert list(cutter(name).pieces(text, characters=characters)) == cut(
        "".join(parts), name=name, characters=characters
    )
    assert text.parts == []


def members(character_class: str) -> Iterator[str]:
    return (chr(point) for point in range(0x20000) if re.fullmatch(f"[{character_class}]", chr(point)))


@pytest.mark.parametrize(
    ("character_class", "same", "others"),
    [(LETTERS, "a", "1."), (DIGITS, "1", "a."), (MARKS, ".", "a1")],
    ids=["letters", "digits", "marks"],
)
def test_every_character_is_of_its_class_to_the_library(
    tokenizer_file: Path, character_class: str, same: str, others: str
) -> None:
    library = Tokenizer.from_str(json.dumps(json.loads(tokenizer_file.read_bytes()) | {"pre_tokenizer": GPT2}))
    for character in members(character_class):
        assert len(words(library, f"{same}{character}{same}")) == 1, ascii(character)
        for other in others:
            assert len(words(library, f"{other}{character}{other}")) == 3, ascii(character)


def test_a_text_is_cut_between_words_and_kinds_of_characters() -> None:
    assert cut("one two\nthree\n\n four") == ["one two", "\nthree", "\n\n four"]
    assert cut("abcde.fghij(klmno") == ["abcde", ".fghij", "(klmno"]
    assert cut("国国国国、国国国国。国") == ["国国国国", "、国国国国", "。国"]


def test_a_text_is_not_cut_behind_an_apostrophe_or_a_space() -> None:
    assert cut("abc're", characters=1) == ["abc", "'re"]
    assert cut("x  (y", characters=1) == ["x", "  (", "y"]


def test_digits_are_cut_apart_where_the_tokenizer_takes_them_alone() -> None:
    assert cut("1234567890") == ["1234", "5678", "90"]
    assert cut("1234567890", name="digits in a row") == ["1234567890"]
    assert cut("1234567890", name="no digits") == ["1234567890"]


def test_one_word_stays_whole_and_what_follows_is_cut_again() -> None:
    assert cut("abcdefghijkl") == ["abcdefghijkl"]
    assert cut("abcdefghijkl mnop qrst") == ["abcdefghijkl", " mnop", " qrst"]


@pytest.mark.parametrize(
    "text", ["aGVsbG8gd29ybGQhIQ+/" * 20_000, "if(a){b=c[0];d()}" * 20_000, "これは、長い文章です。" * 40_000]
)
def test_text_without_spaces_is_cut_where_it_should_be(text: str) -> None:
    pieces = cut(text, characters=1 << 17)
    assert len(pieces) == -(-len(text) // (1 << 17))
    assert all(len(first) < (1 << 17) + 20 for first, _ in pairwise(pieces))
